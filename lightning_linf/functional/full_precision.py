"""In which precision float32 matrix products and convolutions compute, for a while."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch.backends import cudnn

MatmulPrecision = Literal["highest", "high"]
_FULL = ("none", "ieee")  # "none": nothing was set


def full_float32_precision() -> AbstractContextManager[None]:
    """Multiply and convolve float32 without TF32 or bfloat16 inside; settings are restored."""
    return float32_precision("highest")


@contextmanager
def float32_precision(matmul: MatmulPrecision) -> Iterator[None]:
    """Compute in float32 as ``matmul`` says, whatever the process has set; settings are restored.

    "highest": matrix products and convolutions in full. "high": matrix products on CUDA may round
    what they multiply to TF32, 10 bits of mantissa, and still add up in float32. Those on the CPU,
    convolutions and cuDNN's recurrent layers are in full even so.

    The settings of torch belong to the process, so other threads compute alike meanwhile.
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
        # torch 2.9 or newer has these settings.
        if all(hasattr(module, "fp32_precision") for module in products):
            on_cuda = _FULL if matmul == "highest" else ("tf32",)
            allowed = [on_cuda, *(_FULL for _ in (*products[1:], *convolutions))]
            modules = zip([*products, *convolutions], allowed, strict=True)
            stack.enter_context(_in_new_settings(matmul, list(modules), len(products)))
        else:
            stack.enter_context(_in_old_setting(matmul))
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
def _in_new_settings(
    matmul: MatmulPrecision, modules: list[tuple[Any, tuple[str, ...]]], num_products: int
) -> Iterator[None]:
    """Give each of ``modules`` one of the values beside it; the first are matrix products."""
    # The old setting follows, for torch raises where both are read and differ (in some versions
    # when it multiplies). Changing it changes the new ones of matrix products.
    changes_old = _old_setting() not in (None, matmul)
    values = [module.fp32_precision for module, _ in modules]
    changed = [
        (module, value)
        for place, ((module, allowed), value) in enumerate(zip(modules, values, strict=True))
        if value not in allowed or (changes_old and place < num_products)
    ]
    try:
        with _in_old_setting(matmul):
            with _settable():
                for module, allowed in modules:
                    if module.fp32_precision not in allowed:
                        module.fp32_precision = allowed[-1]
            yield
    finally:
        with _settable():
            for module, value in changed:
                module.fp32_precision = "none"  # then it is that of the whole backend
                if module.fp32_precision != value:
                    module.fp32_precision = value


@contextmanager
def _in_old_setting(matmul: MatmulPrecision) -> Iterator[None]:
    value = _old_setting()
    if value is None or value == matmul:
        yield
        return
    _set_old(matmul)
    try:
        yield
    finally:
        _set_old(value)


def _old_setting() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the process uses the new settings
        return None


def _set_old(value: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9: the new settings should be used
        torch.set_float32_matmul_precision(value)


def _settable() -> AbstractContextManager[None]:
    """Allow settings to be changed, also after ``torch.backends.disable_global_flags()``.

    The name is private. torch's own context managers, ``torch.backends.cudnn.flags()`` and the
    like, use it for the same purpose.
    """
    make: Any = getattr(torch.backends, "__allow_nonbracketed_mutation", nullcontext)
    result: AbstractContextManager[None] = make()
    return result
