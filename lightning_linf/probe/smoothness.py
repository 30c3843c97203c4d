"""The smoothness of a landscape along l-infinity and along l2, from Hessian-vector products."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_linf.functional.cross_fit import (
    cross_fit_compute,
    cross_fit_init,
    cross_fit_update,
)
from lightning_linf.functional.lambda_max import lambda_max
from lightning_linf.functional.random import cauchy, derive_seed, normal
from lightning_linf.probe.errors import ProbeError
from lightning_linf.probe.landscape import Landscape

# Of |u.Hv - v.Hu| to what cancels in it: float32 gives 1e-6, a wrong second derivative over 1e-2.
_SYMMETRY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Smoothness:
    """Smoothness of a landscape at one point, in loss per parameter squared."""

    num_params: int  # d
    loss: float
    one_one_norm: float  # sum of |H_ij|: the constant of Adam's geometry
    one_one_norm_relative_error: float  # standard error
    lambda_max: float  # largest |eigenvalue|; d times it is the constant of SGD's geometry
    lambda_max_relative_error: float  # residual: an eigenvalue lies within it
    tensor_shares: dict[str, float]  # each parameter tensor's rows' share of one_one_norm
    num_hvps: int
    seconds: float

    @property
    def one_one_norm_per_param(self) -> float:
        """The (1,1)-norm over d, comparable with ``lambda_max``."""
        return self.one_one_norm / self.num_params

    @property
    def ratio(self) -> float:
        """How many times smoother the loss is along l-infinity: d lambda_max / (1,1)-norm."""
        if self.one_one_norm == 0:
            return float("nan")  # a linear loss: neither constant means anything
        return self.num_params * self.lambda_max / self.one_one_norm


def measure_smoothness(
    landscape: Landscape,
    *,
    num_probes: int = 16,
    max_lanczos_hvps: int = 32,
    tol: float = 1e-2,
    seed: int = 0,
    on_hvps: Callable[[int], object] | None = None,
) -> Smoothness:
    """Estimate the (1,1)-norm of the Hessian and its largest absolute eigenvalue.

    Args:
        landscape: Entered (inside its ``with``).
        num_probes: Cauchy probes for the (1,1)-norm, at least 4. With 16 its relative error is
            about 0.1.
        max_lanczos_hvps: Budget of products for ``lambda_max``.
        tol: Residual over value at which ``lambda_max`` is good enough.
        seed: Of the probes.
        on_hvps: Called with the number of products after each pass, for progress bars.

    Raises:
        ValueError: If ``num_probes`` is below 4.
        ProbeError: If a product is not finite or the Hessian comes out unsymmetric, which means
            that an operation's second derivative is wrong; and what :class:`Landscape` raises.

    Source:
        See :func:`~lightning_linf.functional.cross_fitted_one_one_norm` and
        :func:`~lightning_linf.functional.lambda_max`. Memory beside the landscape's: about six
        vectors of d numbers, whatever ``num_probes`` is.
    """
    begin, hvps_before = time.perf_counter(), landscape.num_hvps
    vector = landscape.parameters
    probe_seed = derive_seed("one_one_norm", seed)

    def multiply(vectors: Tensor) -> Tensor:
        products = landscape.hvp(vectors)
        if not products.isfinite().all():
            raise ProbeError(
                "probe: expected finite Hessian-vector products, got inf or NaN although the loss "
                "is finite. Look for a square root, logarithm or norm at zero in the loss."
            )
        if on_hvps is not None:
            on_hvps(1 if vectors.ndim == 1 else len(vectors))
        return products

    def draw(probe: int) -> Tensor:
        return cauchy(
            vector.num_params,
            seed=probe_seed,
            probe=probe,
            dtype=vector.dtype,
            device=vector.device,
        )

    like = torch.empty(0, dtype=vector.dtype, device=vector.device)
    sums = cross_fit_init(vector.sizes, num_probes, like)
    first_product: Tensor | None = None
    step = landscape.probes_per_pass
    for first in range(0, num_probes, step):
        probes = range(first, min(first + step, num_probes))
        products = multiply(torch.stack([draw(probe) for probe in probes]))
        for probe, product in zip(probes, products, strict=True):
            cross_fit_update(sums, product, probe, vector.sizes)
            if probe == 0:
                first_product = product.clone()
            elif probe == 1 and first_product is not None:
                _check_symmetry(draw(0), first_product, draw(1), product)
                first_product = None
    norm = cross_fit_compute(sums, vector.sizes, probe_seed)

    start = normal(
        vector.num_params,
        seed=derive_seed("lanczos", seed),
        dtype=vector.dtype,
        device=vector.device,
    )
    extreme = lambda_max(multiply, start, max_hvps=max_lanczos_hvps, tol=tol)
    total = norm.value if norm.value > 0 else torch.ones_like(norm.value)
    return Smoothness(
        num_params=vector.num_params,
        loss=landscape.loss(),
        one_one_norm=float(norm.value),
        one_one_norm_relative_error=float(norm.relative_error),
        lambda_max=extreme.value,
        lambda_max_relative_error=extreme.residual / extreme.value if extreme.value else 0.0,
        tensor_shares=dict(zip(vector.names, (norm.tensor_norms / total).tolist(), strict=True)),
        num_hvps=landscape.num_hvps - hvps_before,
        seconds=time.perf_counter() - begin,
    )


def _check_symmetry(u: Tensor, hu: Tensor, v: Tensor, hv: Tensor) -> None:
    """Compare u.Hv with v.Hu, which costs no further product."""
    difference = torch.dot(u, hv) - torch.dot(v, hu)
    cancelled = torch.dot(u.abs(), hv.abs()) + torch.dot(v.abs(), hu.abs())
    if difference.abs() > _SYMMETRY_TOLERANCE * cancelled:
        raise ProbeError(
            "probe: expected a symmetric Hessian, but u.Hv and v.Hu differ by "
            f"{float(difference.abs() / cancelled):.1e} of what they sum. An operation in the loss "
            "has a wrong second derivative (a custom autograd.Function whose backward is not "
            "differentiable, say). Use plain PyTorch for the probe, e.g. in probe_loss(batch)."
        )
