"""The spectral geometry against singular values, brute force and dense Hessians."""

import math

import pytest
import torch
from support.landscapes import indefinite, normal, random_net

from lightning_linf.functional import MatrixSplit, spectral_ascent, spectral_dual, spectral_norm
from lightning_linf.partition import hidden_matrices

SHAPES = [(3, 5), (4,), (5, 3), (2, 2), (2, 3, 2), (4, 4), ()]
ARE_MATRICES = [True, False, True, False, False, True, False]


def split_of(shapes=SHAPES, are_matrices=ARE_MATRICES):
    return MatrixSplit(tuple(torch.Size(shape) for shape in shapes), tuple(are_matrices))


def tensors_of(vector, split):
    parts = vector.split([shape.numel() for shape in split.shapes])
    return [part.reshape(shape) for part, shape in zip(parts, split.shapes, strict=True)]


def by_svd(g, split):
    """Dual norm and maximiser in float64, from full singular value decompositions."""
    total, parts = 0.0, []
    for tensor, is_matrix in zip(tensors_of(g.double(), split), split.are_matrices, strict=True):
        if not is_matrix:
            total += float(tensor.abs().sum())
            parts.append(tensor.sign().reshape(-1))
            continue
        u, sigma, vh = torch.linalg.svd(tensor)
        rank = int((sigma > 1e-12 * sigma[0]).sum())
        root = max(tensor.shape) ** 0.5
        total += root * float(sigma.sum())
        parts.append(root * (u[:, :rank] @ vh[:rank]).reshape(-1))
    return total, torch.cat(parts)


def split_of_net(module):
    matrices = hidden_matrices(module)
    named = dict(module.named_parameters())
    return split_of([p.shape for p in named.values()], [name in matrices for name in named])


def random_directions(split, count):
    """Directions of norm 1 that fill the ball's extreme points: orthogonal factors and signs."""
    return torch.stack([by_svd(normal(split.num_params), split)[1] for _ in range(count)])


def test_norm_and_dual_norm_are_those_of_singular_values():
    split = split_of()
    g = normal(split.num_params)
    total, direction = by_svd(g, split)
    dual = spectral_dual(g, split)
    torch.testing.assert_close(float(dual.norm), total, rtol=1e-13, atol=0)
    torch.testing.assert_close(dual.direction, direction)
    norms = [
        float(torch.linalg.svdvals(t)[0]) / max(t.shape) ** 0.5
        if is_matrix
        else float(t.abs().max())
        for t, is_matrix in zip(tensors_of(g, split), split.are_matrices, strict=True)
    ]
    torch.testing.assert_close(float(spectral_norm(g, split)), max(norms), rtol=1e-13, atol=0)


def test_the_direction_has_norm_one_and_reaches_the_dual_norm_which_nothing_exceeds():
    split = split_of()
    g = normal(split.num_params)
    dual = spectral_dual(g, split)
    torch.testing.assert_close(float(spectral_norm(dual.direction, split)), 1.0)
    torch.testing.assert_close(torch.dot(g, dual.direction), dual.norm)
    for _ in range(200):
        v = normal(split.num_params)
        assert torch.dot(g, v / spectral_norm(v, split)) < dual.norm


def test_a_step_of_full_rank_is_as_long_as_one_of_signs():
    split = split_of()
    direction = spectral_dual(normal(split.num_params), split).direction
    torch.testing.assert_close(float(direction.square().sum()), float(split.num_params))


