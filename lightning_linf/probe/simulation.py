"""The memory of a gradient's graph and of a product with it, counted without any of it."""

import logging
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch._functorch import config  # as torch's own compiler sets it
from torch._subclasses.fake_tensor import FakeTensorMode  # torch documents it under this name
from torch.utils._python_dispatch import TorchDispatchMode  # as above
from torch.utils._pytree import tree_leaves

from lightning_linf.errors import ProbeError, RestoreError
from lightning_linf.probe.autograd_graph import GradientRoots, gradients_of
from lightning_linf.probe.batch_copy import tensors_of
from lightning_linf.probe.early_sums import add_up_early
from lightning_linf.probe.functional_module import FunctionalModule

_log = logging.getLogger("torch._subclasses.fake_tensor")


class GraphMemory(NamedTuple):
    """Bytes on the device, with the copy of parameters and buffers that a probe runs on."""

    forward: int  # at most while the loss is evaluated
    build: int  # at most while the graph of the gradient is built, with the gradient
    held: int  # by the graph, as long as products with it follow
    product: int  # at most beside it during a product, without the vector and its product


def largest_graph(function: FunctionalModule) -> GraphMemory:
    """Count the memory of the batch that takes most, trying one of each shape.

    Raises:
        ProbeError: As :func:`graph_memory`.
    """
    shapes = (tuple(t.shape for t in tensors_of(batch)) for batch in function.batches)
    indices = {shape: index for index, shape in enumerate(shapes)}
    # Trainer(detect_anomaly=True) would look for NaN among values that are not there.
    with torch.autograd.set_detect_anomaly(False):
        graphs = [graph_memory(function, index) for index in indices.values()]
    return max(graphs, key=lambda graph: graph.held + graph.product)


def graph_memory(function: FunctionalModule, index: int) -> GraphMemory:
    """Run gradient and product of the batch ``index`` on tensors that have shapes alone.

    Storages are counted, as each operation returns them: a fused kernel's own workspace is not, nor
    what the allocator loses by rounding. Nothing is computed, so this costs Python's time alone.

    Args:
        function: Entered.
        index: Number of the batch.

    Raises:
        ProbeError: If the module needs values to run: ``.item()``, a Python ``if`` on a tensor.
    """
    shapes, sharded = ShapesAlone(function.parameters.device), function.sharded
    try:
        parameters, loss = function.evaluate(index, under=shapes)
        with shapes:
            shapes.alive += function.kept_bytes
            forward = shapes.peak + function.kept_bytes
            gradients = gradients_of(loss, parameters)
            roots, build = GradientRoots(gradients), shapes.peak
            if sharded is not None:
                add_up_early(gradients, sharded.wholes)
            del gradients, loss
            held = shapes.alive
            vectors, sums = ([torch.empty_like(p) for p in parameters] for _ in range(2))
            shapes.peak = before = shapes.alive
            with nullcontext() if sharded is None else sharded.adding_to(sums):
                roots.add_products(parameters, vectors, sums, 1.0, retain_graph=True)
            return GraphMemory(forward, build, held, shapes.peak - before)
    except RestoreError:
        raise
    except Exception as error:
        raise ProbeError(
            "probe_memory: expected a loss that can be followed without its values, got "
            f"{type(error).__name__}: {error} Give a probe_loss(batch) without .item() and without "
            "decisions on values, or measure and see."
        ) from error
    finally:
        function.free_copies()


class ShapesAlone(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, as those below
    """Let operations inside give tensors without values, and count the bytes they would have.

    It can be entered again, and then goes on counting.

    Args:
        device: The device whose memory is counted.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._device_type = device.type
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        # A kernel that is given the address of such a tensor must fail here, not on the device.
        with config.patch(fake_tensor_allow_unsafe_data_ptr_access=False):
            self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self) -> Self:
        self._fake.__enter__()
        # It tells of what is raised anyway, with long tracebacks.
        self._was_disabled, _log.disabled = _log.disabled, True
        super().__enter__()  # type: ignore[no-untyped-call]  # outside of the other, so asked first
        return self

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)  # type: ignore[no-untyped-call]
        _log.disabled = self._was_disabled
        self._fake.__exit__(*exc_info)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == self._device_type:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._storages:
            return
        self._storages.add(storage)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, storage.nbytes()).atexit = False

    def _free(self, num_bytes: int) -> None:
        self.alive -= num_bytes
