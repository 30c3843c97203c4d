"""The page of results: all numbers come from the runs."""

import math
import statistics
from collections.abc import Iterator, Sequence

from comparison.sweep import best, is_end
from prediction import advice
from prediction.conclusions import conclusions, lead_text
from prediction.contenders import Contender
from prediction.findings import (
    ORDER_ON_CHOOSING,
    Ended,
    Prediction,
    Score,
    choose,
    ended_tasks,
    finer_is_better,
    halves,
    other_seeds,
    predictions,
    score,
)
from prediction.ledger import Ledger, chosen_rate, counting_runs, pairs, swept, wanted
from prediction.markdown import paragraph, table
from prediction.tasks import Task
from prediction.training import KEEP, Trained


def page(ledger: Ledger, tasks: Sequence[Task], contenders: Sequence[Contender]) -> Iterator[str]:
    """Write the page, line by line."""
    ended = ended_tasks(ledger, tasks, contenders)
    yield from _head(ledger, tasks, contenders, len(ended))
    yield from ("", "## What may and may not be concluded", "")
    yield from (f"- {sentence}" for sentence in conclusions(ended))
    if all(halves(ended).values()):
        yield from _scores(ended)
        yield from _by_task(ended)
        yield from _advice(ended)
    yield from _losses(ledger, tasks, contenders)


def _head(
    ledger: Ledger, tasks: Sequence[Task], contenders: Sequence[Contender], num_ended: int
) -> Iterator[str]:
    made_with = ", ".join(f"{name} {version}" for name, version in ledger.versions.items())
    minutes = sum(result.seconds for result in ledger.results.values()) / 60
    yield "# Which measured quantity predicts the order of optimizers?"
    yield from paragraph(
        "Written by `python recipes/predict.py` from `prediction.json`; no result here is typed. "
        "Tasks, optimizers, scores and rules are those of the [protocol](prediction-protocol.md), "
        "fixed before the runs."
    )
    yield from paragraph(
        f"{len(ledger.results)} trainings and measurements, {minutes:.0f} minutes of one core. "
        f"{num_ended} of {len(tasks)} tasks are finished and count. "
        f"Last made with {made_with or 'nothing yet'}."
    )
    missing = len(wanted(ledger, tasks, contenders))
    if missing:
        yield from paragraph(
            f"**Not finished**: {missing} runs, and what depends on them, are still to be made."
        )
    paired = list(pairs(tasks, contenders))
    left_out = [
        f"{contender.name} on {task.name}"
        for task, contender in paired
        if not swept(ledger, task, contender)[1] and chosen_rate(ledger, task, contender) is None
    ]
    yield from paragraph(
        f"Left out of {len(paired)} pairs of task and optimizer, because the best rate is not "
        f"inside its grid: {len(left_out)}{': ' if left_out else ''}{', '.join(left_out)}."
    )


def _scores(ended: Sequence[Ended]) -> Iterator[str]:
    yield from ("", "## How well each orders the optimizers")
    yield from paragraph(
        'Mean rho over tasks; "free" is that of "finer is better" among the same optimizers. Lead '
        "± standard error over tasks; p as in the protocol. Only the row in bold was chosen before "
        "the testing half was looked at."
    )
    chosen, parts = choose(ended), halves(ended)
    rows = []
    for name, prediction in predictions(ended).items():
        first, second = (score(prediction, parts[half]) for half in ("choose", "test"))
        if name == ORDER_ON_CHOOSING:  # there it is what it predicts
            first = None
        shown = f"**{name}**" if name == chosen else name
        rows.append([shown, *_cells(first)[:2], *_cells(second)])
    titles = ["", "choosing half: rho", "free", "testing half: rho", "free", "p", "lead",
              "p of the lead"]  # fmt: skip
    yield from table(titles, rows)


def _cells(found: Score | None) -> list[str]:
    if found is None:
        return ["-"] * 5
    return [
        f"{found.rho:.2f}", f"{found.free_rho:.2f}", f"{found.p:.2g}",
        lead_text(found), f"{found.p_above_free:.2g}",
    ]  # fmt: skip


