"""The record of a measurement, made of tensors."""

import os
import time
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lightning_linf.record import LogHistogram, Record
from lightning_linf.report import GeometryReport


def make_record(
    step: int,
    tag: str,
    scalars: Mapping[str, float],
    tensor_names: list[str],
    columns: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
    histogram: tuple[Tensor, Tensor] | None,
    report: GeometryReport | None,
    own_steps_from: int = 0,
) -> Record:
    """Turn tensors into plain data."""
    counted = None
    if histogram is not None and histogram[1].numel() > 0:  # a gradient of zeros has none
        counted = LogHistogram(*(part.tolist() for part in histogram))
    return Record(
        step=step,
        tag=tag,
        scalars=dict(scalars),
        tensors=tensor_names,
        columns={name: column.float().tolist() for name, column in columns.items()},
        whole={name: value.float().tolist() for name, value in whole.items()},
        histogram=counted,
        # The table has a row for each tensor already.
        report=None if report is None else replace(report, per_tensor={}).to_dict(),
        restart=num_restarts(),
        own_steps_from=own_steps_from,
        wall_time=time.time(),
    )


def num_restarts() -> int:
    """Count how many times torchrun has started the processes of this training again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
