"""What a report says of the gradient at the present point, and of the loss along it."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lightning_linf.errors import ProbeError
from lightning_linf.functional.finite import all_finite
from lightning_linf.functional.heterogeneity import Heterogeneity, each_and_whole
from lightning_linf.functional.heterogeneity_sums import heterogeneity_update, over_shards
from lightning_linf.functional.r_squared import between_within
from lightning_linf.functional.spectral import MatrixSplit
from lightning_linf.functional.vector_shards import any_nonzero, sizes_here
from lightning_linf.partition import Partition
from lightning_linf.partition_names import SPECTRAL
from lightning_linf.probe.along_steps import curvatures, dual_norms, secants
from lightning_linf.probe.landscape import Landscape
from lightning_linf.probe.products import HessianProducts
from lightning_linf.probe.spectral import measure_spectral_step
from lightning_linf.probe.step_errors import step_errors


class GradientFacts(NamedTuple):
    """Numbers; the gradient itself, of d numbers, is not kept beside the products that follow."""

    dual_norm: dict[str, float]  # by partition, as the next four
    curvature: dict[str, float]
    r_squared: dict[str, float]
    secant: dict[str, float] | None
    step_error: dict[str, float] | None  # of the curvatures' advantages; None with one batch
    each: Heterogeneity  # (T,)
    whole: Heterogeneity  # ()


def measure_gradient(
    landscape: Landscape,
    partitions: Sequence[Partition],
    products: HessianProducts,
    last_step: Tensor | None,
    matrices: MatrixSplit | None = None,
) -> GradientFacts:
    """Measure all that needs the gradient, at one product for each partition.

    With several batches it takes one gradient more, for the errors.

    Args:
        landscape: Inside its ``with``.
        partitions: Of its parameters.
        products: With its Hessian.
        last_step: A step (d,) that led here, at the cost of a gradient more, or None.
        matrices: For the key "spectral" of the dual norm and the curvature, at one product more.

    Raises:
        ProbeError: If the gradient is not finite.
    """
    earlier = None
    if last_step is not None and any_nonzero(last_step):
        earlier = landscape.gradient(-last_step)  # first: no evaluation may follow a kept graph
    gradient = landscape.gradient()
    require_finite_gradient(gradient)
    secant = None
    if earlier is not None and last_step is not None:
        secant = secants(earlier, gradient, last_step, partitions)
        del earlier
    sums = heterogeneity_update(gradient.split_with_sizes(sizes_here(landscape.parameters.sizes)))
    each, whole = each_and_whole(over_shards(sums))
    dual_norm = dual_norms(gradient, partitions)
    along = curvatures(gradient, partitions, products)
    several = products.first_half is not None
    names = [partition.name for partition in partitions]
    curvature = dict(zip(names, along.of_mean.tolist(), strict=True))
    if matrices is not None:
        spectral = measure_spectral_step(gradient, matrices, products)
        dual_norm[SPECTRAL], curvature[SPECTRAL] = spectral
    return GradientFacts(
        dual_norm=dual_norm,
        curvature=curvature,
        r_squared={p.name: float(between_within(gradient, p).r_squared) for p in partitions},
        secant=secant,
        step_error=(
            step_errors(landscape, gradient, partitions, dual_norm, along) if several else None
        ),
        each=each,
        whole=whole,
    )


def require_finite_gradient(gradient: Tensor) -> None:
    """Raise a ProbeError if a gradient has inf or NaN."""
    if not all_finite(gradient):
        raise ProbeError(
            "probe: expected a finite gradient, got inf or NaN although the loss is finite. Look "
            "for a square root, logarithm or norm at zero in the loss."
        )
