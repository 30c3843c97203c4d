"""The kernel's counts and sums of magnitudes, against the plain form that runs without it."""

import math
import os
import subprocess
import sys

import pytest
import torch

from lightning_linf.functional import heterogeneity_sums
from lightning_linf.functional.heterogeneity_sums import HeterogeneitySums, heterogeneity_update

COUNTS = ("histogram", "num_zero", "num_inf", "num_nan")
ROUNDING = 1e-12  # of sums of at most 1e4 positive float64 numbers: 1e4 * 1e-16
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MAGNITUDES = "lightning_linf.kernels.magnitudes"
# NumPy, by which the interpreter computes, warns where a GPU does not: of squares that are too
# large for float64, and of NaNs that signal.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value) encountered in (multiply|cast):RuntimeWarning"
)


@pytest.fixture(params=[(64, 32, 4), (128, 1024, 1), None], ids=["small", "wide", "true"])
def sizes(request, monkeypatch):
    """Give small tensors several chunks and several rounds of their sums, and windows that leave
    entries out or reach below all bins; then those that are used.
    """
    if request.param is not None:
        for name, size in zip(("CHUNK", "WINDOW", "_ITEMS"), request.param, strict=True):
            monkeypatch.setattr(f"{MAGNITUDES}.{name}", size)


def check(tensors, monkeypatch):
    before = [tensor.clone() for tensor in tensors]
    result = heterogeneity_update(tensors)
    with monkeypatch.context() as context:
        context.setattr(heterogeneity_sums, "runs_kernels", lambda device: False)
        expected = heterogeneity_update(tensors)
    for name in HeterogeneitySums._fields:
        value, reference = getattr(result, name), getattr(expected, name)
        assert value.dtype == reference.dtype
        if name in COUNTS:
            assert torch.equal(value, reference), name
        else:
            torch.testing.assert_close(value, reference, rtol=ROUNDING, atol=0)
    for tensor, copy in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tensors_of_odd_sizes_are_counted_as_by_the_plain_form(
    dtype, sizes, monkeypatch, device
):
    shapes = [(400,), (0,), (1,), (64,), (63,), (5, 13), (128,), (), (3, 0), (257,)]
    tensors = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    result = check(tensors, monkeypatch)
    assert result.histogram.sum(dim=1).tolist() == [math.prod(shape) for shape in shapes]


