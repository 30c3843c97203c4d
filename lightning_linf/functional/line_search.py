"""Where to evaluate a loss along a step next, to find the largest multiple that still lowers it."""

import math
from collections.abc import Mapping

_MOST_GROWTH = 8.0  # from one multiple to the next, while the loss still falls
_LEAST_GROWTH = 1.5
_TIGHT = 0.02  # relative width of a bracket that is not worth another pass
# Points near the end of the step itself are reached with an amplified rounding error
# (:class:`~lightning_linf.probe.parameter_line.ParameterLine`).
_FROM_END = 0.25
# What is evaluated when nothing is left to search.
_WHOLE = (3.0, -1.0, *(float(c) for c in range(4, 100)))
_PARTS = (0.5, 1.5, *_WHOLE)


def critical_bracket(losses: Mapping[float, float]) -> tuple[float, float]:
    """Give the ends between which the loss rises above its start for the first time.

    Args:
        losses: By the multiple of the step; 0 is its start.

    Returns:
        The largest multiple below which all that was evaluated lowers the loss (0: none does), and
        the smallest that does not, be it that the loss is inf or NaN there; inf if all do.
    """
    lower = 0.0
    for multiple in sorted(each for each in losses if each > 0):
        loss = losses[multiple]
        if not (math.isfinite(loss) and loss < losses[0.0]):
            return lower, multiple
        lower = multiple
    return lower, math.inf


def next_multiple(losses: Mapping[float, float], *, whole: bool = False) -> float:
    r"""Choose the next multiple of a step to evaluate.

    First 0, 2 and 1, for slope and curvature at the end of the step, and a fourth one near these,
    which tells the roughness of the loss. The step itself is the last of the three: a loss that
    clips parameters to a convex set shows at one of the others, or nowhere.

    Then the end of the decrease is searched: the mean slope :math:`s(c) = (L(c) - L(0)) / c` is
    linear in c for a parabola, so the root of the line through two of its values is where the loss
    is expected to be back at its start. A little beyond it is evaluated, so that both ends of the
    bracket come near. Once they are, further points near the step follow.

    Args:
        losses: By multiple, as far as they are known.
        whole: Choose whole numbers alone, for parameters in 16 bits: their steps are a few units in
            the last place, so that other multiples cannot be represented.

    Source:
        The multiple times the learning rate is the critical learning rate, and 2 over it the
        critical sharpness: arXiv:2601.16979, which doubles the multiple and bisects.
    """
    for first in (0.0, 2.0, 1.0):
        if first not in losses:
            return first
    if len(losses) == 3:
        return _WHOLE[0] if whole else 1.5 if losses[1.0] < losses[0.0] else 0.5
    lower, upper = critical_bracket(losses)
    if upper == math.inf:
        proposal = _beyond(losses, lower)
    elif lower == 0:
        proposal = _below(losses, upper)
    else:
        proposal = _between(losses, lower, upper)
    proposal = _representable(proposal, lower, upper) if whole else _apart_from_end(proposal)
    is_tight = upper - lower <= _TIGHT * lower
    if lower < proposal < upper and not is_tight:
        return proposal
    return next(c for c in (_WHOLE if whole else _PARTS) if c not in losses)


def mean_slope(losses: Mapping[float, float], multiple: float) -> float:
    """Change of the loss from the start of the step, over the multiple."""
    return (losses[multiple] - losses[0.0]) / multiple


def root_of_slopes(losses: Mapping[float, float], first: float, second: float) -> float:
    """Give the root of the line through two mean slopes; inf if they do not grow."""
    slopes = mean_slope(losses, first), mean_slope(losses, second)
    if not slopes[1] > slopes[0]:
        return math.inf
    return first - slopes[0] * (second - first) / (slopes[1] - slopes[0])


def _beyond(losses: Mapping[float, float], lower: float) -> float:
    before = max(each for each in losses if 0 < each < lower)
    # Where a first look at the root has still lowered the loss, slopes grow ever less.
    factor = 1.1 if lower <= _WHOLE[0] else 1.6
    root = factor * root_of_slopes(losses, before, lower)
    return min(max(root, _LEAST_GROWTH * lower), _MOST_GROWTH * lower)


def _between(losses: Mapping[float, float], lower: float, upper: float) -> float:
    if not math.isfinite(losses[upper]):
        return math.sqrt(lower * upper)
    root = root_of_slopes(losses, lower, upper)
    farther = upper if upper - root > root - lower else lower
    return root + 0.1 * (farther - root)


def _below(losses: Mapping[float, float], upper: float) -> float:
    """Look below the smallest multiple, which did not lower the loss."""
    finite = [each for each in sorted(losses) if each > 0 and math.isfinite(losses[each])]
    root = root_of_slopes(losses, *finite[:2]) if len(finite) >= 2 else math.inf
    return max(0.8 * root, upper / 8) if 0 < root < upper else upper / 4


def _representable(proposal: float, lower: float, upper: float) -> float:
    return float(min(max(round(proposal), math.floor(lower) + 1), math.ceil(min(upper, 1e15)) - 1))


def _apart_from_end(proposal: float) -> float:
    if abs(proposal - 1) >= _FROM_END:
        return proposal
    return 1 + _FROM_END if proposal >= 1 else 1 - _FROM_END
