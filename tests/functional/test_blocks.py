"""Norm and dual norm of a partition against their definitions, block by block."""

import math

import pytest
import torch

from lightning_linf.functional import LabelledBlocks, block_norm, dual_block_norm, dual_direction

ROUNDING = {"rtol": 1e-12, "atol": 0.0}  # of float64
FLOAT32 = {"rtol": 1e-6, "atol": 0.0}


def labelled(labels):
    return LabelledBlocks(torch.as_tensor(labels))


def blocks_of(num_params, num_blocks):
    """Every block has an entry; their order is random."""
    labels = torch.cat([torch.arange(num_blocks), torch.randint(num_blocks, (num_params,))])
    return LabelledBlocks(labels[:num_params][torch.randperm(num_params)])


def norms_by_definition(x, blocks):
    """Shapes: (B,) norms and (B,) sizes."""
    parts = [x[blocks.labels == b] for b in range(blocks.num_blocks)]
    sizes = torch.tensor([len(part) for part in parts], dtype=x.dtype)
    return torch.stack([torch.linalg.vector_norm(part) for part in parts]), sizes


@pytest.mark.parametrize("num_blocks", [1, 2, 5, 29, 30])
def test_norms_are_those_of_the_definition(num_blocks):
    blocks, x = blocks_of(30, num_blocks), torch.randn(30, dtype=torch.float64)
    norms, sizes = norms_by_definition(x, blocks)
    torch.testing.assert_close(block_norm(x, blocks), (norms / sizes.sqrt()).max(), **ROUNDING)
    torch.testing.assert_close(dual_block_norm(x, blocks), (norms * sizes.sqrt()).sum(), **ROUNDING)


def test_ends_are_the_infinity_norm_and_the_2_norm():
    x = torch.randn(20)
    coordinate, whole = LabelledBlocks(torch.randperm(20)), labelled([0] * 20)
    assert block_norm(x, coordinate) == x.abs().max()
    torch.testing.assert_close(dual_block_norm(x, coordinate), x.abs().sum())
    assert torch.equal(dual_direction(x, coordinate), x.sign())
    torch.testing.assert_close(block_norm(x, whole), x.norm() / 20**0.5)
    torch.testing.assert_close(dual_block_norm(x, whole), x.norm() * 20**0.5)
    torch.testing.assert_close(dual_direction(x, whole), x * 20**0.5 / x.norm())


@pytest.mark.parametrize("num_blocks", [1, 2, 5, 29, 30])
def test_direction_has_norm_1_and_attains_the_dual_norm(num_blocks):
    blocks, g = blocks_of(30, num_blocks), torch.randn(30, dtype=torch.float64)
    direction = dual_direction(g, blocks)
    torch.testing.assert_close(block_norm(direction, blocks), torch.ones_like(g[0]), **ROUNDING)
    torch.testing.assert_close(direction @ g, dual_block_norm(g, blocks), **ROUNDING)
    for _ in range(100):  # no other direction does better
        other = torch.randn(30, dtype=torch.float64)
        assert other @ g / block_norm(other, blocks) < dual_block_norm(g, blocks)


def test_zero_blocks_have_no_direction():
    blocks, g = labelled([0, 0, 1, 1]), torch.tensor([3.0, 4.0, 0.0, 0.0])
    direction = dual_direction(g, blocks)
    torch.testing.assert_close(direction, 2**0.5 * torch.tensor([0.6, 0.8, 0.0, 0.0]), **FLOAT32)
    zero = torch.zeros(4)
    assert block_norm(zero, blocks) == dual_block_norm(zero, blocks) == 0.0
    assert torch.equal(dual_direction(zero, blocks), zero)


@pytest.mark.parametrize("num_blocks", [1, 2, 4])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 1e38])
def test_squares_neither_overflow_nor_underflow(num_blocks, scale):
    blocks, x = labelled([i % num_blocks for i in range(4)]), torch.tensor([1.0, 0.5, -0.3, 0.2])
    torch.testing.assert_close(
        block_norm(scale * x, blocks).double() / scale, block_norm(x.double(), blocks), **FLOAT32
    )
    if scale < 1e38:  # the dual norm itself is beyond float32
        torch.testing.assert_close(
            dual_block_norm(scale * x, blocks).double() / scale,
            dual_block_norm(x.double(), blocks),
            **FLOAT32,
        )
    torch.testing.assert_close(
        dual_direction(scale * x, blocks), dual_direction(x, blocks), **FLOAT32
    )


def test_float64_beyond_the_range_of_its_squares():
    blocks, x = labelled([0, 0, 1]), torch.tensor([3.0, 4.0, 1.0], dtype=torch.float64)
    for scale in (1e-200, 1e200):
        expected = scale * dual_block_norm(x, blocks)
        torch.testing.assert_close(dual_block_norm(scale * x, blocks), expected, **ROUNDING)


def test_quiet_blocks_keep_their_direction_beside_loud_ones():
    g = torch.tensor([1e30, 0.0, 3e-30, 4e-30])
    expected = 2**0.5 * torch.tensor([1.0, 0.0, 0.6, 0.8])
    torch.testing.assert_close(dual_direction(g, labelled([0, 0, 1, 1])), expected, **FLOAT32)


def test_scaling_is_followed_exactly():
    blocks, x = blocks_of(30, 7), torch.randn(30)
    for function in (block_norm, dual_block_norm):
        assert function(-8 * x, blocks) == 8 * function(x, blocks)
    assert torch.equal(dual_direction(-8 * x, blocks), -dual_direction(x, blocks))


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 1, 2]])
def test_nonfinite_entries_show(value, labels):
    x = torch.tensor([1.0, value, 2.0])
    for function in (block_norm, dual_block_norm):
        result = float(function(x, labelled(labels)))
        assert result == value or (math.isnan(result) and math.isnan(value))


@pytest.mark.parametrize("function", [block_norm, dual_block_norm, dual_direction])
def test_results_are_float32_or_wider(function):
    for labels in ([0, 0, 1], [0, 1, 2]):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            x = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
            assert function(x, labelled(labels)).dtype == torch.float32
        assert function(x.double(), labelled(labels)).dtype == torch.float64


@pytest.mark.parametrize("labels", [[0, 0, 2], [1, 1, 2], [-1, 0, 1]])
def test_labels_that_leave_out_a_number_are_refused(labels):
    with pytest.raises(ValueError, match=r"expected `labels` with every number from 0 to B - 1"):
        labelled(labels)


@pytest.mark.parametrize(
    ("function", "argument"), [(block_norm, "x"), (dual_block_norm, "g"), (dual_direction, "g")]
)
def test_vectors_of_another_length_are_refused(function, argument):
    message = f"{function.__name__}: expected `{argument}` of shape \\(3,\\), got \\(2, 3\\)"
    with pytest.raises(ValueError, match=message):
        function(torch.ones(2, 3), labelled([0, 0, 1]))