def test_magnitudes_over_many_decades_are_counted_as_by_the_plain_form(sizes, monkeypatch, device):
    tensors = [torch.randn(200, device=device) * 10.0**e for e in (-45, -40, -37, -3, 0, 30, 38)]
    tensors.append(torch.exp(20 * torch.randn(300, device=device)))  # also infinite, and zero
    tensors.append(torch.exp(150 * torch.randn(300, device=device, dtype=torch.float64)))
    tensors.append(torch.tensor([1e-320, 2e154, 1e-300, 3e38, 3.5e38], device=device).double())
    check(tensors, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_value_of_a_dtype_falls_into_the_bin_of_the_plain_form(dtype, monkeypatch, device):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    if dtype == torch.float32:  # of all exponents, and of subnormals with any leading bit
        ones = 2 ** torch.arange(23, dtype=torch.int32)
        bits = torch.cat([bits.to(torch.int32) << 16, ones, ones - 1, 3 * ones[:-1]])
    values = bits.view(dtype)
    if dtype == torch.bfloat16 and device.type == "cpu":  # the interpreter takes these for zeros
        values = values[(values == 0) | ~(values.abs() < torch.finfo(dtype).tiny)]
    values = values.to(device)
    result = check([values], monkeypatch)
    num_inf, num_nan = int(values.isinf().sum()), int(values.isnan().sum())
    assert (int(result.num_inf), int(result.num_nan)) == (num_inf, num_nan)
    assert int(result.histogram.sum()) == len(values) - num_inf - num_nan


def test_zeros_and_what_is_not_finite_are_counted_apart(sizes, monkeypatch, device):
    mixed = torch.randn(300, device=device)
    mixed[::7], mixed[::11], mixed[::13], mixed[::17] = 0.0, math.nan, math.inf, -math.inf
    tensors = [
        torch.zeros(300, device=device),
        -torch.zeros(10, device=device),
        torch.full((300,), math.nan, device=device),
        torch.full((200,), -math.inf, device=device),
        mixed,
        mixed.double(),
        mixed.half(),
    ]
    result = check(tensors, monkeypatch)
    assert result.num_zero[:4].tolist() == [300, 10, 0, 0]
    assert result.num_nan[:4].tolist() == [0, 0, 300, 0]
    assert result.num_inf[:4].tolist() == [0, 0, 0, 200]
    assert result.abs_sum[:4].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_one_entry_far_above_the_others_leaves_them_in_their_bins(sizes, monkeypatch, device):
    spiked = torch.randn(300, device=device)
    spiked[150] = 1e30
    check([spiked], monkeypatch)


def test_tensors_of_several_dtypes_come_back_in_their_order(sizes, monkeypatch, device):
    dtypes = [DTYPES[place % 4] for place in range(9)]
    tensors = [torch.randn(100 + i, device=device).to(dtype) for i, dtype in enumerate(dtypes)]
    check(tensors, monkeypatch)


def test_tensors_of_eight_bits_are_counted_as_float32(sizes, device):
    narrow = torch.randn(90, device=device).to(torch.float8_e5m2)
    for value, reference in zip(
        heterogeneity_update([narrow]), heterogeneity_update([narrow.float()]), strict=True
    ):
        assert torch.equal(value, reference)


def test_strided_tensors_are_counted_as_by_the_plain_form(sizes, monkeypatch, device):
    base = torch.randn(9, 12, 4, device=device)
    views = (base.permute(2, 0, 1), base[::3, 1::2], base[:, 5, 2], base[:1].expand(3, 12, 4))
    shifted = base.reshape(-1)[1:]  # an address that is no multiple of 16 bytes
    result = check([*views, shifted, base.requires_grad_()], monkeypatch)
    assert not result.abs_sum.requires_grad


def test_sums_are_the_same_every_time(sizes, device):
    tensors = [torch.randn(700, device=device), torch.randn(77, device=device)]
    for value, again in zip(
        heterogeneity_update(tensors), heterogeneity_update(tensors), strict=True
    ):
        assert torch.equal(value, again)


def test_dense_tensors_are_not_copied_whatever_the_order_of_their_dimensions(monkeypatch, device):
    base, seen = torch.randn(6, 5, 4, 3, device=device), []
    monkeypatch.setattr(heterogeneity_sums, "_sums_by_kernels", seen.extend)
    heterogeneity_update([base, base.permute(3, 1, 0, 2)])
    assert [each.data_ptr() for each in seen] == [base.data_ptr()] * 2


COMPILED = """
import itertools
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_linf.kernels import magnitudes

TYPES = dict(table="*i64", places="*i64", histogram="*i64", partial="*fp64", sums="*fp64")
chunk = dict(FIRST=27968, BINS=8864, DROPPED=47, CHUNK=magnitudes.CHUNK, WINDOW=magnitudes.WINDOW)
dtypes = magnitudes._DTYPES.values()
kernels = [(magnitudes._count_chunk, dict(chunk, DTYPE=dtype)) for dtype in dtypes]
kernels.append((magnitudes._add_chunks, dict(ITEMS=magnitudes._ITEMS)))
for capability, (kernel, constants) in itertools.product((80, 90), kernels):
    names = {
        name: "constexpr" if name.isupper() else TYPES.get(name, "i32") for name in kernel.arg_names
    }
    made = triton.compile(
        ASTSource(fn=kernel, signature=names, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": magnitudes._NUM_WARPS},
    )
    assert made.metadata.shared <= 2**14, made.metadata.shared  # a seventh of what there is
    assert ".ftz" not in made.asm["ptx"]  # subnormals stay what they are
"""


def test_it_compiles_for_gpus_of_nvidia():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
