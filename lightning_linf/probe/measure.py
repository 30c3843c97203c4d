"""The geometry of a module's loss landscape, measured in one call."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_linf.errors import ProbeError
from lightning_linf.functional.between_within import between_within
from lightning_linf.functional.blocks import (
    block_norm,
    dual_block_norm,
    dual_direction,
    wide_dtype,
)
from lightning_linf.functional.heterogeneity import (
    heterogeneity_compute,
    heterogeneity_update,
    merge_tensors,
)
from lightning_linf.functional.linear_map import LinearMap
from lightning_linf.functional.noise import (
    NoiseSums,
    noise_compute,
    noise_init,
    noise_merge,
    noise_update,
)
from lightning_linf.partition import Partition
from lightning_linf.partition.attention import FusedQKV
from lightning_linf.partition.structure import PartitionName, check_structure
from lightning_linf.probe.arguments import check_callable, check_whole
from lightning_linf.probe.batch_list import list_batches
from lightning_linf.probe.brackets import Halves, bracket_smoothness, checked_products
from lightning_linf.probe.landscape import Landscape, Mode
from lightning_linf.probe.partitions import choose_partitions, default_partitions
from lightning_linf.probe.unwrapped import unwrapped
from lightning_linf.reparam import Reparameterization
from lightning_linf.report import GeometryReport, NoiseReport


def measure_geometry(
    module: nn.Module,
    batches: Sequence[Any] | Iterable[Any],
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    partitions: Sequence[PartitionName | Partition] | None = None,
    output_dims: Mapping[str, int] | None = None,
    fused_qkv: FusedQKV | None = None,
    num_probes: int = 16,
    max_hvps: int | None = None,
    noise_batches: Sequence[Any] | Iterable[Any] | None = None,
    reparameterization: Reparameterization | LinearMap | None = None,
    mode: Mode = "eval",
    seed: int = 0,
    on_hvps: Callable[[int], object] | None = None,
) -> GeometryReport:
    """Measure which geometry a loss landscape has, and which optimizer it favours.

    For each partition Phi of the parameters into blocks: both ends of the smoothness N(Phi) that
    one step of steepest descent feels, a bound of the blockwise smoothness H(Phi), the gradient's
    dual norm, the decrease that a step promises and its advantage over SGD's geometry, and how
    alike gradients are within blocks; besides, the gradient's heterogeneity and its noise. Leaves
    the module as it was, to the last bit.

    Args:
        module: A LightningModule, or any module together with ``loss``.
        batches: What the loss is measured on: its mean over them (:class:`Landscape`). A list, or a
            loader that has a length, of which all are taken and held.
        loss: From module and batch to a scalar. Default: the module's ``probe_loss(batch)`` where
            it has one, else its ``training_step``.
        partitions: Names for :meth:`~lightning_linf.partition.Partition.of`, or partitions of the
            module. "coordinate" and "global", the geometries of Adam and of SGD, are always
            measured. Default: these two, "row" and "tensor"; "row" is left out where a parameter
            has no rows, and ``settings["left_out"]`` says why.
        output_dims: For "row" and "column", as in :meth:`~lightning_linf.Partition.of`.
        fused_qkv: For "head", as there.
        num_probes: Probes for each partition's upper end, at least 4; 16 give the (1,1)-norm to
            about a tenth. With no more parameters than probes all brackets are exact or nearly so.
        max_hvps: Budget of Hessian-vector products in all. Default: ``num_probes`` + 41 for each
            partition.
        noise_batches: Microbatches for the gradient noise, at least 2, one gradient each. Default:
            ``batches`` if there are two or more; with one the noise is not measured.
        reparameterization: Measure in coordinates phi with parameters theta = A phi. What would
            training see after a rotation? ``Rotation(seed=0)`` leaves the eigenvalues of the
            Hessian and the 2-norm of the gradient as they are, and changes the (1,1)-norm.
            Partitions, too, are then those of phi.
        mode: "eval" for the network as it predicts, "train" for dropout with fixed masks and
            BatchNorm with batch statistics.
        seed: Of all random numbers.
        on_hvps: Called with the number of products after each pass, for progress bars.

    Returns:
        The report; ``print`` shows it.

    Raises:
        ValueError: If an argument has a wrong value, or a parameter no place in a partition that
            was asked for.
        ProbeError: If the loss cannot be differentiated twice, or a number is not finite; or if
            it is another when evaluated again, or its second derivatives are wrong
            (:meth:`Landscape.check`, which costs about 7 gradients).

    Source:
        Quantities: Xie, Mohamadi & Li, arXiv:2410.08198. Cost: with one batch about two gradients a
        product; see :func:`~lightning_linf.functional.operator_norm` for the brackets.

    Example:
        >>> module, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0]])
        >>> report = measure_geometry(module, [x], loss=lambda m, x: m(x).square().mean())
        >>> round(report.one_one_norm, 3), round(report.lambda_max, 3)  # of the Hessian 2 x x^T
        (18.0, 10.0)
    """
    module = unwrapped("measure_geometry", module)
    batches = list_batches("measure_geometry", "batches", batches)
    check_callable("measure_geometry", "on_hvps", on_hvps)
    check_structure("measure_geometry", output_dims, fused_qkv)
    if isinstance(partitions, (str, Partition)):
        raise ValueError(
            f"measure_geometry: expected a list of `partitions`, got {partitions!r}. Write "
            "[partition]."
        )
    options: dict[str, Any] = {
        "loss": loss, "mode": mode, "seed": seed, "reparameterization": reparameterization,
    }  # fmt: skip
    landscape = Landscape(module, batches, **options)
    structure: dict[str, Any] = {"output_dims": output_dims, "fused_qkv": fused_qkv}
    left_out: dict[str, str] = {}
    if partitions is None:
        partitions, left_out = default_partitions(module, structure)
    chosen = choose_partitions(module, partitions, **structure)
    noise: NoiseSums | None = None
    if noise_batches is not None:
        noise_batches = list_batches("measure_geometry", "noise_batches", noise_batches)
        with Landscape(module, noise_batches, **options) as noise_landscape:
            noise = measure_noise(noise_landscape)
    with landscape:
        remark = landscape.check()
        if remark is not None:
            rank_zero_warn(f"measure_geometry: {remark}")
        if noise_batches is None and len(batches) > 1:
            noise = measure_noise(landscape)
        report = measure_landscape(
            landscape,
            chosen,
            num_probes=num_probes,
            max_hvps=max_hvps,
            noise=noise,
            seed=seed,
            on_hvps=on_hvps,
        )
    return replace(report, settings={**report.settings, **left_out})


def measure_noise(landscape: Landscape) -> NoiseSums:
    """Gather the gradient of each batch of each rank, at one gradient each.

    Raises:
        ProbeError: If there are fewer than two batches in all.
    """
    vector = landscape.parameters
    like = torch.empty(0, dtype=vector.dtype, device=vector.device)
    ranks = landscape.ranks
    sums = ranks.together(lambda: noise_init(vector.num_params, like))
    landscape.each_gradient(lambda gradient, weight: noise_update(sums, gradient, weight))
    if not ranks.is_alone:
        spare = ranks.together(lambda: torch.empty_like(sums.mean))
        sums = noise_merge(sums, ranks.sum, spare)
    if not sums.counts.sum() > 0:
        raise ProbeError(
            "measure_geometry: expected at least two batches for the gradient noise, got one. "
            "Pass more `noise_batches`."
        )
    return sums


def measure_landscape(
    landscape: Landscape,
    partitions: Sequence[Partition],
    *,
    num_probes: int = 16,
    max_hvps: int | None = None,
    noise: NoiseSums | None = None,
    last_step: Tensor | None = None,
    seed: int = 0,
    on_hvps: Callable[[int], object] | None = None,
) -> GeometryReport:
    """Measure a landscape that is entered; :func:`measure_geometry` enters one for you.

    Args:
        landscape: Inside its ``with``.
        partitions: From :func:`~lightning_linf.probe.partitions.choose_partitions`.
        num_probes: At least 4.
        max_hvps: Budget of products.
        noise: From :func:`measure_noise`.
        last_step: The present point minus an earlier one, shape (d,): training's own step, say.
            The secant smoothness along it costs one gradient more, and needs a landscape without
            reparameterization.
        seed: Of the probes.
        on_hvps: Called with the number of products after each pass.

    Raises:
        ValueError: If an argument has a wrong value.
        ProbeError: If a number is not finite, and what :class:`Landscape` raises.
    """
    begin, hvps_before = time.perf_counter(), landscape.num_hvps
    check_whole("measure_geometry", "num_probes", num_probes, 4)
    check_whole("measure_geometry", "max_hvps", max_hvps, 1, or_none=True)
    if last_step is not None and landscape.reparameterization is not None:
        raise ValueError(
            "measure_geometry: expected no `last_step` together with a reparameterization, whose "
            "inverse it would need. Leave one of them out."
        )
    vector = landscape.parameters
    if last_step is not None and last_step.shape != (vector.num_params,):
        raise ValueError(
            f"measure_geometry: expected `last_step` of shape ({vector.num_params},), "
            f"got {tuple(last_step.shape)}."
        )
    for partition in partitions:
        partition.check(vector.names, vector.shapes)
    gradient = landscape.gradient()
    if not gradient.isfinite().all():
        raise ProbeError(
            "probe: expected a finite gradient, got inf or NaN although the loss is finite. Look "
            "for a square root, logarithm or norm at zero in the loss."
        )
    multiply = checked_products(landscape.hvp, on_hvps)
    dual_norm, curvature = _along_gradient(multiply, gradient, partitions)
    first_half = landscape.first_half()
    halves: Halves | None = None
    if first_half is not None:
        of_halves = partial(landscape.hvp_of_halves, first_half=first_half)
        halves = Halves(checked_products(of_halves, on_hvps), first_half)
    brackets = bracket_smoothness(
        landscape, partitions, multiply, halves,
        num_probes=num_probes, max_hvps=max_hvps, seed=seed,
    )  # fmt: skip
    coordinate = brackets.smoothness["coordinate"]
    sums = heterogeneity_update(vector.unflatten(gradient))
    each, whole = heterogeneity_compute(sums), heterogeneity_compute(merge_tensors(sums))
    columns = {
        "num_params": torch.tensor(vector.sizes),
        "one_one_norm_share": brackets.tensor_shares,
        "density": each.density,
        "gini": each.gini,
    }
    summary: NoiseReport | None = None
    if noise is not None:
        result = noise_compute(noise, vector.sizes, {p.name: p for p in partitions})
        columns["signal_to_noise"] = result.tensor_signal_to_noise
        summary = NoiseReport(
            num_microbatches=int(noise.counts.sum()) + 1,
            weight=float(noise.weight),
            trace=float(result.trace),
            trace_relative_error=float(result.trace_relative_error),
            noise_scale=float(result.noise_scale),
            block_noise={name: float(value) for name, value in result.block_noise.items()},
        )
    values = [column.tolist() for column in columns.values()]
    return GeometryReport(
        num_params=vector.num_params,
        loss=landscape.loss(),
        density=float(whole.density),
        one_one_norm=coordinate.upper,
        one_one_norm_relative_error=coordinate.upper_relative_error,
        lambda_max=brackets.lambda_max,
        lambda_max_relative_error=brackets.lambda_max_relative_error,
        dual_norm=dual_norm,
        curvature=curvature,
        smoothness=brackets.smoothness,
        r_squared={p.name: float(between_within(gradient, p).r_squared) for p in partitions},
        per_tensor={
            name: dict(zip(columns, row, strict=True))
            for name, *row in zip(vector.names, *values, strict=True)
        },
        noise=summary,
        secant=_secant(landscape, gradient, last_step, partitions),
        settings={
            "mode": landscape.mode,
            "seed": seed,
            "num_batches": landscape.num_batches,
            "num_probes": num_probes,
            "coordinates": (
                "parameters"
                if landscape.reparameterization is None
                else repr(landscape.reparameterization)
            ),
        },
        num_hvps=landscape.num_hvps - hvps_before,
        seconds=time.perf_counter() - begin,
        one_one_norm_batch_excess=brackets.batch_excess,
    )


def _along_gradient(
    multiply: Callable[[Tensor], Tensor], gradient: Tensor, partitions: Sequence[Partition]
) -> tuple[dict[str, float], dict[str, float]]:
    """Dual norm of the gradient, and curvature along the step of norm 1 that reaches it."""
    names = [partition.name for partition in partitions]
    directions = torch.stack([dual_direction(gradient, partition) for partition in partitions])
    products = multiply(directions)
    curvatures = (directions * products).sum(dim=1, dtype=wide_dtype(gradient)).tolist()
    dual_norms = [float(dual_block_norm(gradient, partition)) for partition in partitions]
    return dict(zip(names, dual_norms, strict=True)), dict(zip(names, curvatures, strict=True))


def _secant(
    landscape: Landscape,
    gradient: Tensor,
    last_step: Tensor | None,
    partitions: Sequence[Partition],
) -> dict[str, float] | None:
    """Change of the gradient over the length of the step, in each partition's norms."""
    if last_step is None or not last_step.any():
        return None
    change = gradient - landscape.gradient(-last_step)
    return {
        p.name: float(dual_block_norm(change, p) / block_norm(last_step, p)) for p in partitions
    }
