"""The loader of the plugin. It imports little: an error in it would stop TensorBoard's start."""

from typing import Any

from tensorboard.plugins.base_plugin import TBLoader

from lightning_linf.tensorboard import PLUGIN_NAME


class GeometryLoader(TBLoader):  # type: ignore[misc]  # tensorboard has no types
    """Load the plugin; TensorBoard survives if that fails, and says why."""

    def fix_flags(self, flags: Any) -> None:
        """Keep all records of a run, not a sample of them, unless the user says how many."""
        flags.samples_per_plugin = {PLUGIN_NAME: 0, **(flags.samples_per_plugin or {})}

    def load(self, context: Any) -> Any:
        """Make the plugin."""
        from lightning_linf.tensorboard.plugin.plugin import GeometryPlugin

        return GeometryPlugin(context)
