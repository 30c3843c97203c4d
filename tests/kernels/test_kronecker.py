"""Windows multiplied by the kernel, against the plain form that runs without it."""

import math
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from lightning_linf.functional import rotate, rotate_squared, rotation

pytest.importorskip("triton", reason="lightning-linf[kernels]")

from lightning_linf.kernels.kronecker import TILE_BITS, _borders, signed_kronecker_

# Both forms sum 2^k products of at most 4 windows in float64 or float32, in other orders; what
# they make of normal numbers is of order 1.
ROUNDING = {torch.float64: 1e-13, torch.float32: 3e-6}
DIMS = [2, 3, 4, 5, 8, 31, 33, 127, 128, 129, 1000]


@pytest.fixture
def plain(monkeypatch):
    """Compute with kernels turned off."""

    def compute(function, *args, **options):
        with monkeypatch.context() as context:
            context.setattr(rotation, "runs_kernels", lambda device: False)
            return function(*args, **options)

    return compute


@pytest.fixture
def small_tiles(monkeypatch):
    """Give windows of few entries several tiles, and more than one launch for their high bits."""
    monkeypatch.setattr("lightning_linf.kernels.kronecker.TILE_BITS", dict.fromkeys(TILE_BITS, 5))


def check(function, plain, x, **options):
    expected = plain(function, x, **options)
    result = function(x, **options)
    assert result.dtype == x.dtype
    torch.testing.assert_close(result, expected, rtol=0, atol=ROUNDING[x.dtype])


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotation_is_that_of_the_plain_form(dim, dtype, plain, device):
    x = torch.randn(3, dim, dtype=dtype, device=device)
    check(rotate, plain, x, seed=-5, strength=0.7)
    check(rotate, plain, x, seed=2**60, inverse=True)
    check(rotate_squared, plain, x, seed=0, strength=0.4)


@pytest.mark.parametrize("dim", [64, 65, 127])
def test_windows_of_several_tiles_are_those_of_the_plain_form(dim, plain, small_tiles, device):
    x = torch.randn(2, dim, dtype=torch.float64, device=device)
    check(rotate, plain, x, seed=1)
    check(rotate, plain, x[0], seed=1, strength=0.2, inverse=True)
    check(rotate_squared, plain, x[0], seed=1)


def test_windows_of_three_launches_are_those_of_the_plain_form(plain, monkeypatch, device):
    monkeypatch.setattr("lightning_linf.kernels.kronecker.TILE_BITS", dict.fromkeys(TILE_BITS, 4))
    assert len(_borders(7, 4)) == 4
    check(rotate, plain, torch.randn(131, device=device), seed=1, strength=0.9)


def test_tiles_of_the_true_size_are_those_of_the_plain_form(plain, device):
    x = torch.randn(2**15 + 2**14 + 3, device=device)  # windows of four tiles
    check(rotate, plain, x, seed=1)


def test_the_inverse_undoes_the_rotation(device):
    x = torch.randn(2, 3, 50, device=device)
    y = rotate(x, seed=3, strength=0.8)
    torch.testing.assert_close(rotate(y, seed=3, strength=0.8, inverse=True), x, rtol=0, atol=5e-6)


@pytest.mark.parametrize("strength", [0.1, 0.77, 1.0])
def test_float32_keeps_norms_to_a_millionth(strength, device):
    x = torch.randn(1500, device=device)
    y = rotate(x, seed=0, strength=strength)
    assert abs(y.double().norm() / x.double().norm() - 1) < 1e-6
    squares = rotate_squared(x.square(), seed=0, strength=strength)
    assert abs(squares.double().sum() / x.double().square().sum() - 1) < 1e-6


def test_many_short_vectors_share_tiles(plain, device):
    x = torch.randn(40, 7, 6, dtype=torch.float64, device=device)
    check(rotate, plain, x, seed=0)
    check(rotate, plain, x.transpose(0, 2), seed=0)  # not contiguous


def test_entries_outside_the_windows_and_vectors_apart_stay_bit_for_bit(device):
    x = torch.randn(2, 12, device=device)
    x[:, 0], x[:, 5], x[:, 10] = math.nan, math.inf, -0.0
    y = x.clone()
    # M = 1 mixes nothing: what remains is D D, which changes no bit.
    signed_kronecker_(y, [(1, 5, 4)], ((1.0, 0.0), (0.0, 1.0)), [77])
    assert torch.equal(y.view(torch.int32), x.view(torch.int32))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of NumPy
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_spreads_as_in_the_plain_form(value, plain, device):
    x = torch.zeros(2, 37, device=device)
    x[0, 20] = value
    y = rotate(x, seed=0)
    assert not plain(rotate, x, seed=0)[0].isfinite().any()
    assert not y[0].isfinite().any()
    assert (y[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype, plain, device):
    x = torch.randn(2, 30, device=device).to(dtype)
    y = rotate(x, seed=0)
    assert y.dtype == dtype
    assert torch.equal(y, rotate(x.float(), seed=0).to(dtype))
    torch.testing.assert_close(y, plain(rotate, x, seed=0))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3, 1)])
def test_nothing_to_rotate_stays(shape, device):
    x = torch.ones(shape, device=device)
    assert torch.equal(rotate(x, seed=0), x)


@pytest.mark.parametrize("tile_bits", [2, 5, 12, 13])
def test_launches_mix_every_bit_once_and_leave_neighbours_together(tile_bits):
    for num_bits in range(1, 40):
        borders = _borders(num_bits, tile_bits)
        assert borders[0] == 0
        assert borders[-1] == num_bits
        sizes = [high - low for low, high in pairwise(borders)]
        assert sizes[0] == min(num_bits, tile_bits)
        assert all(0 < size <= max(tile_bits - 5, (tile_bits + 1) // 2) for size in sizes[1:])


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_linf.kernels.kronecker import _mix

for dtype, low, mixed, columns in (("fp32", 0, 13, 0), ("fp64", 19, 7, 5)):
    constants = dict(BITS=26, LOW=low, MIXED=mixed, COLUMNS=columns, VECTORS=0)
    constants |= dict(BEFORE=low == 0, AFTER=low > 0)
    types = dict.fromkeys(_mix.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types |= dict.fromkeys(("scale", "upper", "lower"), "i64") | {"y": "*" + dtype}
    source = ASTSource(fn=_mix, signature=types, constexprs=constants)
    for architecture in (80, 90):
        target = GPUTarget("cuda", architecture, 32)
        code = compile(source, target=target, options={"num_warps": 8})
        # A layout conversion goes through shared memory. As many as there are bits would mean that
        # the compiler keeps none of them in the registers of a thread.
        print(code.asm["ttgir"].count("convert_layout"), mixed, code.metadata.shared)
"""


@pytest.mark.slow
def test_the_kernel_compiles_for_gpus_and_mixes_most_bits_in_registers(tmp_path):
    pytest.importorskip("triton", minversion="3.3", reason="takes sources in another form")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = [list(map(int, line.split())) for line in run.stdout.splitlines()]
    assert len(rows) == 4
    for num_conversions, num_bits, shared in rows:
        assert num_conversions < num_bits
        assert shared <= 2**15
