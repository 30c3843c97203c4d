"""Products with the Hessian of a landscape that are checked, and those of halves of its batches."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_linf.errors import ProbeError
from lightning_linf.functional.finite import all_finite
from lightning_linf.functional.full_precision import MatmulPrecision
from lightning_linf.functional.in_pieces import largest_magnitude, sum_in_pieces
from lightning_linf.probe.landscape import Landscape

# Of |u.Hv - v.Hu| to what cancels in it: float32 gives 1e-6, TF32 up to 3e-4 (where d is about 15;
# 5e-5 where it is large), a wrong second derivative over 1e-2.
_SYMMETRY_TOLERANCE: dict[MatmulPrecision, float] = {"highest": 1e-3, "high": 5e-3}


class HessianProducts:
    """Multiply vectors with the Hessian of a landscape, and refuse inf and NaN.

    Args:
        landscape: Inside its ``with``. With several ranks, all must make the same calls.
        on_hvps: Called with the number of products after each pass, for progress bars.

    Attributes:
        first_half: Share of the first half of the batches in their weights; None if they have no
            two halves.
        symmetry_tolerance: How unsymmetric the Hessian may come out, for the checks below.
        probes_per_pass: With how many vectors to multiply at a time.
    """

    def __init__(self, landscape: Landscape, on_hvps: Callable[[int], object] | None) -> None:
        self._landscape = landscape
        self._on_hvps = on_hvps
        self.first_half = landscape.first_half()
        self.symmetry_tolerance = _SYMMETRY_TOLERANCE[landscape.matmul_precision]
        self.probes_per_pass = landscape.probes_per_pass

    def of_all(self, vectors: Tensor) -> Tensor:
        """Products with the Hessian of all batches, of the shape of the vectors: (d,) or (c, d)."""
        return self._checked(self._landscape.hvp(vectors), 1 if vectors.ndim == 1 else len(vectors))

    def of_halves(self, vectors: Tensor) -> Tensor:
        """Products with the Hessians of both halves of the batches. Shapes: (c, d) -> (2, c, d)."""
        assert self.first_half is not None
        products = self._landscape.hvp_of_halves(vectors, self.first_half)
        return self._checked(products, len(vectors))

    def curvatures(self, vectors: Tensor, visit: Callable[[Tensor, float], object]) -> Tensor:
        """Compute v^T H v for the vectors (c, d) of a pass, as :meth:`Landscape.curvatures`."""
        return self._checked(self._landscape.curvatures(vectors, visit), len(vectors))

    def mean_of(self, halves: Tensor) -> Tensor:
        """Products with the Hessian of all batches from those of halves. (2, c, d) -> (c, d)."""
        assert self.first_half is not None
        return torch.lerp(halves[1], halves[0], self.first_half)

    def _checked(self, products: Tensor, count: int) -> Tensor:
        if not all_finite(products):
            raise ProbeError(
                "probe: expected finite Hessian-vector products, got inf or NaN although the loss "
                "is finite. Look for a square root, logarithm or norm at zero in the loss."
            )
        if self._on_hvps is not None:
            self._on_hvps(count)
        return products


def as_rows(vectors: Sequence[Tensor]) -> Tensor:
    """Stack vectors (d,) to rows (c, d); one alone is not copied."""
    return vectors[0][None] if len(vectors) == 1 else torch.stack(list(vectors))


def check_symmetric(hessian: Tensor, tolerance: float) -> None:
    """Compare a whole Hessian (d, d) with its transpose: they may differ by rounding alone."""
    scaled = hessian / scale_of(hessian)
    _require_small(
        (scaled - scaled.T).abs().sum(), 2 * scaled.abs().sum(), tolerance, hessian.dtype
    )


def check_products(u: Tensor, hu: Tensor, v: Tensor, hv: Tensor, tolerance: float) -> None:
    """Compare u.Hv with v.Hu, which costs no further product: they may differ by rounding alone."""
    scale = torch.maximum(scale_of(hu), scale_of(hv))
    vectors = (u, hu, v, hv)

    def difference(u: Tensor, hu: Tensor, v: Tensor, hv: Tensor) -> Tensor:
        return u * (hv / scale) - v * (hu / scale)

    def cancelled(u: Tensor, hu: Tensor, v: Tensor, hv: Tensor) -> Tensor:
        return (u * (hv / scale)).abs_() + (v * (hu / scale)).abs_()

    _require_small(
        sum_in_pieces(difference, *vectors).abs(),
        sum_in_pieces(cancelled, *vectors),
        tolerance,
        hu.dtype,
    )


def scale_of(values: Tensor) -> Tensor:
    """Largest magnitude, or the least normal number, to divide by. Shape: ()."""
    return largest_magnitude(values).clamp(min=torch.finfo(values.dtype).tiny)


def _require_small(
    difference: Tensor, cancelled: Tensor, tolerance: float, dtype: torch.dtype
) -> None:
    if difference > tolerance * cancelled:
        in_float64 = (
            ", or of float32 where all samples are fitted and the loss is nearly 0 (measure a copy "
            "of the module and its batches in float64)"
        )
        raise ProbeError(
            "probe: expected a symmetric Hessian, but u.Hv and v.Hu differ by "
            f"{float(difference / cancelled):.1e} of what they sum. An operation in the loss "
            "has a wrong second derivative (a custom autograd.Function whose backward is not "
            "differentiable, say). Use plain PyTorch for the probe, e.g. in probe_loss(batch). Or "
            "derivatives are lost in rounding: of a torch.autocast in the loss (leave it out in "
            f"probe_loss(batch)){in_float64 if dtype == torch.float32 else ''}."
        )
