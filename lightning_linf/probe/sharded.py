"""The landscape of a module whose parameters are sharded over ranks."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lightning_linf.functional.shards import is_sharded, local_part, part_like, whole_tensor
from lightning_linf.probe.errors import ProbeError
from lightning_linf.probe.kernels import eager_in_full_precision
from lightning_linf.probe.landscape import Landscape
from lightning_linf.probe.parameters import ParameterVector

# With steps h of this times ||theta|| times the cube root of the rounding unit, rounding and the
# third derivative have about equal parts in the error of a central difference.
_STEP = 0.3


class ShardedParameters(ParameterVector):
    """The trainable parameters of a module as one vector, of whose entries each rank has some.

    Vectors (d,) are whole, the same on every rank; the module gets its shards of them.

    Args:
        module: Whose parameters.
        only: As for :class:`ParameterVector`.

    Raises:
        ProbeError: As :class:`ParameterVector`, and if a tensor of the module is narrower than
            float32.
    """

    def __init__(self, module: nn.Module, only: Collection[nn.Parameter] | None = None) -> None:
        _reshard(module)
        super().__init__(module, only)
        if self.widen:
            raise ProbeError(
                "probe: expected sharded parameters in float32 or wider, whose gradients can be "
                "subtracted, got narrower ones. Use Trainer(precision='bf16-mixed'), which keeps "
                "the weights in float32, or freeze nothing narrower."
            )
        self._start = [local_part(p.detach()).clone() for p in self.originals]

    def substitute(
        self, slots: Iterable[tuple[Any, Any, Tensor]], offset: Tensor | None = None
    ) -> list[Tensor]:
        """Move the parameters, where they are, by ``offset`` (d,); put copies of buffers."""
        copies: dict[int, Tensor] = {}
        for container, key, tensor in slots:
            if not isinstance(tensor, nn.Parameter):
                container[key] = copies.setdefault(id(tensor), tensor.detach().clone())
        parts = [None] * len(self._start) if offset is None else self.unflatten(offset)
        with torch.no_grad():
            for p, start, part in zip(self.originals, self._start, parts, strict=True):
                local_part(p).copy_(start)
                if part is not None:
                    local_part(p).add_(part_like(part, p))
        return list(self.originals)

    def square_norm(self) -> float:
        """Squared 2-norm of the parameters."""
        return float(sum(whole_tensor(p.detach()).double().square().sum() for p in self.originals))


class ShardedLandscape(Landscape):
    """The loss of a module sharded by ``fully_shard``, as a function of its parameters.

    As :class:`Landscape`, with these differences. Gradients come from ``backward`` through the
    module's own collectives, at parameters that are moved in place and put back to the last bit.
    Hessian-vector products are central differences of them,

        H v = (g(theta + h v) - g(theta - h v)) / 2h  with  h ||v|| = 0.3 ||theta|| eps^(1/3),

    2 gradients each, in float32 exact to about 3e-4 of their norm; ``hvp_relative_error`` says how
    much. Every kernel will do, also those without a second derivative. Compiled modules run
    eagerly, and without autocast.

    Vectors (d,) are whole on every rank, so a rank needs memory for a handful of them. A rank that
    fails between the module's collectives leaves the others waiting, as it would in training;
    failures elsewhere, also a loss that is not finite, are failures of all.

    Args:
        module: As for :class:`Landscape`.
        batches: As many on every rank.
        reduce: Sums a tensor over all ranks and returns it; None if there is one.
        num_replicas: Over how many ranks the data are split; the others, of tensor parallelism,
            have the same batches. Default: all.
        replica: Which of them has this rank's data. Default: the rank.
        options: ``loss``, ``mode``, ``seed``, ``parameters``, ``batch_indices`` and
            ``reparameterization`` of :class:`Landscape`.

    Raises:
        ProbeError: As :class:`Landscape`; if ranks have different numbers of batches; and for
            parameters narrower than float32 or a policy that computes in less.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        *,
        reduce: Callable[[Tensor], Tensor] | None,
        num_replicas: int | None = None,
        replica: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(module, batches, reduce=reduce, **options)
        distributed = torch.distributed
        self._num_ranks = distributed.get_world_size()
        self._num_replicas = num_replicas or self._num_ranks
        self._replica = distributed.get_rank() if replica is None else replica
        self._shares: list[float] = []
        self._parameter_norm = 0.0

    @property
    def probes_per_pass(self) -> int:
        """How many products are formed together."""
        return 1

    def loss(self, offset: Tensor | None = None) -> float:
        """Mean loss over the batches, ``offset`` (d,) away from the present point."""
        if offset is None and self._loss is not None:
            return self._loss
        self._share_weights()
        value = sum(
            share * self._loss_together(index, offset).item()
            for index, share in enumerate(self._shares)
        )
        total = self.ranks.sum(torch.tensor(value, dtype=torch.float64)).item()
        return total / self._num_ranks

    def gradient(self, offset: Tensor | None = None) -> Tensor:
        """Gradient of the mean loss (d,), ``offset`` (d,) away from the present point."""
        self._share_weights()
        gradient, loss = self._mean_gradient(offset, self._shares)
        if offset is None:
            self._loss = loss
        return gradient

    def each_gradient(self, visit: Callable[[Tensor, float], object]) -> None:
        """Call ``visit`` with the gradient (d,) and the weight of each batch of this rank.

        Costs a gradient for each batch of every replica, because only means over ranks are known.
        Of ranks that share batches (tensor parallelism) one visits them.
        """
        replicas = torch.zeros(self._num_ranks, device=self.parameters.device)
        replicas[torch.distributed.get_rank()] = self._replica
        first = self.ranks.sum(replicas).tolist().index(self._replica)
        is_first = first == torch.distributed.get_rank()
        weights = [self._weight(index) for index in range(self.num_batches)]
        for replica in range(self._num_replicas):
            is_own = replica == self._replica
            for index in range(self.num_batches):
                shares = [0.0] * self.num_batches
                shares[index] = float(self._num_replicas) if is_own else 0.0
                gradient, _ = self._mean_gradient(None, shares, only=index)
                if is_own and is_first:
                    self.ranks.together(partial(visit, gradient, weights[index]))
                else:
                    self.ranks.together(lambda: None)

    def hvp(self, vectors: Tensor) -> Tensor:
        """Multiply the Hessian of the mean loss with one vector (d,) or with several (c, d).

        Cost: 2 gradients each, and 2 once to state the error.
        """
        rows = self._rows(vectors)
        if not self._parameter_norm:
            self._parameter_norm = math.sqrt(self._vector.square_norm()) or 1.0
        products = []
        for row in rows:
            product = self._difference(row, 1.0)
            if self.hvp_relative_error is None and product.any():
                change = torch.linalg.vector_norm(product - self._difference(row, 0.5))
                self.hvp_relative_error = float(change / torch.linalg.vector_norm(product))
            products.append(product)
        self.num_hvps += len(rows)
        return torch.stack(products).reshape(vectors.shape)

    @property
    def _vector(self) -> ShardedParameters:
        assert isinstance(self.parameters, ShardedParameters)
        return self.parameters

    def _make_vector(self) -> ParameterVector:
        return ShardedParameters(self.module, self._chosen)

    def _open(self, stack: ExitStack) -> None:
        _refuse_narrow_policies(self.module)
        vector = self._vector
        self._shares, self._parameter_norm, self.hvp_relative_error = [], 0.0, None
        gradients = {p: p.grad for p in self.module.parameters()}

        def put_back() -> None:
            _reshard(self.module)
            vector.substitute([])
            for p, gradient in gradients.items():
                p.grad = gradient

        stack.callback(put_back)
        stack.enter_context(eager_in_full_precision(vector.device))

    def _evaluate(self, index: int, offset: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        _reshard(self.module)
        return super()._evaluate(index, offset)

    def _share_weights(self) -> None:
        """Find what factors on the losses make the mean over ranks the weighted mean."""
        if self._shares:
            return
        weights = self.ranks.together(lambda: [self._weight(i) for i in range(self.num_batches)])
        total, count = self.ranks.agree(None, sum(weights), float(self.num_batches))
        self.ranks.together(lambda: self._require_alike(count))
        self._shares = [weight * self._num_ranks / total for weight in weights]

    def _require_alike(self, count: float) -> None:
        if count != self.num_batches * self._num_ranks:
            raise ProbeError(
                f"probe: expected as many batches on every rank, got {self.num_batches} here and "
                f"{count:.0f} on all {self._num_ranks} ranks."
            )

    def _mean_gradient(
        self, offset: Tensor | None, shares: Sequence[float], *, only: int | None = None
    ) -> tuple[Tensor, float]:
        """Mean over ranks of the gradient and value of the sum of shares times losses."""
        for p in self.module.parameters():
            p.grad = None
        value = 0.0
        for index, share in enumerate(shares):
            if only in (None, index):
                loss = self._loss_together(index, offset)
                (loss * share).backward()  # type: ignore[no-untyped-call]
                value += share * loss.item()
        gradient = self.parameters.flatten([self._gathered(p) for p in self.parameters.originals])
        if self._map is not None:
            gradient = self._map.apply_transpose(gradient)
        total = self.ranks.sum(torch.tensor(value, dtype=torch.float64, device=gradient.device))
        return gradient, total.item() / self._num_ranks

    def _loss_together(self, index: int, offset: Tensor | None) -> Tensor:
        """Loss of one batch with its graph, once all ranks have one."""
        return self.ranks.together(lambda: self._evaluate(index, offset)[1])

    def _gathered(self, p: nn.Parameter) -> Tensor:
        """Gradient of a whole parameter, averaged over ranks."""
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        if is_sharded(p):
            return whole_tensor(gradient.detach())
        return self.ranks.sum(gradient.detach().clone()) / self._num_ranks

    def _difference(self, vector: Tensor, fraction: float) -> Tensor:
        """Central difference of the gradient along a vector, with a fraction of the usual step."""
        in_theta = vector if self._map is None else self._map.apply(vector)
        length = float(torch.linalg.vector_norm(in_theta, dtype=torch.float64))
        if length == 0.0:
            return torch.zeros_like(vector)
        eps = torch.finfo(self.parameters.dtype).eps
        step = fraction * _STEP * self._parameter_norm * eps ** (1 / 3) / length
        forward, backward = self.gradient(step * vector), self.gradient(-step * vector)
        return forward.sub_(backward).div_(2 * step)


def _reshard(module: nn.Module) -> None:
    """Put shards where parameters are whole: after a failure, or a forward pass alone."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _refuse_narrow_policies(module: nn.Module) -> None:
    """Raise a ProbeError if FSDP casts parameters to less than float32 to compute with them."""
    for name, part in module.named_modules():
        if not isinstance(part, FSDPModule):
            continue
        policy = part._get_fsdp_state()._mp_policy  # there is no public way to read it
        dtype = policy.param_dtype
        if dtype is not None and dtype.itemsize < 4:
            raise ProbeError(
                f"probe: expected gradients in float32 or wider, got {dtype} by the "
                f"MixedPrecisionPolicy of {name or type(module).__name__}: their differences would "
                "be noise. Use Trainer(precision='bf16-mixed') instead of a policy."
            )
