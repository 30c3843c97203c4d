"""The rule of `recommend(0.9)`, which lightning_linf had when the test was made."""

from lightning_linf import GeometryReport


def coarsest(report: GeometryReport, keep: float) -> str | None:
    """Find the coarsest partition whose step both measures show to reach a share of Adam's.

    Args:
        report: What was measured.
        keep: The share of the decrease of Adam's step.

    Returns:
        The name of the partition, whose bracket and Adam's have converged, at a point that has a
        verdict; None if there is none.
    """
    num_blocks = {name: block.num_blocks for name, block in report.smoothness.items()}
    bounds = report.decrease_over("coordinate")
    steps = {name: report.step_share(name) for name in num_blocks}
    shown = [
        name
        for name in num_blocks
        if name != "coordinate"
        and bounds[name].lower >= keep
        and steps[name].lower >= keep
        and report.smoothness[name].converged
        and report.smoothness["coordinate"].converged
        and report.verdict_status not in ("undefined", "too early")
    ]
    # The surer one of two with the same number of blocks.
    return min(shown, key=lambda name: (num_blocks[name], -steps[name].lower), default=None)
