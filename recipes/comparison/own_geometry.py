"""The geometry of the loss in the coordinates of the optimizer, at points of a run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.optim import Optimizer
from typing_extensions import override

from lightning_linf import GeometryReport, Rotation
from lightning_linf.functional import cauchy
from lightning_linf.functional.one_one_norm import cross_fitted_one_one_norm_compute
from lightning_linf.functional.product_sums import product_sums_init, product_sums_update
from lightning_linf.optim import Reparameterized
from lightning_linf.probe import Landscape, measure_landscape
from lightning_linf.probe.partitions import choose_partitions


@dataclass(eq=False)
class OwnGeometry(Callback):
    """Measure the geometry after evenly spread steps, the last time at the end of the run.

    The loss is the mean over all ranks and over the training batches that come next, of the network
    in training mode, where BatchNorm uses the statistics of the batch.

    Args:
        num_points: Number of measurements.
        partitions: Partitions whose smoothness is measured, beside "coordinate" and "global".
        rotations: Scope and strength of rotations; the (1,1)-norm is also measured in the
            coordinates that the optimizer would have in them.
        num_batches: Micro-batches over which the loss is a mean.
        num_probes: Probes of a (1,1)-norm, as in :func:`~lightning_linf.measure_geometry`.
    """

    num_points: int
    partitions: Sequence[str]
    rotations: Sequence[tuple[str, float]]
    num_batches: int
    num_probes: int
    rows: list[dict[str, Any]] = field(default_factory=list)  # one a measurement
    _num_steps: int = 0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._num_steps:
            return  # accumulating
        self._num_steps = trainer.global_step
        spread = range(1, self.num_points + 1)
        if self._num_steps in {trainer.max_steps * i // self.num_points for i in spread}:
            self.rows.append({"step": self._num_steps, **self._measure(trainer, pl_module)})

    def _measure(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        started = time.perf_counter()
        (optimizer,) = trainer.optimizers
        data: LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        with isolate_rng():  # an iterator draws a number, which training must not notice
            batches = list(islice(data.train_dataloader(), self.num_batches))

        total = partial(trainer.strategy.reduce, reduce_op="sum")

        def seen_by(optimizer: Optimizer) -> Landscape:
            coordinates = None
            if isinstance(optimizer, Reparameterized):
                parameters = [p for p in module.parameters() if p.requires_grad]
                coordinates = optimizer.coordinates(parameters)
            return Landscape(
                module,
                batches,
                mode="train",
                reparameterization=coordinates,
                reduce=total if trainer.world_size > 1 else None,
            )

        with seen_by(optimizer) as landscape:
            partitions = choose_partitions(module, self.partitions)  # type: ignore[arg-type]  # names
            report = measure_landscape(landscape, partitions, num_probes=self.num_probes)
        rotated, num_hvps = {}, report.num_hvps
        for scope, strength in self.rotations:
            with seen_by(_rotated(optimizer, scope, strength)) as landscape:
                norm = _one_one_norm(landscape, self.num_probes)
                rotated[f"{scope} {strength:g}"] = norm / report.num_params
                num_hvps += landscape.num_hvps
        seconds = time.perf_counter() - started
        return {**_row(report), "rotated": rotated, "num_hvps": num_hvps, "seconds": seconds}


def _one_one_norm(landscape: Landscape, num_probes: int) -> float:
    sizes = landscape.parameters.sizes
    like = landscape.gradient()
    sums = product_sums_init(sizes, num_probes, like)
    for probe in range(num_probes):
        vector = cauchy(len(like), seed=0, probe=probe, dtype=like.dtype, device=like.device)
        product_sums_update(sums, landscape.hvp(vector), probe, sizes)
    return float(cross_fitted_one_one_norm_compute(sums, sizes, seed=0).value)


def _rotated(optimizer: Optimizer, scope: str, strength: float) -> Reparameterized:
    """Make the optimizer that would run in rotated coordinates, one rotation a group."""
    return Reparameterized(
        [{"params": group["params"]} for group in optimizer.param_groups],
        lambda params: torch.optim.SGD(params, lr=1.0),
        Rotation(scope, strength=strength),  # type: ignore[arg-type]  # a name, from the variants
    )


def _row(report: GeometryReport) -> dict[str, Any]:
    """Keep what the comparison shows; every smoothness is divided by d."""
    d = report.num_params
    return {
        "num_params": d,
        "one_one_norm_per_param": report.one_one_norm_per_param,
        "one_one_norm_relative_error": report.one_one_norm_relative_error,
        "lambda_max": report.lambda_max,
        "lambda_max_relative_error": report.lambda_max_relative_error,
        "density": report.density,
        # H(Phi) / d for coordinate and global, an upper bound of it for others
        "smoothness": {name: block.upper / d for name, block in report.smoothness.items()},
        "operator_norm": {
            name: [block.lower / d, block.operator_upper / d]
            for name, block in report.smoothness.items()
        },
    }
