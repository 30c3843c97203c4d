"""What each partition leaves of Adam's decrease in one step, in words."""

from lightning_linf.report.interval import of_ratio
from lightning_linf.report.measurement import Measurement


def shares_sentence(measured: Measurement) -> str:
    """Say by both measures how far one step of each partition goes, over one of Adam's.

    Its subject is one step from one point, with the exact gradient: gradient noise, momentum and
    the rest of training are not considered.

    Source:
        The decrease ``dual_Phi(g)^2 / (2 N(Phi))`` of steepest descent in norm_Phi: Balles,
        Pedregosa & Le Roux, arXiv:2002.08056.
    """
    bounds = measured.decrease_over("coordinate")
    coarse_first = sorted(bounds, key=lambda name: measured.smoothness[name].num_blocks)
    listed = "; ".join(
        f"{name} {of_ratio(measured.step_share(name))}, {of_ratio(bounds[name])}"
        for name in coarse_first
        if name != "coordinate"
    )
    return (
        "Share of Adam's decrease in one step, by the curvature along each step, and by the "
        f"largest that it can meet: {listed}."
    )
