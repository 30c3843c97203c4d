"""The largest absolute eigenvalue against dense eigenvalues."""

from itertools import pairwise

import pytest
import torch

from lightning_linf.functional import lambda_max
from lightning_linf.functional.lambda_max import lanczos

ROUNDING = 1e-10  # of float64 Lanczos on matrices of a few hundred rows


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def with_spectrum(eigenvalues):
    basis = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues))).Q
    matrix = (basis * torch.as_tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    return (matrix + matrix.T) / 2


def hessian_like(dim):
    """A few large eigenvalues of both signs over a bulk near zero."""
    return with_spectrum([*(0.02 * normal(dim - 4)).tolist(), 5.0, 4.8, 2.0, -1.5])


# Each is made inside the test, after seeding.
OPERATORS = {
    "indefinite bulk": lambda: (lambda m: m + m.T)(normal(200, 200)),
    "outliers over a bulk": lambda: hessian_like(200),
    "negative extreme": lambda: -hessian_like(200),
    "negative extreme beside a positive one": lambda: with_spectrum(
        [-3.0, 2.9, *torch.linspace(-1, 1, 98).tolist()]
    ),
    "positive semidefinite of low rank": lambda: (lambda a: a @ a.T)(normal(150, 5)),
    "double extreme eigenvalue": lambda: with_spectrum(
        [2.0, 2.0, *torch.linspace(0, 1, 48).tolist()]
    ),
    "twelve decades": lambda: with_spectrum(10.0 ** torch.linspace(-9, 3, 60)),
    "two by two": lambda: torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64),
}


@pytest.fixture(params=OPERATORS)
def matrix(request):
    torch.manual_seed(0)
    return OPERATORS[request.param]()


def exact(matrix):
    return torch.linalg.eigvalsh(matrix).abs().max()


def counted(matrix):
    """Return the operator and the list of vectors that it was given."""
    vectors = []

    def hvp(vector):
        vectors.append(vector)
        return matrix @ vector

    return hvp, vectors


def test_value_is_within_the_tolerance_of_the_dense_eigenvalue(matrix):
    result = lambda_max(lambda v: matrix @ v, normal(len(matrix)), max_hvps=200, tol=1e-3)
    assert result.residual <= 1e-3 * result.value
    torch.testing.assert_close(
        torch.tensor(result.value, dtype=torch.float64), exact(matrix), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("max_hvps", [1, 2, 5, 20, 120])
def test_an_eigenvalue_lies_within_the_residual_of_the_value(matrix, max_hvps):
    result = lambda_max(lambda v: matrix @ v, normal(len(matrix)), max_hvps=max_hvps, tol=0.0)
    distance = (torch.linalg.eigvalsh(matrix).abs() - result.value).abs().min()
    assert float(distance) <= result.residual + ROUNDING * float(exact(matrix))


def test_value_never_exceeds_the_dense_eigenvalue(matrix):
    for max_hvps in (1, 3, 10):
        result = lambda_max(lambda v: matrix @ v, normal(len(matrix)), max_hvps=max_hvps, tol=0.0)
        assert result.value <= float(exact(matrix)) * (1 + ROUNDING)


def test_value_grows_with_the_budget_from_the_same_start(matrix):
    start = normal(len(matrix))
    values = [
        lambda_max(lambda v: matrix @ v, start, max_hvps=n, tol=0.0).value for n in range(1, 12)
    ]
    for fewer, more in pairwise(values):
        assert more >= fewer * (1 - ROUNDING)


def test_loss_of_orthogonality_moves_no_eigenvalue():
    # Far more products than rows: rounding brings converged eigenvalues back, and only those.
    matrix = hessian_like(40)
    result = lambda_max(lambda v: matrix @ v, normal(40), max_hvps=300, tol=0.0)
    torch.testing.assert_close(
        torch.tensor(result.value, dtype=torch.float64), exact(matrix), rtol=ROUNDING, atol=0
    )


@pytest.mark.parametrize("budget", [1, 2, 7])
def test_budget_is_spent_and_not_exceeded(budget):
    hvp, vectors = counted(OPERATORS["indefinite bulk"]())
    result = lambda_max(hvp, normal(200), max_hvps=budget, tol=1e-12)
    assert result.num_hvps == len(vectors) == budget


def test_iteration_stops_as_soon_as_the_tolerance_is_met():
    matrix = hessian_like(200)
    start = normal(200)
    hvp, vectors = counted(matrix)
    result = lambda_max(hvp, start, max_hvps=200, tol=1e-8)
    assert result.num_hvps == len(vectors) < 40
    one_less = lambda_max(lambda v: matrix @ v, start, max_hvps=result.num_hvps - 1, tol=1e-8)
    assert one_less.residual > 1e-8 * one_less.value


def test_products_are_taken_of_unit_vectors():
    hvp, vectors = counted(hessian_like(50))
    lambda_max(hvp, 1e6 * normal(50), max_hvps=10, tol=0.0)
    norms = torch.stack([v.norm() for v in vectors])
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=ROUNDING, atol=0)


def test_scale_of_the_start_does_not_matter():
    matrix, start = hessian_like(50), normal(50)
    results = [
        lambda_max(lambda v: matrix @ v, scale * start, max_hvps=5, tol=0.0)
        for scale in (1.0, 2.0**100, 2.0**-100)
    ]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("factor", [-1.0, 2.0**20, -(2.0**-20)])
