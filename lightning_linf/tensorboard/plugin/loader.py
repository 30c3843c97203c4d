"""What TensorBoard imports when it starts.

An error here would keep TensorBoard from starting, so the plugin is only imported in ``load``.
"""

from typing import Any

from tensorboard.plugins.base_plugin import TBLoader

from lightning_linf.tensorboard import PLUGIN_NAME


class GeometryLoader(TBLoader):  # type: ignore[misc]  # tensorboard has no types
    """Load the plugin. If that fails, TensorBoard says why and starts without it."""

    def fix_flags(self, flags: Any) -> None:
        """Let TensorBoard keep all tables of a run, unless the user gives a number.

        It would otherwise keep a sample of ten to a hundred.
        """
        flags.samples_per_plugin = {PLUGIN_NAME: 0, **(flags.samples_per_plugin or {})}

    def load(self, context: Any) -> Any:
        """Make the plugin."""
        from lightning_linf.tensorboard.plugin.plugin import GeometryPlugin

        return GeometryPlugin(context)
