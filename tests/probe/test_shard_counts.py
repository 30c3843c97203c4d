"""What a measurement holds of vectors on each rank falls with the number of ranks."""

from functools import partial

import pytest
import torch
from support.dense_landscape import HereVector, gloo_shards
from support.ranks import in_processes
from support.vector_count import counted_vectors
from torch import nn

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.functional.in_pieces import sum_in_pieces
from lightning_linf.functional.random_vectors import normal_vector
from lightning_linf.functional.vector_shards import sharing_vectors
from lightning_linf.probe.measure import measure_landscape
from lightning_linf.probe.partitions import choose_partitions

WIDTH = 1023  # does not divide by the number of ranks
NUM_PARAMS = 2 * WIDTH * (WIDTH + 1)


class DiagonalLandscape:
    """A quadratic whose product takes no more than the product itself."""

    mode, matmul_precision, reparameterization, probes_per_pass = "eval", "highest", None, 1
    num_hvps, num_batches, num_samples = 0, 1, 1.0

    def __init__(self, module):
        self.parameters = HereVector(module)
        self.ranks = self.batch_ranks = Ranks(None, torch.device("cpu"))

    def first_half(self):
        return None

    def loss(self):
        return 0.5

    def gradient(self, offset=None):
        return normal_vector(NUM_PARAMS, seed=0, like=self.parameters.like)

    def hvp(self, vectors):
        rows = vectors.view(-1, vectors.shape[-1])
        of_entries = torch.linspace(1, 2, rows.shape[-1])
        return torch.stack([of_entries * row for row in rows]).view(vectors.shape)

    def curvatures(self, vectors, visit):
        pairs = zip(vectors, self.hvp(vectors), strict=True)
        along = torch.stack([sum_in_pieces(torch.mul, v, product) for v, product in pairs])
        visit(along, 1.0)
        return along


def peaks(shards):
    """Most whole vectors at once, in all and in each phase."""
    torch.set_num_threads(1)
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    with sharing_vectors(shards):
        landscape = DiagonalLandscape(module)
        partitions = choose_partitions(module, ["row"])
        with counted_vectors(NUM_PARAMS) as count:
            measure_landscape(landscape, partitions, num_probes=4, max_hvps=60)
    return {"in all": count.peak, **count.peaks}


def on_rank(rank, sizes):
    return peaks(gloo_shards(sizes, rank))


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_what_a_rank_holds_of_vectors_falls_as_one_over_their_number(num_ranks, tmp_path):
    sizes = [WIDTH * WIDTH, WIDTH, WIDTH * WIDTH, WIDTH]
    alone = peaks(None)
    of_ranks = in_processes(partial(on_rank, sizes=sizes), tmp_path, num_ranks)
    assert 8 < alone["in all"] < 14, alone
    # Pieces of 65,536 entries, in which sums are taken, do not fall: four of them in float64, and
    # the surrogates' groups, which are as many, of four probes. Heterogeneity counts 2^18 together.
    fixed = dict.fromkeys(alone, 16 * 2**16 / NUM_PARAMS)
    fixed["heterogeneity"] = 8 * 2**18 / NUM_PARAMS
    for rank in of_ranks:
        assert rank.keys() == alone.keys()
        for phase, peak in rank.items():
            most = 1.05 * alone[phase] / num_ranks + fixed[phase]
            assert peak <= most, (phase, peak, alone[phase])
        assert rank["in all"] <= 1.05 * alone["in all"] / num_ranks
