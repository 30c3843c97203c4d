"""A LightningModule whose optimizer, blocks and coordinates can be chosen and changed."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from typing_extensions import override

from lightning_linf.lightning_packages import either, is_either
from lightning_linf.swap.geometry import Geometry
from lightning_linf.swap.restoring import before_restoring, end_restoring
from lightning_linf.swap.trainer import check_strategy, swap_optimizers

_KEY = "lightning_linf.geometry"  # in checkpoints
_HOOKS = ("setup", "on_fit_start", "on_save_checkpoint", "on_load_checkpoint")  # that work here

if TYPE_CHECKING:
    _Base = LightningModule
else:
    _Base = object  # so that it goes before a LightningModule of either package


class GeometryMixin(_Base):
    """Train a module in another geometry: another optimizer, blockwise, or in other coordinates.

    Put it first: ``class Rotated(GeometryMixin, TheirModule)`` with a class attribute ``geometry``,
    or wrap an instance: ``GeometryMixin.wrap(module, Geometry(rotation="global"))``.

    The module's own ``configure_optimizers`` (or LightningCLI's ``--optimizer``) is used as it is.
    When fitting starts, in ``on_fit_start``, the optimizers that the trainer has made of it are
    replaced, keeping parameter groups, hyperparameters and schedulers (:class:`Geometry`); if
    nothing is chosen, they stay. Weights, gradients, clipping and checkpoints stay those of the
    module. Callbacks that work before, such as Lightning's learning rate finder, see its own
    optimizer.

    A checkpoint can be resumed in the geometry in which it was saved, and loads as weights into
    the plain module. Under manual optimization all optimizers are replaced: get them by
    ``self.optimizers()`` whenever you use them.

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
    _swaps: tuple[dict[str, Any], ...] = ()  # of this fit, as words and plain values
    _saved_swaps: tuple[dict[str, Any], ...] = ()  # of the checkpoint that was loaded last

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
            module: Changed in place: its class becomes one with this mixin first.
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
        if not isinstance(geometry, Geometry):
            raise ValueError(
                f"GeometryMixin.wrap: expected a Geometry, got {geometry!r}. Write, say, "
                "Geometry('adam')."
            )
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

        Call it in ``on_train_batch_start``, say; the callback
        :class:`~lightning_linf.callbacks.SwapOptimizer` does so at a given step.

        Args:
            geometry: The choice from now on.
            carry: Carry momentum and second moments over; else they start anew.
            index: Of the optimizer to replace, if there are several. Default: all of them.

        Returns:
            What was done, in words; it is logged, too.

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
        if not isinstance(self.geometry, Geometry):
            raise ValueError(
                f"GeometryMixin: expected a Geometry, got {self.geometry!r}. Write, say, "
                "geometry = Geometry('adam')."
            )
        # Resumed, all swaps are made again in their order: "the same optimizer" is relative.
        for geometry, index in self._choices():
            if self._swaps or geometry != Geometry():
                self.swap_optimizer(geometry, index=index)
            else:
                self._swaps = (_record(geometry, index),)
        if self.trainer.strategy.restore_checkpoint_after_setup:  # so the checkpoint comes later
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
        """Make the swaps after the first one, which :meth:`on_fit_start` has made."""
        self._read_swaps(checkpoint)
        for geometry, index in self._choices()[1:]:
            self.swap_optimizer(geometry, index=index)

    def _read_swaps(self, checkpoint: Mapping[str, Any]) -> None:
        plain_run = {**_record(Geometry(), None), "description": "a run without GeometryMixin"}
        self._saved_swaps = tuple(checkpoint.get(_KEY, [plain_run]))

    def _choices(self) -> list[tuple[Geometry, int | None]]:
        """Those of the checkpoint to resume, if any, else that of the module."""
        saved, own = self._saved_swaps, _record(self.geometry, None)
        if not saved:
            return [(self.geometry, None)]
        # What a checkpoint cannot hold, such as a class, is given again by a callback.
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
        # A callback may have swapped in a run without this class, which keeps no account.
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
    return {
        "description": geometry.describe(),
        "choice": geometry.to_plain(),
        "index": index,
    }


def _is_same(saved: dict[str, Any], own: dict[str, Any]) -> bool:
    if saved["choice"] is not None and saved["choice"] == own["choice"]:
        return bool(saved["index"] is None)
    return bool(saved["description"] == own["description"] and saved["index"] is None)


@cache
def _mixed(base: type[LightningModule]) -> type[GeometryMixin]:
    def reduce(self: Any, protocol: Any) -> tuple[Any, ...]:
        # Made here, the class cannot be imported by name: pickles name the base.
        state = object.__reduce_ex__(self, protocol)[2:]
        return (_new, (base,), *state)

    mixed = type(
        f"Geometry{base.__name__}",
        (GeometryMixin, base),
        {"__module__": base.__module__, "__doc__": base.__doc__, "__reduce_ex__": reduce},
    )
    return mixed


def _new(base: type[LightningModule]) -> GeometryMixin:
    kind: Callable[[type[GeometryMixin]], GeometryMixin] = object.__new__
    return kind(_mixed(base))  # type: ignore[arg-type]  # has a hash