def test_rotations_of_rows_and_columns_turn_the_direction_alike():
    split = split_of([(3, 5)], [True])
    g = normal(3, 5)
    left, right = (torch.linalg.qr(normal(n, n)).Q for n in (3, 5))
    plain, turned = (spectral_dual(each.reshape(-1), split) for each in (g, left @ g @ right))
    torch.testing.assert_close(turned.norm, plain.norm)
    expected = left @ plain.direction.view(3, 5) @ right
    torch.testing.assert_close(turned.direction.view(3, 5), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_singular_values_that_are_rounding_have_no_direction(dtype):
    split = split_of([(40, 30)], [True])
    factors = torch.randint(-3, 4, (40, 2)), torch.randint(-3, 4, (2, 30))
    g = (factors[0] @ factors[1]).to(dtype).reshape(-1)  # whole numbers: of rank 2 in any dtype
    dual = spectral_dual(g, split)
    total, direction = by_svd(g, split)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {}
    torch.testing.assert_close(float(dual.norm), total, rtol=1e-6, atol=0)
    expected = direction.to(dual.direction.dtype)
    torch.testing.assert_close(dual.direction, expected, **tolerance)
    assert dual.direction.dtype == torch.promote_types(dtype, torch.float32)
    sigma = torch.linalg.svdvals(dual.direction.view(40, 30)) / 40**0.5
    torch.testing.assert_close(sigma.round(decimals=4).unique().tolist(), [0.0, 1.0])


def test_zero_matrices_and_tensors_without_entries_add_nothing():
    split = split_of([(2, 3), (0, 4), (3,)], [True, True, False])
    zeros = torch.zeros(split.num_params)
    assert spectral_norm(zeros, split) == spectral_dual(zeros, split).norm == 0.0
    assert not spectral_dual(zeros, split).direction.any()
    g = torch.cat([zeros[:6], torch.tensor([1.0, 0.0, -2.0])])
    assert spectral_dual(g, split).norm == 3.0
    assert torch.equal(spectral_dual(g, split).direction, g.sign())


def test_strided_vectors_and_those_with_a_graph_are_taken():
    split = split_of()
    g = normal(split.num_params, 2).requires_grad_()
    expected = spectral_dual(g[:, 0].detach().clone(), split)
    dual = spectral_dual(g[:, 0], split)
    assert torch.equal(dual.direction, expected.direction)
    assert dual.norm == expected.norm
    assert not dual.norm.requires_grad


def test_huge_and_tiny_gradients_have_finite_norms():
    split = split_of()
    g = torch.randn(split.num_params)
    for scale in (1e-30, 1e30):
        dual = spectral_dual(g * scale, split)
        torch.testing.assert_close(float(dual.norm) / scale, by_svd(g, split)[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(dual.direction.double(), by_svd(g, split)[1], rtol=0, atol=1e-4)


def test_the_ascent_never_falls_and_ends_below_the_maximum_of_a_2_by_2_matrix():
    split = split_of([(2, 2)], [True])
    angles = torch.linspace(0, 2 * math.pi, 2000, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    turns = torch.stack([cos, -sin, sin, cos], dim=1)
    flips = torch.stack([cos, sin, sin, -cos], dim=1)
    extreme = 2**0.5 * torch.cat([turns, flips])  # all orthogonal matrices, to 0.003
    shares = []
    for _ in range(20):
        hessian = indefinite(4)
        products = extreme @ hessian
        # The dual norm of a 2 x 2 matrix: sigma_1 + sigma_2 = sqrt(|G|^2 + 2 |det G|).
        a, b, c, d = products.T
        duals = (2 * (products.square().sum(dim=1) + 2 * (a * d - b * c).abs())).sqrt()
        some = torch.stack([spectral_dual(v, split).norm for v in products[::400]])
        torch.testing.assert_close(some, duals[::400])
        start = normal(4)
        lowers = [spectral_ascent(hessian.mv, start, split, max_hvps=k).lower for k in range(1, 12)]
        assert lowers == sorted(lowers)
        assert lowers[-1] <= duals.max() * (1 + 1e-5)  # of the grid
        shares.append(lowers[-1] / float(duals.max()))
    assert sum(share > 0.999 for share in shares) >= 10
    assert min(shares) > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_the_lower_end_of_a_network_is_one_that_restarts_reach(seed):
    module, _, _, gradient, hessian = random_net(seed)
    split = split_of_net(module)
    assert sum(split.are_matrices) == 2
    best = 0.0
    for v in random_directions(split, 20):
        for _ in range(40):
            total, v = by_svd(hessian @ v, split)
        best = max(best, total)
    ascent = spectral_ascent(hessian.mv, gradient, split, max_hvps=40)
    assert 0.7 * best < ascent.lower <= best * (1 + 1e-3)  # what the restarts may miss
    assert ascent.increase <= 1e-3
    one = spectral_ascent(hessian.mv, gradient, split, max_hvps=1)
    product = hessian @ spectral_dual(gradient, split).direction
    torch.testing.assert_close(one.lower, by_svd(product, split)[0])
    assert one.increase == math.inf
    assert one.num_hvps == 1


def test_a_zero_hessian_ends_at_once():
    split = split_of()
    ascent = spectral_ascent(lambda v: torch.zeros_like(v), normal(split.num_params), split)
    assert (ascent.lower, ascent.increase, ascent.num_hvps) == (0.0, 0.0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_of([(2, 3, 4)], [True]), r"MatrixSplit: .* two dimensions, got .*\(2, 3, 4"),
        (lambda: spectral_norm(normal(3), split_of()), r"spectral_norm: .*\(67,\), got \(3,\)"),
        (lambda: spectral_dual(normal(3), split_of()), r"spectral_dual: .*\(67,\), got \(3,\)"),
        (
            lambda: spectral_dual(normal(67) / torch.zeros(67), split_of()),
            "spectral_dual: expected finite entries, got inf or NaN",
        ),
        (
            lambda: spectral_ascent(lambda v: v, normal(67), split_of(), max_hvps=0),
            "spectral_ascent: expected `max_hvps` >= 1, got 0",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
