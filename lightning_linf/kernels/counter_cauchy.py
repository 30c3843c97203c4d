"""Standard Cauchy numbers from counters, in one launch that writes and reads nothing."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


# New offsets and keys must not compile it again.
@triton.jit(do_not_specialize=["offset", "key"])
def _cauchy(
    result,
    size,
    offset,
    key,
    MULTIPLIER_0: tl.constexpr,
    MULTIPLIER_1: tl.constexpr,
    MULTIPLIER_2: tl.constexpr,
    ANGLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    zeros = tl.zeros((BLOCK,), tl.int32)
    x = entry.to(tl.uint32) + (zeros + offset).to(tl.uint32)  # modulo 2^32
    x = (x ^ (x >> 16)) * tl.full((BLOCK,), MULTIPLIER_0, tl.uint32)
    x = x ^ (zeros + key).to(tl.uint32)
    x = (x ^ (x >> 15)) * tl.full((BLOCK,), MULTIPLIER_1, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full((BLOCK,), MULTIPLIER_2, tl.uint32)
    x = x ^ (x >> 16)
    odd = (x | tl.full((BLOCK,), 1, tl.uint32)).to(tl.int32)
    if WIDE:
        turn = odd.to(tl.float64) * tl.full((BLOCK,), ANGLE, tl.float64)
        sine, cosine = tl.sin(turn), tl.cos(turn)
    else:
        # Their ratio is the tangent up to 1.4e-8 within an eighth of a turn: the continued fraction
        # of Lambert. The library's sine and cosine would bring code for angles of any size.
        turn = odd.to(tl.float32) * tl.full((BLOCK,), ANGLE, tl.float32)
        square = turn * turn
        sine = turn * (945.0 + square * (square - 105.0))
        cosine = 945.0 + square * (15.0 * square - 420.0)
    is_reciprocal = (x & tl.full((BLOCK,), 1, tl.uint32)) != 0
    value = tl.where(is_reciprocal, cosine, sine) / tl.where(is_reciprocal, sine, cosine)
    tl.store(result + entry, value.to(result.dtype.element_ty), mask=entry < size)


def fill_with_cauchy(
    result: Tensor, *, offset: int, key: int, multipliers: tuple[int, int, int], angle: float
) -> None:
    """Write what ``functional.random`` says in plain torch into a contiguous vector (d,).

    Args:
        result: Where to write.
        offset: Counter of the first entry plus the first word of the key, as an int32.
        key: The second word of the key, as an int32.
        multipliers: Those of the three rounds of the hash.
        angle: What a word of 31 bits is multiplied with to give the angle in radians.
    """
    if not len(result):
        return
    with torch.cuda.device(result.device) if result.is_cuda else torch.no_grad():
        _cauchy[(triton.cdiv(len(result), _BLOCK),)](
            result, len(result), offset, key, *multipliers, angle,
            WIDE=result.dtype == torch.float64, BLOCK=_BLOCK,
        )  # fmt: skip
