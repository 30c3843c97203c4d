"""A LightningModule whose optimizer, blocks and coordinates can be chosen and changed."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from typing_extensions import override

from lightning_linf.lightning_packages import either, is_either
from lightning_linf.swap.geometry import Geometry, check_geometry
from lightning_linf.swap.restoring import before_restoring, end_restoring
from lightning_linf.swap.trainer import check_strategy, swap_optimizers

_KEY = "lightning_linf.geometry"  # of the list of swaps in a checkpoint
_HOOKS = ("setup", "on_fit_start", "on_save_checkpoint", "on_load_checkpoint")

if TYPE_CHECKING:
    _Base = LightningModule
else:
    _Base = object  # so that it can precede LightningModules of lightning and pytorch_lightning


class GeometryMixin(_Base):
    """Train a module in another geometry: another optimizer, blocks, or coordinates.

    Subclass with the mixin first, ``class Rotated(GeometryMixin, TheirModule)``, and set the class
    attribute ``geometry``; or wrap an instance:
    ``GeometryMixin.wrap(module, Geometry(rotation="global"))``.

    The module's ``configure_optimizers`` (or LightningCLI's ``--optimizer``) is called as ever.
    When fitting starts, in ``on_fit_start``, the optimizers that it returned are replaced, and
    parameter groups, hyperparameters and schedulers kept, as :class:`Geometry` says; if nothing is
    chosen, the optimizers stay. Weights, gradients, clipping and checkpoints are those of the
    module. Callbacks that run before, such as Lightning's learning rate finder, use the original
    optimizer.

    A checkpoint can be resumed in the geometry in which it was saved, and its weights load into
    the plain module. Under manual optimization all optimizers are replaced; so call
    ``self.optimizers()`` in every step, and do not keep its result.

    Attributes:
        geometry: The choice at the start of a fit.

    Raises:
        TypeError: If a subclass does not put it first, or overrides one of its hooks without
            calling ``super()``.
        MisconfigurationException: In ``setup``, if a geometry is chosen under FSDPStrategy or
            DeepSpeed; when fitting starts, for a checkpoint of another geometry.
        ValueError: When fitting starts, if the geometry does not fit the parameters.

    Source:
        Adam and SGD in rotated coordinates, blockwise Adam: Xie, Mohamadi & Li, arXiv:2410.08198.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Rotated(GeometryMixin, BoringModel):
        ...     geometry = Geometry("adam", rotation="global")
        >>> Rotated().geometry.describe()
        "Adam under Rotation(scope='global', seed=0, strength=1.0, only=None)"
    """

    geometry: Geometry = Geometry()
    # As :func:`_record` has them: the swaps of this fit, and those of the last loaded checkpoint.
    _swaps: tuple[dict[str, Any], ...] = ()
    _saved_swaps: tuple[dict[str, Any], ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        ahead = cls.__mro__[: cls.__mro__.index(GeometryMixin)]
        late = [
            base
            for base in ahead
            if not issubclass(base, GeometryMixin)
            and (issubclass(base, either(LightningModule)) or vars(base).keys() & {*_HOOKS})
        ]
        if late:
            raise TypeError(
                f"GeometryMixin: expected to come first among the bases of {cls.__name__}, got "
                f"{late[0].__name__} before it, whose hooks would hide its own. Write class "
                f"{cls.__name__}(GeometryMixin, {late[0].__name__})."
            )
        for name in _HOOKS:
            code = getattr(vars(cls).get(name), "__code__", None)
            if code is not None and not {"super", "GeometryMixin"} & {*code.co_names}:
                raise TypeError(
                    f"GeometryMixin: expected {cls.__name__}.{name} to call super().{name}, got an "
                    "override that hides the mixin's own. Add the call."
                )

    @staticmethod
    def wrap(module: LightningModule, geometry: Geometry) -> LightningModule:
        """Give an existing module a geometry.

        Args:
            module: The module. It is changed in place: its class becomes a subclass of its former
                one with this mixin.
            geometry: The choice at the start of a fit.

        Returns:
            The same module.

        Raises:
            ValueError: If it is not a LightningModule, or ``geometry`` not a Geometry.
        """
        if not is_either(module, LightningModule):
            raise ValueError(
                f"GeometryMixin.wrap: expected a LightningModule, got {type(module).__name__}. "
                "Wrap a LightningModule, and before torch.compile."
            )
        check_geometry("GeometryMixin.wrap", geometry)
        if not isinstance(getattr(module, "geometry", geometry), Geometry):
            raise ValueError(
                f"GeometryMixin.wrap: expected a module without an attribute `geometry` of its own,"
                f" got one in {type(module).__name__}. Use the callback SwapOptimizer(0, geometry)."
            )
        if not isinstance(module, GeometryMixin):
            module.__class__ = _mixed(type(module))  # type: ignore[arg-type]  # has a hash
        assert isinstance(module, GeometryMixin)
        module.geometry = geometry
        return module

    def swap_optimizer(
        self, geometry: Geometry, *, carry: bool = True, index: int | None = None
    ) -> str:
        """Change to another geometry while fitting, between two steps.

        Call it in a hook such as ``on_train_batch_start``; the callback
        :class:`~lightning_linf.callbacks.SwapOptimizer` does so at a given step.

        Args:
            geometry: The choice from now on.
            carry: Carry momentum and second moments over; else they start anew.
            index: Number of the optimizer to replace, if there are several. Default: all of them.

        Returns:
            What was done, in words; they are logged, too.

        Raises:
            MisconfigurationException: See :func:`~lightning_linf.swap.swap_optimizers`.
            ValueError: If the geometry does not fit the parameters.
        """
        done = swap_optimizers(self.trainer, self, geometry, carry=carry, index=index)
        self._swaps += (_record(geometry, index),)
        return done

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._swaps = self._saved_swaps = ()
            end_restoring(self.trainer)
            if self.geometry != Geometry():
                check_strategy("GeometryMixin", self.trainer)
        super().setup(stage)

    @override
    def on_fit_start(self) -> None:
        check_geometry("GeometryMixin", self.geometry)
        # A resumed run makes all its swaps again: a Geometry() keeps the class of the one before.
        for geometry, index in self._choices():
            if self._swaps or geometry != Geometry():
                self.swap_optimizer(geometry, index=index)
            else:
                self._swaps = (_record(geometry, index),)
        if self.trainer.strategy.restore_checkpoint_after_setup:  # the checkpoint is not loaded yet
            before_restoring(self.trainer, self._resume)
        super().on_fit_start()

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_KEY] = list(self._swaps)
        super().on_save_checkpoint(checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._read_swaps(checkpoint)
        super().on_load_checkpoint(checkpoint)

    def _resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Make the swaps of a checkpoint again, but the first: :meth:`on_fit_start` has made it."""
        self._read_swaps(checkpoint)
        for geometry, index in self._choices()[1:]:
            self.swap_optimizer(geometry, index=index)

    def _read_swaps(self, checkpoint: Mapping[str, Any]) -> None:
        plain_run = {**_record(Geometry(), None), "description": "a run without GeometryMixin"}
        self._saved_swaps = tuple(checkpoint.get(_KEY, [plain_run]))

    def _choices(self) -> list[tuple[Geometry, int | None]]:
        """Give the swaps to make first: those of the resumed checkpoint, or the module's own."""
        saved, own = self._saved_swaps, _record(self.geometry, None)
        if not saved:
            return [(self.geometry, None)]
        # A geometry that a checkpoint cannot hold, such as one with a class, must be given again,
        # by the module or a callback.
        callbacks = [
            callback
            for callback in self.trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(getattr(callback, "geometry", None), Geometry)
        ]
        given = {each.geometry.describe(): each.geometry for each in (*callbacks, self)}
        choices = [
            (Geometry(**swap["choice"]), swap["index"])
            if swap["choice"] is not None
            else (given[swap["description"]], swap["index"])
            for swap in saved
            if swap["choice"] is not None or swap["description"] in given
        ]
        # In a run without this mixin, callbacks swap without a record in the checkpoint.
        swapped = {
            each.geometry.describe() for each in callbacks if getattr(each, "is_done", False)
        }
        is_whole = len(choices) == len(saved) and swapped <= {swap["description"] for swap in saved}
        if _is_same(saved[0], own) and is_whole:
            return choices
        if self.geometry.optimizer is not None and _is_same(saved[-1], own):
            return [(self.geometry, None)]
        raise MisconfigurationException(
            f"GeometryMixin: expected a checkpoint saved under {own['description']}, got one of "
            f"{', then '.join(swap['description'] for swap in saved)}, whose optimizer state means "
            "something else. Resume with that geometry and change it by SwapOptimizer, or load the "
            "weights alone."
        )


