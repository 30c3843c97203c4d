"""Everything that a report holds, measured on one loss landscape."""

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
from torch import Tensor

from lightning_linf.distributed.heartbeat import phase
from lightning_linf.functional.spectral import MatrixSplit
from lightning_linf.functional.vector_shards import num_here
from lightning_linf.partition import Partition
from lightning_linf.probe.brackets import bracket_smoothness
from lightning_linf.probe.gradient import measure_gradient
from lightning_linf.probe.landscape import Landscape
from lightning_linf.probe.noise import MeasuredNoise
from lightning_linf.probe.partitions import on_shards
from lightning_linf.probe.products import HessianProducts
from lightning_linf.probe.spectral import SPECTRAL_HVPS, bracket_spectral
from lightning_linf.report import GeometryReport


def measure_landscape(
    landscape: Landscape,
    partitions: Sequence[Partition],
    *,
    matrices: MatrixSplit | None = None,
    num_probes: int = 16,
    max_hvps: int | None = None,
    noise: MeasuredNoise | None = None,
    last_step: Tensor | None = None,
    seed: int = 0,
    on_hvps: Callable[[int], object] | None = None,
) -> GeometryReport:
    """Measure a landscape that is entered; :func:`measure_geometry` enters one for you.

    Args:
        landscape: Inside its ``with``.
        partitions: From ``lightning_linf.probe.partitions.choose_partitions``.
        matrices: From ``lightning_linf.probe.spectral.split_matrices``, to measure the geometry of
            Muon, too.
        num_probes: At least 4.
        max_hvps: Budget of products.
        noise: From ``lightning_linf.probe.noise.measure_noise``.
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
    coordinates = landscape.reparameterization
    if last_step is not None and coordinates is not None:
        raise ValueError(
            "measure_geometry: expected no `last_step` together with a reparameterization, whose "
            "inverse it would need. Leave one of them out."
        )
    vector = landscape.parameters
    if last_step is not None and last_step.shape != (num_here(vector.num_params),):
        raise ValueError(
            f"measure_geometry: expected `last_step` of shape ({num_here(vector.num_params)},), "
            f"got {tuple(last_step.shape)}."
        )
    for partition in partitions:
        partition.check(vector.names, vector.shapes)
    partitions = on_shards(partitions, vector.device)
    products = HessianProducts(landscape, on_hvps)
    with phase("gradient"):
        facts = measure_gradient(landscape, partitions, products, last_step, matrices)
    del last_step
    with phase("products"):
        brackets = bracket_smoothness(
            landscape,
            partitions,
            products,
            num_probes=num_probes,
            max_hvps=max_hvps,
            seed=seed,
            num_other_hvps=0 if matrices is None else SPECTRAL_HVPS,
        )
    spectral = None
    if matrices is not None:
        spectral = bracket_spectral(
            brackets.direction, matrices, products, partitions, brackets.smoothness
        )
    one_one_norm, coarsest = brackets.coordinate, brackets.smoothness["global"]
    shares = one_one_norm.tensor_parts
    columns = {
        "num_params": torch.tensor(vector.sizes),
        "one_one_norm_share": shares / shares.sum().clamp(min=torch.finfo(shares.dtype).tiny),
        "density": facts.each.density,
        "gini": facts.each.gini,
    }
    if noise is not None:
        columns["signal_to_noise"] = noise.signal_to_noise
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return GeometryReport(
        num_params=vector.num_params,
        loss=landscape.loss(),
        density=float(facts.whole.density),
        one_one_norm=brackets.smoothness["coordinate"].upper,
        one_one_norm_relative_error=brackets.smoothness["coordinate"].upper_relative_error,
        one_one_norm_batch_excess=one_one_norm.batch_excess,
        step_advantage_relative_error=facts.step_error,
        lambda_max=coarsest.lower / vector.num_params,
        lambda_max_relative_error=coarsest.operator_upper_residual,
        dual_norm=facts.dual_norm,
        curvature=facts.curvature,
        smoothness=brackets.smoothness,
        spectral=spectral,
        r_squared=facts.r_squared,
        per_tensor={
            name: dict(zip(columns, row, strict=True))
            for name, row in zip(vector.names, rows, strict=True)
        },
        noise=None if noise is None else noise.report,
        secant=facts.secant,
        settings={
            "mode": landscape.mode,
            "matmul_precision": landscape.matmul_precision,
            "seed": seed,
            "num_batches": landscape.num_batches,
            "num_samples": landscape.num_samples,
            "num_probes": num_probes,
            "coordinates": "parameters" if coordinates is None else repr(coordinates),
            "dtype": str(vector.dtype).removeprefix("torch."),
            "version": version("lightning-linf"),
        },
        num_hvps=landscape.num_hvps - hvps_before,
        seconds=time.perf_counter() - begin,
    )
