"""A tensor that stands in a module's place for a parameter, and gathers it where it is used."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map  # torch documents it under this name

from lightning_linf.errors import ProbeError

_PROPERTIES = (
    *("shape", "dtype", "device", "layout", "ndim", "itemsize", "nbytes", "requires_grad"),
    *("is_leaf", "grad", "grad_fn", "is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized"),
)
_METHODS = (
    *("size", "dim", "ndimension", "numel", "nelement", "element_size", "get_device", "__len__"),
    *("is_floating_point", "is_complex", "__hash__"),
)
# What is answered without the values of the parameter.
_FUNCTIONS: tuple[Any, ...] = (torch.numel, torch.is_floating_point, torch.is_complex)
_METADATA = frozenset(
    [getattr(Tensor, name).__get__ for name in _PROPERTIES]
    + [getattr(Tensor, name) for name in _METHODS]
    + [*_FUNCTIONS, torch.is_tensor]
)
_DETACHED = (Tensor.data.__get__, Tensor.detach, torch.detach)  # type: ignore[attr-defined]
_UNCHANGED = (Tensor.data.__set__, Tensor.set_)  # type: ignore[attr-defined]


class StandIn(Tensor):
    """A parameter of which only its shape, dtype and device are here.

    Any operation on it gathers the whole parameter, differentiably. Modules do not only use their
    own parameters in their own forward pass (tied weights, attention, recurrent layers), so this
    happens where a parameter is used and not where a module is called.

    Args:
        gather: Gives the whole parameter.
        shape: Of it.
        like: Has its dtype and device.
        requires_grad: Whether it is one of those that are differentiated.
    """

    _gather: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls, gather: Callable[[], Tensor], shape: torch.Size, like: Tensor, requires_grad: bool
    ) -> "StandIn":
        """Make a tensor without memory."""
        self: StandIn = Tensor._make_wrapper_subclass(
            cls, shape, dtype=like.dtype, device=like.device, requires_grad=requires_grad
        )
        self._gather = gather
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation on whole parameters."""
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _DETACHED and isinstance(args[0], StandIn):
            return args[0]._detached()
        if func in _UNCHANGED:
            _refuse_changes(func)
        wholes: dict[int, tuple[Tensor, int]] = {}

        def whole(value: Any) -> Any:
            if not isinstance(value, StandIn):
                return value
            if id(value) not in wholes:
                gathered = value._gather()
                wholes[id(value)] = gathered, gathered._version
            return wholes[id(value)][0]

        args, kwargs = tree_map(whole, (args, kwargs))
        result = func(*args, **kwargs)
        if any(gathered._version != version for gathered, version in wholes.values()):
            _refuse_changes(func)
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares a placeholder
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuse operations that reach the parameter past Python."""
        raise ProbeError(
            f"probe: expected sharded parameters to be used by torch's operations, got {func}, "
            "which does not say so. Use whole_parameters=True."
        )

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        """Say what it is, without values: other ranks might not show theirs."""
        return f"StandIn(shape={tuple(self.shape)}, dtype={self.dtype})"

    def _detached(self) -> "StandIn":
        gather = self._gather
        return StandIn(lambda: gather().detach(), self.shape, self, False)


def _refuse_changes(func: Any) -> None:
    raise ProbeError(
        "probe: expected a loss that does not change sharded parameters, but "
        f"{getattr(func, '__name__', func)} does. Use whole_parameters=True, or define "
        "probe_loss(batch) without it."
    )
