"""A layout for TensorBoard's custom scalars, for who looks there and not at the Geometry tab."""

from collections.abc import Iterable

from lightning_linf import tags

Layout = dict[str, dict[str, list[object]]]  # category -> chart -> [kind, tags]


def _chart(*patterns: str) -> list[object]:
    """Make one chart of all tags that match; TensorBoard matches from the start only."""
    return ["Multiline", [f"{pattern}$" for pattern in patterns]]


# By monitor, charts by title.
_CHARTS = {
    "LinfSmoothnessMonitor": {
        "advantage over SGD, both ends": _chart(
            f"{tags.ADVANTAGE_LOWER}/.+", f"{tags.ADVANTAGE_UPPER}/.+"
        ),
        "advantage along the gradient's step": _chart(f"{tags.STEP_ADVANTAGE}/.+"),
        "smoothness over d: lambda_max, (1,1)-norm, bounds of H(Phi)": _chart(
            tags.LAMBDA_MAX, tags.ONE_ONE_NORM_PER_PARAM, f"{tags.SMOOTHNESS_UPPER}/.+"
        ),
        "smoothness over d met by a step, both ends": _chart(
            tags.LAMBDA_MAX, f"{tags.OPERATOR_NORM_LOWER}/.+", f"{tags.OPERATOR_NORM_UPPER}/.+"
        ),
        "(1,1)-norm: error of the probes, excess of halves of the batches": _chart(
            tags.ONE_ONE_NORM_ERROR, tags.ONE_ONE_NORM_BATCH_EXCESS
        ),
        "R² of log|g| between blocks": _chart(f"{tags.R_SQUARED}/.+"),
    },
    "GradientHeterogeneityMonitor": {
        "gradient: density, Gini coefficient, energy of the top 1 %": _chart(
            *(f"{tag}(/optimizer.+)?" for tag in (tags.DENSITY, tags.GINI, tags.TOP_ENERGY))
        ),
    },
    "GradientNoiseMonitor": {
        "noise scale in samples": _chart(tags.NOISE_SCALE),
        "noise over d": _chart(f"{tags.NOISE}/.+"),
    },
}


def custom_scalars(monitors: Iterable[str]) -> Layout:
    """Lay out what monitors log.

    Args:
        monitors: Names of their classes; others are passed over.

    Returns:
        What ``SummaryWriter.add_custom_scalars`` takes.
    """
    charts: dict[str, list[object]] = {}
    for monitor in monitors:
        charts |= _CHARTS.get(monitor, {})
    return {"Geometry": charts}