def _record(geometry: Geometry, index: int | None) -> dict[str, Any]:
    """Describe a swap for a checkpoint."""
    return {
        "description": geometry.describe(),
        "choice": geometry.to_plain(),
        "index": index,
    }


def _is_same(saved: dict[str, Any], own: dict[str, Any]) -> bool:
    """Tell whether a saved swap is that of all optimizers to the module's own geometry."""
    if saved["choice"] is not None and saved["choice"] == own["choice"]:
        return bool(saved["index"] is None)
    return bool(saved["description"] == own["description"] and saved["index"] is None)


@cache
def _mixed(base: type[LightningModule]) -> type[GeometryMixin]:
    """Make a subclass of a module's class with the mixin."""

    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        # A pickle names the base: the subclass cannot be imported by its name.
        state = object.__reduce_ex__(self, protocol)[2:]
        return (_new, (base,), *state)

    mixed = type(
        f"Geometry{base.__name__}",
        (GeometryMixin, base),
        {"__module__": base.__module__, "__doc__": base.__doc__, "__reduce_ex__": reduce},
    )
    return mixed


def _new(base: type[LightningModule]) -> GeometryMixin:
    """Make an empty instance, for a pickle to fill."""
    kind: Callable[[type[GeometryMixin]], GeometryMixin] = object.__new__
    return kind(_mixed(base))  # type: ignore[arg-type]  # has a hash
