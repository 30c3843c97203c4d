"""The fast rotation against its definition, and against what a random rotation does."""

import math
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.vector_count import counted_vectors

from lightning_linf.functional import kronecker, rotate, rotate_squared
from lightning_linf.functional.full_precision import float32_precision, full_float32_precision
from lightning_linf.functional.rotation import rotation_angle, rotation_windows
from lightning_linf.functional.signs import sign_words

GOLDEN_WORDS = [1934902460, -1362495095, -141305774, -724561352]
GOLDEN_LATE_WORDS = [1792999363, 1788978262, -718948806]
GOLDEN_VECTOR = [4.75, 3.25, 4.5, -0.25, 1.25]
CPU = torch.device("cpu")
ROUNDING = {"rtol": 0.0, "atol": 1e-12}  # of float64, for entries of about 1
GPT2 = 124_439_808
SMALL = [1, 2, 3, 4, 5, 7, 8, 9, 24, 31, 32, 33, 48, 63, 65, 100, 127, 129]


def dense(dim, **options):
    """Shape (d, d)."""
    # The rows of the identity become the columns of Q.
    return rotate(torch.eye(dim, dtype=torch.float64), **options).T


def signs_of(window, seed, stream):
    """Shape (2^k,), by the rule of SignedKronecker: sign b 2^(k-5) + r is bit 31 - b of word r."""
    size = 2 * window.half
    words = sign_words(max(1, size // 32), seed=seed, stream=stream, device=CPU).tolist()
    bits = [word >> (31 - b) & 1 for b in range(min(size, 32)) for word in words]
    return 1 - 2 * torch.tensor(bits, dtype=torch.float64)


def rotated_by_definition(x, seed, angle):
    """Window after window, bit after bit. Shapes: (..., d) -> (..., d)."""
    x = x.clone()
    c, s = math.cos(angle), math.sin(angle)
    plane = torch.tensor([[c, -s], [s, c]], dtype=x.dtype)
    for stream, window in enumerate(rotation_windows(x.shape[-1])):
        first = torch.arange(window.start, window.start + window.half)
        index = torch.cat([first, first + window.stride])
        signs = signs_of(window, seed, stream).to(x)
        part = x[..., index] * signs
        shape = part.shape
        for bit in range(window.bits):
            part = part.reshape(*shape[:-1], -1, 2, 1 << bit)
            part = torch.einsum("ij,...jk->...ik", plane, part)
        x[..., index] = part.reshape(shape) * signs
    return x


def kurtosis(rows):
    return rows.pow(4).mean(-1) / rows.square().mean(-1).square()


def test_windows_are_two_runs_inside_the_vector_and_cover_it():
    for dim in [*range(2, 200), GPT2, 2**27 - 1, 2**27, 2**27 + 1]:
        windows = rotation_windows(dim)
        runs = [(s, s + w.half) for w in windows for s in (w.start, w.start + w.stride)]
        for w in windows:
            assert w.start >= 0
            assert w.stride >= w.half
            assert w.start + w.stride + w.half <= dim < 4 * w.half
        end = 0
        for begin, stop in sorted(runs):
            assert begin <= end
            end = max(end, stop)
        assert end == dim


@pytest.mark.parametrize("dim", SMALL[1:])
@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_rotation_is_that_of_the_definition(dim, strength):
    x = torch.randn(3, dim, dtype=torch.float64)
    expected = rotated_by_definition(x, 5, rotation_angle(dim, strength))
    torch.testing.assert_close(rotate(x, seed=5, strength=strength), expected, **ROUNDING)


@pytest.mark.parametrize(
    ("dim", "dtype"), [(2**20 + 2**19 + 11, torch.float32), (2**21 - 1, torch.float64)]
)
def test_rotation_of_more_than_a_tile_is_that_of_the_definition(dim, dtype):
    x = torch.randn(dim, dtype=dtype)
    expected = rotated_by_definition(x, 5, rotation_angle(dim, 0.6))
    atol = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(rotate(x, seed=5, strength=0.6), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("dim", "tile_bits"),
    [
        (dim, tile_bits)
        for dim in (64, 100, 127, 129, 500, 1000, 1024, 1500, 4095)
        for tile_bits in (5, 6, 7)
        if dim < 2 ** (2 * tile_bits + 1)  # windows are at most the square of a tile
    ],
)
def test_size_of_tiles_does_not_matter(dim, tile_bits, monkeypatch):
    x = torch.randn(3, dim, dtype=torch.float64)
    options = [{"inverse": inverse, "strength": s} for inverse in (False, True) for s in (0.5, 1.0)]
    whole = [rotate(x, seed=0, **o) for o in options]
    squared = rotate_squared(x, seed=0)
    monkeypatch.setattr(kronecker, "TILE_BITS", tile_bits)
    for expected, o in zip(whole, options, strict=True):
        torch.testing.assert_close(rotate(x, seed=0, **o), expected, **ROUNDING)
    torch.testing.assert_close(rotate_squared(x, seed=0), squared, **ROUNDING)


@pytest.mark.parametrize("dim", SMALL)
@pytest.mark.parametrize("strength", [0.0, 1e-3, 0.5, 1.0])
def test_matrix_is_orthogonal_and_its_inverse_the_transpose(dim, strength):
    matrix = dense(dim, seed=1, strength=strength)
    identity = torch.eye(dim, dtype=torch.float64)
    torch.testing.assert_close(matrix.T @ matrix, identity, **ROUNDING)
    inverse = dense(dim, seed=1, strength=strength, inverse=True)
    torch.testing.assert_close(inverse, matrix.T, **ROUNDING)


@given(
    dim=st.integers(1, 700),
    rows=st.integers(0, 3),
    strength=st.floats(0, 1),
    seed=st.integers(-(2**70), 2**70),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60)
def test_inner_products_stay_and_the_inverse_undoes(dim, rows, strength, seed, dtype):
    x = torch.randn(rows, dim, dtype=dtype)
    options = {"seed": seed, "strength": strength}
    y = rotate(x, **options)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    scale = x.double().square().sum(-1).mean().item() if rows else 0.0
    gram, expected = y.double() @ y.double().T, x.double() @ x.double().T
    torch.testing.assert_close(gram, expected, rtol=0, atol=2 * tolerance * scale)
    # float32 loses up to 4e-7 of the length each way
    back = rotate(y, **options, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("strength", [0.01, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("dim", [1_000, 2**16, 1_500_000])
def test_float32_keeps_norms_to_a_millionth(dim, strength):
    x = torch.randn(dim)
    y = rotate(x, seed=0, strength=strength)
    assert abs(y.double().norm() / x.double().norm() - 1) < 1e-6
    exact = rotate(x.double(), seed=0, strength=strength)
    assert (y - exact).norm() / exact.norm() < 1e-6
    assert abs(exact.norm() / x.double().norm() - 1) < 1e-12


SIZES_OF_WINDOWS = [
    size
    for k in (6, 8, 10, 12)
    for size in (2**k - 1, 2**k, 2**k + 1, 3 * 2 ** (k - 1), 2**k + 2 ** (k - 2) + 1)
]


@pytest.mark.parametrize("dim", [1000, 777, 3001, *SIZES_OF_WINDOWS])
@pytest.mark.parametrize("inverse", [False, True])
def test_images_of_axes_have_the_kurtosis_of_normal_numbers(dim, inverse):
    # The standard deviation of one is sqrt(24 / d), but those of one rotation are alike: enough
    # rotations for 0.03.
    num_axes = min(dim, 64)
    num_seeds = max(4, 800_000 // (num_axes * dim))
    axes = torch.linspace(0, dim - 1, num_axes).round().long()
    x = torch.zeros(num_axes, dim)
    x[torch.arange(num_axes), axes] = 1
    mean = sum(kurtosis(rotate(x, seed=s, inverse=inverse)).mean() for s in range(num_seeds))
    haar = 3 * dim / (dim + 2)  # 3 but for the smallest
    assert 2.85 < 3 / haar * mean / num_seeds < 3.15


@pytest.mark.parametrize("dim", [2**14 - 1, 2**14, 2**14 + 1, 3 * 2**13, 50_001, 2**16 + 2**15 + 1])
def test_no_axis_of_a_longer_vector_is_special(dim):
    half = rotation_windows(dim)[0].half
    borders = [0, 1, half - 1, half, dim - 2 * half, dim // 2, dim - half, 2 * half - 1, dim - 1]
    x = torch.zeros(len(borders), dim)
    x[torch.arange(len(borders)), torch.tensor(borders)] = 1
    for inverse in (False, True):
        rows = torch.stack([kurtosis(rotate(x, seed=s, inverse=inverse)) for s in range(4)])
        # Standard deviation of each of these means of 4: at most 0.02.
        assert (rows.mean(0) - 3).abs().max() < 0.15


@pytest.mark.slow
def test_rotation_of_a_vector_as_long_as_gpt2():
    half = rotation_windows(GPT2)[0].half
    axes = [0, half - 1, half, GPT2 - 2 * half, GPT2 // 2, 2 * half - 1, 2 * half, GPT2 - 1]
    for number, axis in enumerate(axes):
        x = torch.zeros(GPT2)
        x[axis] = 1
        y = rotate(x, seed=number)
        assert abs(y.norm(dtype=torch.float64) - 1) < 1e-6
        second, fourth = y.square().mean(dtype=torch.float64), y.pow_(4).mean(dtype=torch.float64)
        assert 2.95 < fourth / second.square() < 3.05
        del x, y
    x = torch.randn(GPT2)
    for strength in (0.3, 1.0):
        with counted_vectors(GPT2) as count:
            y = rotate(x, seed=0, strength=strength)
        assert count.peak < 1.1  # the result, and pieces
        assert abs(y.norm(dtype=torch.float64) / x.norm(dtype=torch.float64) - 1) < 1e-6
        cosine = (x * y).sum(dtype=torch.float64) / x.square().sum(dtype=torch.float64)
        assert abs(cosine - (1 - strength)) < 1e-3  # standard error: 1e-4
        back = rotate(y, seed=0, strength=strength, inverse=True)
        assert (back - x).norm(dtype=torch.float64) / x.norm(dtype=torch.float64) < 2e-6
        del y, back


@pytest.mark.parametrize("dim", [5, 100, 128])
def test_strength_0_changes_no_bit(dim):
    x = torch.randn(2, dim)
    x[0, :3] = torch.tensor([-0.0, math.nan, math.inf])
    y = rotate(x, seed=0, strength=0.0)
    assert torch.equal(y.view(torch.int32), x.view(torch.int32))
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dim", [2, 3, 37, 128])
@pytest.mark.parametrize("strength", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_matrix_is_continuous_in_the_strength(dim, strength):
    here = dense(dim, seed=0, strength=strength)
    for other in (strength - 1e-8, strength + 1e-8):
        if 0 <= other <= 1:
            # From 0, an axis turns by sqrt(2e-8); elsewhere it turns by less.
            distance = (dense(dim, seed=0, strength=other) - here).norm() / dim**0.5
            assert 0 < distance < 2e-4


@pytest.mark.parametrize("dim", [8, 37, 100])
def test_mean_of_the_diagonal_falls_linearly(dim):
    diagonals = torch.stack(
        [
            torch.stack([dense(dim, seed=s, strength=v).diagonal().mean() for s in range(150)])
            for v in (0.1, 0.25, 0.5, 0.75, 1.0)
        ]
    )  # (5, 150)
    standard_errors = diagonals.std(dim=1) / 150**0.5
    k = dim.bit_length() - 1
    runs = rotation_windows(dim)
    counts = torch.zeros(dim)
    for w in runs:
        counts[w.start : w.start + w.half] += 1
        counts[w.start + w.stride : w.start + w.stride + w.half] += 1
    end = (0.5 ** (k * counts / 2)).mean()
    expected = 1 - torch.tensor([0.1, 0.25, 0.5, 0.75, 1.0]) * (1 - end)
    assert ((diagonals.mean(dim=1) - expected).abs() < 5 * standard_errors).all()


def test_different_seeds_give_unrelated_rotations():
    a, b = dense(100, seed=0), dense(100, seed=1)
    assert (a * b).sum().abs() / 100 < 0.05  # the standard deviation is 1/100
    assert torch.equal(a, dense(100, seed=0))


def test_signs_and_a_rotated_vector_are_the_same_for_ever():
    words = sign_words(4, seed=0, stream=0, device=CPU)
    assert words.tolist() == GOLDEN_WORDS
    assert sign_words(70_000, seed=7, stream=2, device=CPU)[[65_535, 65_536, 69_999]].tolist() == (
        GOLDEN_LATE_WORDS
    )
    y = rotate(torch.arange(1.0, 6.0, dtype=torch.float64), seed=0)
    torch.testing.assert_close(y, torch.tensor(GOLDEN_VECTOR, dtype=torch.float64), **ROUNDING)


def test_signs_are_fair_and_uncorrelated():
    num_words = 1 << 13
    streams = [(0, 0), (0, 1), (1, 0), (2**40, 0)]
    words = torch.stack(
        [sign_words(num_words, seed=a, stream=b, device=CPU) for a, b in streams]
    )  # (4, n)
    bits = (words.long()[..., None] >> torch.arange(32)) & 1
    signs = (1 - 2 * bits).float()  # (4, n, 32)
    columns = signs.permute(0, 2, 1).reshape(-1, num_words)
    # Correlations between the bits of a word and of other streams, then of words apart.
    gram = columns @ columns.T / num_words**0.5
    assert columns.sum(1).abs().max() / num_words**0.5 < 5
    assert gram.fill_diagonal_(0).abs().max() < 5.5  # 8,128 standard normal numbers
    for lag in (1, 2, 3, 32, 1024, 4096):
        shifted = (columns * columns.roll(lag, dims=1)).sum(1) / num_words**0.5
        assert shifted.abs().max() < 5


@pytest.mark.parametrize("dim", [2, 4])
def test_square_of_a_single_window_is_exact(dim):
    for strength in (0.3, 1.0):
        matrix = dense(dim, seed=3, strength=strength)
        squared = rotate_squared(torch.eye(dim, dtype=torch.float64), seed=3, strength=strength)
        torch.testing.assert_close(squared.T, matrix.square(), **ROUNDING)


@pytest.mark.parametrize("dim", [3, 8, 11, 37])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_square_is_what_is_expected_over_the_signs(dim, strength):
    draws = torch.stack([dense(dim, seed=s, strength=strength).square() for s in range(400)])
    squared = rotate_squared(torch.eye(dim, dtype=torch.float64), seed=0, strength=strength).T
    standard_error = draws.std(dim=0) / 400**0.5
    assert ((draws.mean(0) - squared).abs() <= 6 * standard_error + 1e-12).all()


@pytest.mark.parametrize("dim", SMALL)
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_square_is_doubly_stochastic_and_its_inverse_the_transpose(dim, strength):
    identity, ones = torch.eye(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64)
    squared = rotate_squared(identity, seed=0, strength=strength).T
    assert (squared >= 0).all()
    torch.testing.assert_close(squared.sum(0), ones, **ROUNDING)
    torch.testing.assert_close(squared.sum(1), ones, **ROUNDING)
    inverse = rotate_squared(identity, seed=0, strength=strength, inverse=True).T
    torch.testing.assert_close(inverse, squared.T, **ROUNDING)


@contextmanager
def reduced_precision(kind):
    """Let torch multiply float32 matrices in bfloat16 or TF32, as its users may."""
    modules = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    has_new = all(hasattr(module, "fp32_precision") for module in modules)
    if not has_new and kind in ("backend", "all backends"):
        pytest.skip("torch has these settings since 2.9")
    try:
        if kind in ("high", "medium"):
            torch.set_float32_matmul_precision(kind)
        elif kind == "allow_tf32":
            torch.backends.cuda.matmul.allow_tf32 = True
        elif kind == "backend":
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        else:
            torch.backends.fp32_precision = "tf32"
        yield
    finally:
        if has_new:
            torch.backends.fp32_precision = "none"
            for module in modules:
                module.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


def precision_settings():
    """What each setting says now; some cannot be read beside others."""
    found = {}
    for name, module in [
        ("all", torch.backends), ("cuda", torch.backends.cuda.matmul),
        ("cpu", getattr(torch.backends.mkldnn, "matmul", None)),
        ("convolutions", getattr(torch.backends.cudnn, "conv", None)),
        ("recurrent layers", getattr(torch.backends.cudnn, "rnn", None)),
    ]:  # fmt: skip
        found[name] = getattr(module, "fp32_precision", None)
    for read in (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.cudnn.allow_tf32,
    ):
        try:
            found[len(found)] = read()
        except RuntimeError:
            found[len(found)] = "mixed"
    return found


KINDS = ["high", "medium", "allow_tf32", "backend", "all backends"]


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_matrix_products_neither_matter_nor_change(kind):
    x, strength = torch.randn(10_000), 0.37
    expected = rotate(x, seed=0, strength=strength)
    with reduced_precision(kind):
        before = precision_settings()
        assert torch.equal(rotate(x, seed=0, strength=strength), expected)
        assert precision_settings() == before
        with full_float32_precision():
            for module in (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)):
                assert getattr(module, "fp32_precision", "none") in ("none", "ieee")
        assert precision_settings() == before
        with pytest.raises(KeyError), full_float32_precision():
            raise KeyError
        assert precision_settings() == before
        if kind == "all backends":  # what followed it, follows it still
            torch.backends.fp32_precision = "ieee"
            assert set(precision_settings().values()) >= {"ieee"}
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_products_on_cuda_alone_may_take_tf32_and_all_settings_come_back(kind):
    cuda = torch.backends.cuda.matmul
    others = [
        getattr(backend, name, None)
        for backend in (torch.backends.mkldnn, torch.backends.cudnn)
        for name in ("matmul", "conv", "rnn")
    ]
    with nullcontext() if kind is None else reduced_precision(kind):
        before = precision_settings()
        with float32_precision("high"):
            assert getattr(cuda, "fp32_precision", "tf32") == "tf32"
            assert all(getattr(m, "fp32_precision", "none") in ("none", "ieee") for m in others)
            if "mixed" not in before.values():  # nothing that reads old settings inside fails
                assert cuda.allow_tf32
                assert torch.get_float32_matmul_precision() == "high"
            within = precision_settings()
            with full_float32_precision():
                assert getattr(cuda, "fp32_precision", "ieee") in ("none", "ieee")
                if "mixed" not in before.values():
                    assert not cuda.allow_tf32
            assert precision_settings() == within
        assert precision_settings() == before
        with pytest.raises(KeyError), float32_precision("high"):
            raise KeyError
        assert precision_settings() == before


def test_autocast_does_not_matter():
    x = torch.randn(3, 1000)
    expected = rotate(x, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rotate(x, seed=0), expected)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    x = torch.randn(2, 300).to(dtype)
    y = rotate(x, seed=0)
    assert y.dtype == dtype
    assert torch.equal(y, rotate(x.float(), seed=0).to(dtype))


@pytest.mark.parametrize("shape", [(0, 7), (1,), (3, 1), (2, 3, 4, 50), (3000, 3)])
def test_leading_dimensions_share_the_map(shape):
    x = torch.randn(shape, dtype=torch.float64)
    y = rotate(x, seed=0)
    assert y.shape == x.shape
    rows, images = x.reshape(-1, shape[-1])[-9:], y.reshape(-1, shape[-1])[-9:]
    for row, image in zip(rows, images, strict=True):
        torch.testing.assert_close(rotate(row, seed=0), image, **ROUNDING)


def test_result_is_new_contiguous_and_without_graph():
    x = torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
    views = [x.T, x[::2, 3:17], x[:, :1].expand(50, 40), x.detach()]
    for view in views:
        before = view.detach().clone()
        y = rotate(view, seed=0)
        assert y.is_contiguous()
        assert not y.requires_grad
        torch.testing.assert_close(y, rotate(before.contiguous(), seed=0), **ROUNDING)
        assert torch.equal(view, before)


def test_inference_mode_inside_and_outside():
    kronecker._power.cache_clear()
    with torch.inference_mode():
        x = torch.randn(100)
        inside = rotate(x, seed=0, strength=0.123)
    assert torch.equal(rotate(x, seed=0, strength=0.123), inside)
    assert torch.equal(rotate(x.clone(), seed=0, strength=0.123), inside)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_nonfinite_entries_show(value):
    x = torch.ones(100)
    x[3] = value
    assert not rotate(x, seed=0).isfinite().any()


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [1000, 2**21 + 5])
def test_cuda_gives_the_same_without_waiting_for_the_device(dim):
    x = torch.randn(dim)
    on_device = x.cuda()
    rotate(on_device, seed=0, strength=0.7)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with reduced_precision("high"):
            y = rotate(on_device, seed=0, strength=0.7)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(y.cpu(), rotate(x, seed=0, strength=0.7), rtol=0, atol=1e-5)


@pytest.mark.parametrize("function", [rotate, rotate_squared])
@pytest.mark.parametrize(
    ("x", "strength", "message"),
    [
        (torch.ones(3, dtype=torch.int64), 1.0, r"expected a real floating .* got torch.int64"),
        (torch.ones(3, dtype=torch.complex64), 1.0, r"got torch.complex64 of shape \(3,\)"),
        (torch.tensor(1.0), 1.0, r"of shape \(\.\.\., d\), got torch.float32 of shape \(\)"),
        (torch.ones(3), -0.1, "expected `strength` between 0 and 1, got -0.1"),
        (torch.ones(3), 1.1, "expected `strength` between 0 and 1, got 1.1"),
        (torch.ones(3), math.nan, "expected `strength` between 0 and 1, got nan"),
    ],
)
def test_wrong_arguments_are_refused(function, x, strength, message):
    with pytest.raises(ValueError, match=f"{function.__name__}: .*{message}"):
        function(x, seed=0, strength=strength)
