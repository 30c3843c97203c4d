"""Names, units and labels of what is recorded for each parameter tensor."""

from typing import NamedTuple


class Quantity(NamedTuple):
    """How a column of a record is shown."""

    label: str
    unit: str = ""  # none: a pure number
    levels: tuple[float, ...] = ()  # of quantiles, where the column holds several numbers a row


QUANTITIES = {
    "density": Quantity("gradient density ‖g‖₁² / (d ‖g‖₂²)"),
    "gini": Quantity("Gini coefficient of |g|"),
    "top1_energy": Quantity("share of ‖g‖₂² in the largest 1 %"),
    "zero_fraction": Quantity("fraction of exact zeros in g"),
    "log10_quantiles": Quantity(
        "quantiles of log₁₀|g|", "log₁₀ of a gradient", (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    ),
    "one_one_norm_share": Quantity("share of the (1,1)-norm of the Hessian"),
    "signal_to_noise": Quantity("signal-to-noise ratio of one sample's gradient"),
    "trace_share": Quantity("share of the gradient noise's trace"),
}


def quantity(name: str) -> Quantity:
    """Describe a column; one of a later version goes by its name."""
    return QUANTITIES.get(name, Quantity(name.replace("_", " ")))
