"""A seed draws the same map in every version, for saved optimizer states are in its coordinates.

A state names its map by ``repr``. If one of these tests has to change, so must that, as by a new
argument: then states under the former map are refused, and not read in other coordinates.
"""

import pytest
import torch

from lightning_linf.reparam import Permutation, Rotation

LARGE = 70_000  # beyond 65,536 entries, permutations are drawn in parts


@pytest.mark.parametrize(
    ("reparameterization", "sizes", "start"),
    [
        (Permutation(seed=0), [10], [2, 8, 9, 3, 4, 5, 7, 6, 0, 1]),
        (Permutation("tensor", seed=0), [6, 4], [0, 2, 5, 4, 3, 1, 8, 6, 7, 9]),
        (Permutation(seed=0), [LARGE], [35683, 66956, 68426, 37236, 16534, 34472, 35745]),
    ],
    ids=["global", "tensor", "large"],
)
def test_a_seed_draws_the_permutation_that_it_always_drew(reparameterization, sizes, start):
    bound = reparameterization.bind([torch.Size([size]) for size in sizes])
    images = bound.apply(torch.arange(float(sum(sizes))))
    assert images[: len(start)].tolist() == start


@pytest.mark.parametrize(
    ("reparameterization", "shape", "start"),
    [
        (Rotation(seed=0), [5], [0.3125, 0.5625, 0.625, 0.4375, 0.0625]),
        (
            Rotation(seed=0),
            [LARGE],
            [-0.001953221858, -0.005387045443, 0.004086337984, 0.000657580793],
        ),
        (Rotation("row", seed=0), [2, 3], [0.957106781187, 0.146446609407, -0.25, 0.0, 0.0, 0.0]),
    ],
    ids=["global", "large", "row"],
)
def test_a_seed_draws_the_rotation_that_it_always_drew(reparameterization, shape, start):
    bound = reparameterization.bind([torch.Size(shape)])
    first = torch.zeros(bound.num_params, dtype=torch.float64)
    first[0] = 1
    column, known = bound.apply(first)[: len(start)], torch.tensor(start, dtype=torch.float64)
    torch.testing.assert_close(column, known, rtol=0, atol=1e-12)  # so many digits are noted


@pytest.mark.parametrize(
    ("reparameterization", "text"),
    [
        (Permutation(seed=3), "Permutation(scope='global', seed=3, only=None)"),
        (Rotation("row", seed=3), "Rotation(scope='row', seed=3, strength=1.0, only=None)"),
    ],
)
def test_a_saved_state_names_its_map_by_all_that_draws_it(reparameterization, text):
    assert repr(reparameterization) == text
