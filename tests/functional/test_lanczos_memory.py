"""Vectors of d numbers that are alive at once in the search for both ends of an operator norm."""

import gc

import pytest
import torch
from support.networks import partition_of

from lightning_linf.functional import lambda_max, operator_norm
from lightning_linf.functional.lambda_max import NUM_KEPT, lanczos
from lightning_linf.functional.norm_search import RANK
from lightning_linf.functional.random import normal

DIM = 50_000
# A clear largest eigenvalue over a slope.
DIAGONAL = torch.cat([torch.linspace(-0.5, 0.7, DIM - 3), torch.tensor([1.5, -1.2, 2.0])])


def vectors_alive():
    """Count the numbers of all tensors, each storage once, in float32 vectors of d."""
    storages = {
        o.untyped_storage().data_ptr(): o.untyped_storage().nbytes()
        for o in gc.get_objects()
        if type(o) is torch.Tensor
    }
    return sum(storages.values()) / (4 * DIM)


def peak_of(search):
    """Largest number of vectors during a product, beyond those before the search."""
    before, peak = vectors_alive(), 0.0

    def hvp(vector):
        nonlocal peak
        peak = max(peak, vectors_alive() - before)
        return DIAGONAL * vector

    search(hvp)
    return peak


@pytest.mark.slow
def test_lambda_max_holds_two_vectors_besides_its_start():
    start = normal(DIM, seed=0)
    assert peak_of(lambda hvp: lambda_max(hvp, start, tol=0.0, max_hvps=20)) < 2.1


@pytest.mark.slow
@pytest.mark.parametrize("max_hvps", [24, 48])
def test_both_ends_of_the_norm_of_one_block_hold_two_vectors_and_half_a_basis(max_hvps):
    blocks, like = partition_of(torch.zeros(DIM, dtype=torch.int64)), normal(DIM, seed=0)
    peak = peak_of(lambda hvp: operator_norm(hvp, like, blocks, max_hvps=max_hvps, tol=0.0))
    assert peak < 2.4 + NUM_KEPT / 2  # 0.3: the small matrices of 48 steps


@pytest.mark.parametrize("max_hvps", [24, pytest.param(48, marks=pytest.mark.slow)])
def test_both_ends_of_the_norm_by_coordinates_hold_six_vectors_and_half_a_basis(max_hvps):
    # The best direction, the scale by block and by entry (which are one where the partition is that
    # of a module), the scaled vector, and the two of the iteration; with several rounds the given
    # shares, the columns of the ascent, and between rounds less of the rest.
    blocks, start = partition_of(torch.arange(DIM)), normal(DIM, seed=0)
    peak = peak_of(lambda hvp: operator_norm(hvp, start, blocks, max_hvps=max_hvps))
    assert peak < (6.1 if max_hvps == 24 else 7.1 + RANK) + NUM_KEPT / 2


def test_halved_basis_turns_eigenvectors_by_its_rounding_and_moves_no_bound():
    products = DIAGONAL[-2_000:].mul
    start = normal(2_000, seed=1)
    plain = lanczos(products, start, max_hvps=24, tol=0.0)
    kept = lanczos(products, start, max_hvps=24, tol=0.0, num_kept=NUM_KEPT)
    assert (plain.value, plain.upper) == (kept.value, kept.upper)
    exact = lanczos(products, start.double(), max_hvps=24, tol=0.0, num_kept=NUM_KEPT)
    one, other = kept.ritz_vector(kept.extreme), exact.ritz_vector(exact.extreme)
    alike = torch.dot(one.double() / one.norm(), other).abs()
    assert float(1 - alike.square()) < (4e-3) ** 2  # bfloat16 keeps 8 bits: 2e-3 to the nearest
