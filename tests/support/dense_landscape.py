"""A landscape of dense quadratics that all ranks know, with vectors that are whole or shards."""

import torch
import torch.distributed as dist

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.functional.in_pieces import sum_in_pieces
from lightning_linf.functional.vector_shards import (
    VectorShards,
    num_here,
    shards_of,
    shards_of_vectors,
    whole_vectors,
)
from lightning_linf.probe.parameters import ParameterVector


def gloo_shards(sizes, rank):
    """Divide vectors among all gloo ranks."""

    def sum_over_ranks(values):
        dist.all_reduce(values)
        return values

    def max_over_ranks(values):
        is_nan = values.isnan()
        both = torch.stack([values.masked_fill(is_nan, -torch.inf), is_nan.to(values.dtype)])
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return both[0].masked_fill(both[1] > 0, torch.nan)

    return VectorShards(sizes, rank, dist.get_world_size(), sum_over_ranks, max_over_ranks)


class HereVector(ParameterVector):
    """Parameters whose vectors are shards where vectors are shared."""

    def zeros(self, *leading):
        return self.like.new_zeros(*leading, num_here(self.num_params))


class DenseLandscape:
    """The mean over m batches of g_k^T theta + theta^T H_k theta / 2, at the origin.

    Where vectors are shards every rank is told of all batches.

    Args:
        module: What the parameters are.
        hessians: Of the batches. Shape (m, d, d).
        gradients: Of the batches. Shape (m, d).
        weights: Of the batches.
    """

    mode, matmul_precision, reparameterization, probes_per_pass = "eval", "highest", None, 1

    def __init__(self, module, hessians, gradients, weights):
        self.parameters = HereVector(module)
        self.hessians, self.gradients, self.weights = hessians, gradients, weights
        shards = shards_of_vectors()
        reduce = None if shards is None else shards.sum_over_ranks
        self.ranks = Ranks(reduce, torch.device("cpu"))
        self.batch_ranks = Ranks(None, torch.device("cpu"))
        self.num_hvps, self.num_batches, self.num_samples = 0, len(weights), float(sum(weights))
        self.whole_hessian = self._mean(hessians)

    def _mean(self, values, chosen=None):
        weights = torch.tensor(self.weights, dtype=values.dtype)
        weights = weights if chosen is None else weights * chosen
        return torch.tensordot(weights / weights.sum(), values, dims=1)

    def loss(self):
        return 0.5

    def gradient(self, offset=None):
        gradient = self._mean(self.gradients)
        if offset is not None:
            gradient = gradient + self.whole_hessian @ whole_vectors(offset)
        return shards_of(gradient).clone()

    def each_gradient(self, visit):
        for gradient, weight in zip(self.gradients, self.weights, strict=True):
            visit(shards_of(gradient).clone(), weight)

    def hvp(self, vectors):
        self.num_hvps += 1 if vectors.ndim == 1 else len(vectors)
        return shards_of(whole_vectors(vectors) @ self.whole_hessian)

    def curvatures(self, vectors, visit):
        whole = whole_vectors(vectors)
        for hessian, weight in zip(self.hessians, self.weights, strict=True):
            visit((whole @ hessian * whole).sum(dim=1), weight)
        pairs = zip(vectors, self.hvp(vectors), strict=True)
        return torch.stack([sum_in_pieces(torch.mul, v, product) for v, product in pairs])

    def _halves(self):
        return (torch.arange(len(self.weights)) % 2 == half for half in (0, 1))

    def first_half(self):
        return sum(self.weights[::2]) / sum(self.weights)

    def hvp_of_halves(self, vectors, first_half):
        self.num_hvps += len(vectors)
        whole = whole_vectors(vectors)
        return torch.stack(
            [shards_of(whole @ self._mean(self.hessians, chosen)) for chosen in self._halves()]
        )