def test_value_and_residual_are_homogeneous_in_the_operator(factor):
    matrix, start = hessian_like(50), normal(50)
    result = lambda_max(lambda v: matrix @ v, start, max_hvps=8, tol=0.0)
    scaled = lambda_max(lambda v: factor * (matrix @ v), start, max_hvps=8, tol=0.0)
    for value, other in zip(result[:2], scaled[:2], strict=True):
        torch.testing.assert_close(abs(factor) * value, other, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("entry", [-2.5, 0.0, 7.0])
def test_operator_of_one_dimension_takes_one_product(entry):
    result = lambda_max(lambda v: entry * v, torch.tensor([0.3], dtype=torch.float64))
    assert result.value == abs(entry)
    assert result.residual == 0.0
    assert result.num_hvps == 1


def test_zero_operator_has_value_zero_after_one_product():
    result = lambda_max(torch.zeros_like, normal(10))
    assert result == (0.0, 0.0, 1)


@pytest.mark.parametrize("tol", [1e-2, 0.0])
@pytest.mark.parametrize("factor", [1.0, -3.0])
def test_breakdown_on_a_multiple_of_the_identity_is_an_exact_answer(factor, tol):
    result = lambda_max(lambda v: factor * v, normal(30), max_hvps=10, tol=tol)
    torch.testing.assert_close(result.value, abs(factor), rtol=ROUNDING, atol=0)
    assert result.residual <= ROUNDING * result.value


def test_start_in_an_invariant_subspace_gives_the_extreme_of_that_subspace():
    matrix = torch.diag(torch.tensor([1.0, -3.0, 2.0, 9.0], dtype=torch.float64))
    start = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    result = lambda_max(lambda v: matrix @ v, start, max_hvps=3, tol=0.0)
    torch.testing.assert_close(result.value, 3.0, rtol=ROUNDING, atol=0)


def test_float32_is_enough_for_the_tolerance(matrix):
    single = matrix.float()
    result = lambda_max(lambda v: single @ v, normal(len(matrix)).float(), max_hvps=200, tol=1e-3)
    torch.testing.assert_close(
        torch.tensor(result.value, dtype=torch.float64), exact(matrix), rtol=1e-3, atol=0
    )


def test_start_is_only_read():
    start = normal(10)
    before = start.clone()
    lambda_max(lambda v: -v, start)
    assert torch.equal(start, before)


@pytest.mark.parametrize("max_hvps", [0, -1])
def test_budget_below_one_is_refused(max_hvps):
    with pytest.raises(ValueError, match=f"lambda_max: expected `max_hvps` >= 1, got {max_hvps}"):
        lambda_max(lambda v: v, torch.ones(3), max_hvps=max_hvps)


@pytest.mark.parametrize(
    "start", [torch.zeros(3), torch.ones(3, 1), torch.tensor(1.0), torch.full((3,), torch.nan)]
)
def test_start_that_is_zero_or_nan_or_no_vector_is_refused(start):
    with pytest.raises(
        ValueError, match=r"lambda_max: expected a non-zero `start` of shape \(d,\)"
    ):
        lambda_max(lambda v: v, start)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("at", [1, 3])
def test_product_that_is_not_finite_is_refused_by_its_number(bad, at):
    hvp, vectors = counted(hessian_like(20))

    def failing(vector):
        product = hvp(vector)
        return product * bad if len(vectors) == at else product

    with pytest.raises(
        ValueError, match=f"expected finite products, got inf or NaN at product {at}"
    ):
        lambda_max(failing, normal(20), tol=0.0)


@pytest.mark.parametrize("max_hvps", [3, 10, 60])
def test_the_positive_end_is_bracketed_with_its_sign(matrix, max_hvps):
    exact_end = float(torch.linalg.eigvalsh(matrix)[-1])
    krylov = lanczos(matrix.mv, normal(len(matrix)), max_hvps=max_hvps, tol=0.0, positive_end=True)
    slack = ROUNDING * float(exact(matrix))
    assert krylov.value <= exact_end + slack
    assert exact_end <= krylov.upper + slack


def test_the_positive_end_of_a_negative_matrix_is_negative():
    matrix = with_spectrum(torch.linspace(-3, -1, 40).tolist())
    krylov = lanczos(matrix.mv, normal(40), max_hvps=40, tol=1e-3, positive_end=True)
    assert krylov.value == pytest.approx(-1.0, rel=1e-6)
    assert krylov.upper == pytest.approx(-1.0, rel=1e-6)


def test_the_positive_end_stops_once_it_is_known_whatever_the_negative_end_is():
    matrix = with_spectrum([10.0, *torch.linspace(-9, -8, 99).tolist()])
    both = lanczos(matrix.mv, normal(100), max_hvps=60, tol=1e-4)
    start = normal(100)
    positive = lanczos(matrix.mv, start, max_hvps=60, tol=1e-4, positive_end=True)
    mirrored = lanczos(lambda v: -(matrix @ v), start, max_hvps=60, tol=1e-4, positive_end=True)
    assert positive.value == pytest.approx(10.0, rel=1e-4)
    assert mirrored.value == pytest.approx(9.0, rel=1e-4)
    assert positive.num_hvps <= both.num_hvps < mirrored.num_hvps