def _by_task(ended: Sequence[Ended]) -> Iterator[str]:
    yield from ("", "## By task")
    yield from paragraph("Mean rho over seeds:")
    chosen = choose(ended)
    shown: dict[str, Prediction] = {
        chosen: predictions(ended)[chosen],
        "finer is better": finer_is_better,
        "order of the other seeds": other_seeds,
    }
    rows = []
    for each in ended:
        found = [score(prediction, [each]) for prediction in shown.values()]
        cells = ["-" if one is None else f"{one.rho:.2f}" for one in found]
        rows.append([each.task, each.half, *cells, " < ".join(_order(each))])
    yield from table(["task", "half", *shown, "order of the mean losses"], rows)


def _order(ended: Ended) -> list[str]:
    means = ended.losses.mean(axis=0)
    return [ended.contenders[i] for i in means.argsort()]


def _advice(ended: Sequence[Ended]) -> Iterator[str]:
    yield from ("", "## Advice")
    yield from paragraph(
        "Cases (a task and a seed) in which a coarser partition than Adam's is advised, and in "
        f"which it keeps {100 * KEEP:g} % of Adam's lead over AdaSGD:"
    )
    name, parts = choose(ended), halves(ended)
    threshold = advice.choose_threshold(name, parts["choose"])
    advisors: dict[str, advice.Advisor] = {f"recommend({KEEP:g})": advice.tool}
    if threshold is not None:
        advisors[f"{name}, from {threshold:g} on"] = advice.by_threshold(name, threshold)
    advisors |= {f"always {p}": advice.always(p) for p in reversed(advice.COARSE_FIRST)}
    rows = []
    for label, advisor in advisors.items():
        found = [advice.kept_by(advisor, parts[half]) for half in ("choose", "test")]
        rows.append([label, *(cell for kept in found for cell in _kept(kept))])
    titles = ["", "choosing half: advised", "kept", "testing half: advised", "kept"]
    yield from table(titles, rows)


def _kept(kept: advice.Kept) -> list[str]:
    unknown = f", {kept.num_unknown} not known" if kept.num_unknown else ""
    return [f"{kept.num_advised} of {kept.num_cases}", f"{kept.num_kept}{unknown}"]


def _losses(
    ledger: Ledger, tasks: Sequence[Task], contenders: Sequence[Contender]
) -> Iterator[str]:
    yield from ("", "## Final losses")
    yield from paragraph(
        "Mean and standard deviation over seeds, and the best rate in brackets; the least is bold."
    )
    rows = []
    for task in tasks:
        suited = {contender.name for _, contender in pairs([task], contenders)}
        cells = [
            _cell(ledger, task, contender) if contender.name in suited else (math.inf, "-")
            for contender in contenders
        ]
        least = min(cells, key=lambda cell: cell[0])[0]
        rows.append([
            task.name,
            *(f"**{text}**" if mean == least < math.inf else text for mean, text in cells),
        ])  # fmt: skip
    yield from table(["task", *(contender.name for contender in contenders)], rows)


def _cell(ledger: Ledger, task: Task, contender: Contender) -> tuple[float, str]:
    """Give the mean loss, inf where there is none, and what is written of it."""
    tried, missing = swept(ledger, task, contender)
    lr = chosen_rate(ledger, task, contender)
    if lr is None:
        if missing or not tried:
            return math.inf, "not swept"
        end = best(tried)
        return math.inf, f"open at {end.lr:g}" if is_end(end, tried) else "diverged"
    found = [ledger.results.get(run) for run in counting_runs(task, contender, lr)]
    losses = [result.loss for result in found if isinstance(result, Trained)]
    if len(losses) < len(found):
        return math.inf, f"not run ({lr:g})"
    finite = [loss for loss in losses if loss is not None]
    if len(finite) < len(losses):
        return math.inf, f"{len(losses) - len(finite)} of {len(losses)} diverged ({lr:g})"
    mean = statistics.fmean(finite)
    return mean, f"{mean:.4g} ± {statistics.stdev(finite):.2g} ({lr:g})"
