"""The tensors of a parameter group that an optimizer steps in other coordinates."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_linf.distributed.gathering import gather, part_of, shard_like
from lightning_linf.distributed.shards import from_local, is_flattened, is_sharded, local
from lightning_linf.functional.dtypes import working_dtype
from lightning_linf.reparam import BoundReparameterization


class MappedTensors:
    """Tensors ``theta`` of one parameter group, and their coordinates ``phi = A^-1 theta``.

    During a step, the tensors ``phis`` are views of one vector (d,), to which the map applies.
    Between steps they keep their shapes, but have no memory of their own. The phi of a sharded
    theta is sharded alike: it has memory for this rank's part, and the vector, which every rank
    computes as a whole, is gathered from the parts.
    """

    def __init__(
        self, thetas: list[Tensor], bound: BoundReparameterization, mixes_tensors: bool
    ) -> None:
        self.thetas = thetas
        self.bound = bound  # A
        self.inverse = bound.inverse()
        self.mixes_tensors = mixes_tensors
        self.sizes = [theta.numel() for theta in thetas]
        self.vector = self.former_vector = self.inverse.apply_(self.join(thetas))
        self.phis = [
            nn.Parameter(shard_like(part, theta) if is_sharded(theta) else part)
            for part, theta in zip(self.split(self.vector), thetas, strict=True)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of phi: float32, or wider if a theta is."""
        return working_dtype(self.thetas)

    def join(self, tensors: Iterable[Tensor]) -> Tensor:
        """Flatten and concatenate one tensor for each theta: (d,), in memory of its own."""
        dtype = self.dtype
        wholes = gather([tensor.detach() for tensor in tensors])
        return torch.cat([tensor.reshape(-1).to(dtype) for tensor in wholes])

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector (d,) into views in the whole shape of each theta."""
        parts = vector.split_with_sizes(self.sizes)
        return [part.view(theta.shape) for part, theta in zip(parts, self.thetas, strict=True)]

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
        self.vector = self.former_vector.clone()
        for phi, part in zip(self.phis, self.split(self.vector), strict=True):
            if is_sharded(phi):
                local(phi).copy_(part_of(part, phi))
            else:
                phi.data = part  # phi stays the same object: the inner optimizer's parameter

    def write_weights(self, *, is_last: bool = True) -> None:
        """Add to the weights A times what has been added to phi since they were last equal.

        ``is_last`` says that this will not be asked for again before weights are read.
        """
        parts = self.split(self.vector)
        for phi, part, gathered in zip(self.phis, parts, gather(self.phis), strict=True):
            if is_sharded(phi):
                part.copy_(gathered)
            elif phi.data_ptr() != part.data_ptr():  # the inner optimizer has set phi.data
                part.copy_(phi)
        change = torch.sub(self.vector, self.former_vector, out=self.former_vector)
        moves = self.split(self.bound.apply_(change))
        torch._foreach_add_(
            [local(theta) for theta in self.thetas],
            [part_of(move, theta) for move, theta in zip(moves, self.thetas, strict=True)],
        )
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
        gradient = self.bound.apply_transpose_(
            self.join(
                local(theta).new_zeros(theta.shape) if grad is None else grad
                for theta, grad in zip(self.thetas, gradients, strict=True)
            )
        )
        for phi, grad, part in zip(self.phis, gradients, self.split(gradient), strict=True):
            if grad is None and not self.mixes_tensors:
                phi.grad = None
            else:
                phi.grad = shard_like(part, phi) if is_sharded(phi) else part

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
        joined = self.join(values.get(theta, torch.zeros_like(theta)) for theta in self.thetas)
        product = (bound.apply_transpose_squared if squared else bound.apply_transpose)(joined)
        return {
            theta: shard_like(part, theta)
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
