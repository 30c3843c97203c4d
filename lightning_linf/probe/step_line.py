"""The loss along training's own last step, by forward passes alone."""

import math
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.errors import ProbeError
from lightning_linf.functional.batch_covariance import (
    batch_covariance_compute,
    batch_covariance_update,
)
from lightning_linf.functional.line_fit import line_fit
from lightning_linf.functional.line_search import next_multiple
from lightning_linf.probe.forward_loss import ForwardLoss
from lightning_linf.probe.parameter_line import ParameterLine
from lightning_linf.report import Estimated, StepLineReport


def measure_step_line(
    forward: ForwardLoss,
    line: ParameterLine,
    ranks: Ranks,
    *,
    max_forwards: int,
    whole: bool,
    copies: int = 1,
    on_forward: Callable[[], object] = lambda: None,
) -> StepLineReport | None:
    """Evaluate the loss at a few multiples of a step, and put the parameters back.

    Args:
        forward: The loss, not entered yet.
        line: The parameters at the end of the step.
        ranks: That measure together; all choose the same multiples.
        max_forwards: Number of multiples, and so of forward passes over the batches; at least 4.
        whole: As for :func:`~lightning_linf.functional.line_search.next_multiple`.
        copies: How many ranks have the same batches.
        on_forward: Called before each pass; it may raise.

    Returns:
        The report, without a learning rate; None if the step has changed nothing on any rank.
    """
    start = time.perf_counter()
    losses: dict[float, float] = {}

    def prepare(multiple: float) -> None:
        on_forward()
        line.move(multiple)

    ranks.start()
    with forward:
        try:
            while len(losses) < max_forwards:
                multiple = next_multiple(losses, whole=whole)
                losses[multiple] = forward.mean(
                    partial(prepare, multiple),
                    is_unchanged=line.has_kept,
                    is_kept=multiple != 1.0,  # the line has the bits of 1 while it is elsewhere
                )
                if multiple == 0.0 and not ranks.agree(None, float(line.has_moved))[0]:
                    return None
                if multiple == 0.0 and not math.isfinite(losses[0.0]):
                    raise ProbeError(
                        "probe: expected a finite loss at the start of the step, got "
                        f"{losses[0.0]}. Look at the parameters and the batch."
                    )
        finally:
            line.restore()
        fit = line_fit(
            losses,
            _covariance(forward, losses, ranks, copies),
            # A loss is rounded to its dtype evenly within a unit.
            rounding=forward.resolution / math.sqrt(12),
        )
    return StepLineReport(
        losses={f"{c:g}": losses[c] for c in sorted(losses)},
        change=Estimated(*fit.change),
        curvature=Estimated(*fit.curvature),
        lowest_multiple=Estimated(*fit.lowest),
        critical_multiple=Estimated(*fit.critical),
        critical_multiple_lower=fit.bracket[0],
        critical_multiple_upper=fit.bracket[1],
        roughness=fit.roughness,
        seconds=time.perf_counter() - start,
    )


def _covariance(
    forward: ForwardLoss, losses: dict[float, float], ranks: Ranks, copies: int
) -> Tensor | None:
    """Of the choice of batches, for the finite losses in the order of their multiples."""
    evaluated = list(losses)
    places = [evaluated.index(c) for c in sorted(losses) if math.isfinite(losses[c])]
    dtype = torch.float32 if ranks.device.type == "mps" else torch.float64

    def add() -> Tensor:
        rows = torch.tensor(forward.losses, dtype=dtype).T[:, places]  # (M, P)
        means = torch.tensor([losses[evaluated[place]] for place in places], dtype=dtype)
        weights = torch.tensor(forward.weights, dtype=dtype)
        squares = batch_covariance_update(rows, weights, means)
        counts = torch.tensor([sum(forward.weights), len(forward.weights)], dtype=dtype)
        return torch.cat([squares.reshape(-1), counts]).to(ranks.device)

    *squares, weight, count = ranks.sum(ranks.together(add)).tolist()
    matrix = torch.tensor(squares, dtype=torch.float64).view(len(places), len(places))
    return batch_covariance_compute(matrix, weight, count, copies)
