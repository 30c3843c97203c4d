"""What the kept records say of a run, for sentences about it."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_linf import quantities
from lightning_linf.panels.payload import counted
from lightning_linf.runs.load import Run, load


class UntrueError(AssertionError):
    """A sentence that the records do not bear out."""


@dataclass(frozen=True)
class Measured:
    """A run of the gallery.

    Args:
        folder: Of its records.
    """

    folder: Path

    @cached_property
    def run(self) -> Run:
        """All that a page shows."""
        return load([self.folder])[0]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config that it was trained with."""
        content: dict[str, Any] = json.loads((self.folder / "config.json").read_text("utf-8"))
        return content

    @cached_property
    def num_params(self) -> int:
        """How many parameters were trained."""
        assert self.run.report is not None
        return int(self.run.report.rows[0][1].replace(",", ""))

    def curve(self, name: str) -> dict[int, float]:
        """Give the values by step, counted from 1: of a quantity, or of what training logged."""
        points = self.run.scalars.get(f"{quantities.PREFIX}{name}") or self.run.own[name]
        return {counted(step): value for step, value, *_ in points}

    def finite(self, name: str) -> dict[int, float]:
        """Give those of the values that are finite numbers."""
        return {step: value for step, value in self.curve(name).items() if math.isfinite(value)}

    def last(self, name: str) -> float:
        """Give the last value."""
        return list(self.curve(name).values())[-1]

    def by_tensor(self, column: str) -> dict[str, float]:
        """Give a column of the last record of the gradient's heterogeneity."""
        table = self.run.tables[quantities.HETEROGENEITY.record_tag]
        names = table.metadata.tensors
        values = table.values[-1, : len(names), table.metadata.slice_of(column).start]
        return dict(zip(names, values.tolist(), strict=True))

    def verdict(self) -> str:
        """Give the first sentence of the last report's verdict."""
        assert self.run.report is not None
        return self.run.report.verdict.split(". ")[0]


def number(value: float) -> str:
    """Write with three digits."""
    short = float(f"{value:.3g}")
    return f"{short:,.0f}" if abs(short) >= 1000 else f"{short:.3g}"


def first(steps: Iterable[int], what: str) -> int:
    """Give the first of some steps.

    Raises:
        UntrueError: If there are none.
    """
    for step in steps:
        return step
    raise UntrueError(f"gallery: expected a step with {what}, got none.")


def claim(text: str, *conditions: bool) -> str:
    """Give the sentence, if the records bear it out.

    Raises:
        UntrueError: If they do not. It has to be written anew then, and not the records.
    """
    if not all(conditions):
        raise UntrueError(f"gallery: expected records that bear this out, got others: {text}")
    return text
