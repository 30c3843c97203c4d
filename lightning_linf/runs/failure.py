"""Whether a run's loss is still a number, in the words of its card on the page."""

from lightning_linf import quantities
from lightning_linf.panels.own_scalars import own_scalars
from lightning_linf.panels.payload import counted, not_finite_since
from lightning_linf.runs.run import Run


def failure_of(run: Run) -> str | None:
    """Say which loss has stopped being a finite number, and since when; None if none has."""
    losses = {tag: run.own[tag] for tag in own_scalars(run.own)["loss"]}
    probe = quantities.PROBE_LOSS.tag
    if probe in run.scalars:
        losses[probe] = run.scalars[probe]
    found = {tag: not_finite_since(points) for tag, points in losses.items()}
    failed = {tag: since for tag, since in found.items() if since is not None}
    if not failed:
        return None
    tag = min(failed, key=failed.__getitem__)
    what = f"{tag} is not a finite number since step {failed[tag]:,}, so there is no verdict."
    if run.report is None:
        return what
    return f"{what} What is measured is of step {counted(run.report_step):,}."
