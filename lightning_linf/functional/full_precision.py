"""Matrix products and convolutions of float32 without TF32, whatever the process has set."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.backends import cudnn

_FULL = ("none", "ieee")  # "none": nothing was set


@contextmanager
def full_float32_precision() -> Iterator[None]:
    """Multiply and convolve float32 without TF32 or bfloat16 inside; settings are restored.

    The settings of torch belong to the process, so other threads compute in full precision
    meanwhile, too.
    """
    mkldnn = torch.backends.mkldnn
    products: list[Any] = [torch.backends.cuda.matmul, getattr(mkldnn, "matmul", None)]
    convolutions: list[Any] = [
        getattr(backend, kind, None) for backend in (mkldnn, cudnn) for kind in ("conv", "rnn")
    ]
    with ExitStack() as stack:
        # cuDNN takes TF32 by default. Its old setting is changed first: once the new ones below are
        # set, torch raises when the old one is read, also by cudnn.flags().
        stack.enter_context(_without_cudnn_tf32())
        # torch 2.9 or newer has these settings, and raises in its old functions once they are set.
        if all(hasattr(module, "fp32_precision") for module in products):
            stack.enter_context(_in_ieee([*products, *convolutions]))
        else:
            stack.enter_context(_in_highest())
        yield


@contextmanager
def _without_cudnn_tf32() -> Iterator[None]:
    try:
        is_allowed = cudnn.allow_tf32
    except RuntimeError:  # the process uses the new settings
        is_allowed = False
    if not is_allowed:
        yield
        return
    with _settable():
        cudnn.allow_tf32 = False
    try:
        yield
    finally:
        with _settable():
            cudnn.allow_tf32 = True


@contextmanager
def _in_ieee(modules: list[Any]) -> Iterator[None]:
    reduced = [(m, m.fp32_precision) for m in modules if m.fp32_precision not in _FULL]
    try:
        with _settable():
            for module, _ in reduced:
                module.fp32_precision = "ieee"
        yield
    finally:
        with _settable():
            for module, value in reduced:
                module.fp32_precision = "none"  # then it is that of the whole backend
                if module.fp32_precision != value:
                    module.fp32_precision = value


@contextmanager
def _in_highest() -> Iterator[None]:
    value = torch.get_float32_matmul_precision()
    if value == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(value)


def _settable() -> AbstractContextManager[None]:
    """Allow settings to be changed, also after ``torch.backends.disable_global_flags()``.

    The name is private. torch's own context managers, ``torch.backends.cudnn.flags()`` and the
    like, use it for the same purpose.
    """
    make: Any = getattr(torch.backends, "__allow_nonbracketed_mutation", nullcontext)
    result: AbstractContextManager[None] = make()
    return result
