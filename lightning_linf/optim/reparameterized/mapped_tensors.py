"""The tensors of a parameter group that an optimizer steps in other coordinates."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_linf.distributed.gathering import part_of
from lightning_linf.distributed.shards import from_local, is_flattened, is_sharded, local
from lightning_linf.functional.dtypes import working_dtype
from lightning_linf.optim.reparameterized.held_tensors import on_shards_of
from lightning_linf.reparam import BoundReparameterization


class MappedTensors:
    """Tensors ``theta`` of one parameter group, and their coordinates ``phi = A^-1 theta``.

    During a step, the tensors ``phis`` are views of one vector (n,), to which the map applies.
    Between steps they keep their shapes, but have no memory of their own. The phi of a sharded
    theta is sharded alike, and has memory for this rank's part. The vector then joins this rank's
    parts, and ranks compute the products of the map together.

    Attributes:
        whole_map: A, of vectors (d,) that join whole tensors.
        bound: A, of the vectors of this rank.
        inverse: The inverse of ``bound``.
    """

    def __init__(
        self, thetas: list[Tensor], bound: BoundReparameterization, mixes_tensors: bool
    ) -> None:
        self.thetas = thetas
        self.whole_map = bound
        self.bound = on_shards_of(thetas, bound)
        self.inverse = self.bound.inverse()
        self.mixes_tensors = mixes_tensors
        self.vector = self.former_vector = self.inverse.apply_(self.join(thetas))
        self.phis = [
            nn.Parameter(from_local(part.clone(), theta) if is_sharded(theta) else part)
            for part, theta in zip(self.split(self.vector), thetas, strict=True)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of phi: float32, or wider if a theta is."""
        return working_dtype(self.thetas)

    def join(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """Flatten and concatenate this rank's parts of a tensor for each theta; None is zeros.

        Shape: (n,), in memory of its own.
        """
        dtype = self.dtype
        parts = [
            torch.zeros_like(local(theta)) if each is None else part_of(each.detach(), theta)
            for each, theta in zip(tensors, self.thetas, strict=True)
        ]
        return torch.cat([part.reshape(-1).to(dtype) for part in parts])

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector (n,) into views in the shape of this rank's part of each theta."""
        shapes = [local(theta).shape for theta in self.thetas]
        parts = vector.split_with_sizes([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    @property
    def _all_sharded(self) -> bool:
        return all(map(is_sharded, self.thetas))

    def match_weights(self) -> None:
        """Bring phi to the dtype and device of the weights, which may have been cast or moved."""
        for phi, theta in zip(self.phis, self.thetas, strict=True):
            if (phi.dtype, phi.device) == (self.dtype, theta.device):
                continue
            if is_sharded(phi):  # setting phi.data has no effect on a DTensor
                part = torch.zeros_like(local(theta), dtype=self.dtype)
                new = nn.Parameter(from_local(part, theta))
                torch.utils.swap_tensors(phi, new)  # type: ignore[no-untyped-call]  # is torch's
            else:
                phi.data = theta.new_zeros((), dtype=self.dtype).expand(phi.shape)

    def read_weights(self) -> None:
        """Set phi to the coordinates of the weights."""
        self.match_weights()
        self.former_vector = self.inverse.apply_(self.join(self.thetas))
        # Sharded phis have memory of their own, and need no vector.
        self.vector = self.former_vector if self._all_sharded else self.former_vector.clone()
        for phi, part in zip(self.phis, self.split(self.vector), strict=True):
            if is_sharded(phi):
                local(phi).copy_(part)
            else:
                phi.data = part  # phi stays the same object: the inner optimizer's parameter

    def write_weights(self, *, is_last: bool = True) -> None:
        """Add to the weights A times what has been added to phi since they were last equal.

        ``is_last`` says that this will not be asked for again before weights are read.
        """
        if is_last:
            for phi in self.phis:
                phi.grad = None
        if self._all_sharded:
            self.vector = self.join(self.phis)
        else:
            for phi, part in zip(self.phis, self.split(self.vector), strict=True):
                if local(phi).data_ptr() != part.data_ptr():  # or the optimizer has set phi.data
                    part.copy_(local(phi))
        change = torch.sub(self.vector, self.former_vector, out=self.former_vector)
        if is_last:
            self.vector = change
        moves = self.split(self.bound.apply_(change))
        torch._foreach_add_([local(theta) for theta in self.thetas], moves)
        if not is_last:
            self.former_vector.copy_(self.vector)

    def read_gradients(self) -> None:
        """Set the gradient of phi to A^T times that of the weights."""
        gradients = [theta.grad for theta in self.thetas]
        if all(gradient is None for gradient in gradients):
            for phi in self.phis:
                phi.grad = None
            return
        if any(g is not None and g.layout != torch.strided for g in gradients):
            raise RuntimeError(
                "Reparameterized: expected dense gradients, got a sparse one. Use sparse=False in "
                "its embedding, or leave it out of the map with `only`."
            )
        if self.mixes_tensors and not all(theta.requires_grad for theta in self.thetas):
            raise RuntimeError(
                "Reparameterized: expected that every parameter which took part at the start still "
                "requires grad, got a frozen one, which a map that mixes tensors would move. "
                "Freeze it before you make the optimizer, or use a scope such as 'tensor'."
            )
        gradient = self.bound.apply_transpose_(self.join(gradients))
        for phi, grad, part in zip(self.phis, gradients, self.split(gradient), strict=True):
            if grad is None and not self.mixes_tensors:
                phi.grad = None
            else:
                phi.grad = from_local(part, phi)

    def free(self) -> None:
        """Free the memory that only a step needs."""
        empty = self.vector.new_zeros(())
        self.vector = self.former_vector = empty
        for phi in self.phis:
            phi.grad = None
            if not is_sharded(phi):
                phi.data = empty.expand(phi.shape)

    def transposed(
        self, values: Mapping[Tensor, Tensor], bound: BoundReparameterization, squared: bool
    ) -> dict[Tensor, Tensor]:
        """Multiply means of gradients, or of their squares, by the transpose of A or its inverse.

        There may be values for some of the thetas only. Those get products, or if the map mixes
        tensors, all do.
        """
        present = [theta in values for theta in self.thetas]
        if not any(present):
            return {}
        joined = self.join(values.get(theta) for theta in self.thetas)
        product = (bound.apply_transpose_squared if squared else bound.apply_transpose)(joined)
        return {
            theta: from_local(part.clone(), theta)
            for theta, part, is_present in zip(
                self.thetas, self.split(product), present, strict=True
            )
            if is_present or self.mixes_tensors
        }


def check_thetas(tensors: Sequence[Tensor]) -> None:
    """Raise a ValueError if one of the tensors cannot be mapped."""
    if any(isinstance(tensor, UninitializedParameter) for tensor in tensors):
        raise ValueError(
            "Reparameterized: expected initialized parameters, got a lazy one. Run the module once "
            "before you build the optimizer: under Lightning, in `configure_model` or earlier."
        )
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(
            "Reparameterized: expected the parameters of a group on one device, got "
            f"{', '.join(sorted(map(str, devices)))}. Make a group for each device."
        )
    for tensor in tensors:
        if is_flattened(tensor):
            raise ValueError(
                "Reparameterized: expected parameters in their own shapes, got one flattened by "
                "FullyShardedDataParallel. Shard it by fully_shard."
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"Reparameterized: expected real floating parameters, got {tensor.dtype}. Hold "
                "real and imaginary parts as parameters of their own."
            )
