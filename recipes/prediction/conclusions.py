"""What may be concluded, and what may not: sentences that follow from the numbers by rule."""

import math
from collections.abc import Iterator, Sequence

from prediction import advice, training
from prediction.findings import Ended, Score, choose, halves, predictions, score
from prediction.protocol import CLEAR_P, GOAL_KEPT, GOAL_LEAD, GOAL_P, GOAL_RHO

_FREE = '"finer is better"'


def conclusions(ended: Sequence[Ended]) -> Iterator[str]:
    """Say what the testing half shows of the quantity that the choosing half chose."""
    parts = halves(ended)
    if not all(parts.values()):
        yield "Nothing yet: a half of the tasks has no task that is finished."
        return
    name = choose(ended)
    chosen_on = score(predictions(ended)[name], parts["choose"])
    tested_on = score(predictions(ended)[name], parts["test"])
    if chosen_on is None or tested_on is None:
        yield f"Nothing: *{name}*, which leads on the choosing half, is not measured on the other."
        return
    yield (
        f"Of all quantities *{name}* has the largest lead over {_FREE} on the choosing half, "
        f"{lead_text(chosen_on)} (rho {chosen_on.rho:.2f} against {chosen_on.free_rho:.2f})."
    )
    yield (
        f"On the testing half its rho is {tested_on.rho:.2f}, p = {tested_on.p:.2g}, and that of "
        f"{_FREE} {tested_on.free_rho:.2f}: a lead of {lead_text(tested_on)}, "
        f"p = {tested_on.p_above_free:.2g} over {len(tested_on.by_task)} tasks."
    )
    yield _verdict(name, tested_on)
    yield _goal(tested_on)
    yield from _advice(name, parts["choose"], parts["test"])
    yield (
        "What may not be concluded: anything of larger networks or longer trainings, of validation "
        "losses, of optimizers at rates that were not tuned, of other schedules, or of "
        "measurements at other times than the first tenth of Adam's run. That a quantity fails to "
        "predict who ends lowest does not make it a wrong measurement of the loss."
    )


def _verdict(name: str, found: Score) -> str:
    if found.lead > 0 and found.p_above_free <= CLEAR_P:
        margin = "by the margin set before" if found.lead >= GOAL_LEAD else (
            f"by less than the margin of {GOAL_LEAD:g} that was set before"
        )  # fmt: skip
        return (
            f"What may be concluded: on tasks of these kinds and sizes, *{name}* orders the "
            f"optimizers better than {_FREE}, {margin}."
        )
    if found.lead > 0:
        return (
            f"What may be concluded: *{name}* is not shown to order the optimizers better than "
            f"{_FREE}; its lead may be chance."
        )
    return (
        f"What may be concluded: on the testing half *{name}* orders the optimizers no better than "
        f"{_FREE}, which needs no measurement. A verdict or advice that rests on it would not be "
        "supported by this test."
    )


def _goal(found: Score) -> str:
    parts = (
        (f"rho at least {GOAL_RHO:g}", found.rho >= GOAL_RHO),
        (f"a lead of at least {GOAL_LEAD:g}", found.lead >= GOAL_LEAD),
        (f"p below {GOAL_P:g}", found.p < GOAL_P),
    )
    missed = [text for text, is_met in parts if not is_met]
    return f"The goal is missed: {', '.join(missed)}." if missed else "The goal is reached."


def _advice(name: str, choosing: Sequence[Ended], testing: Sequence[Ended]) -> Iterator[str]:
    threshold = advice.choose_threshold(name, choosing)
    if threshold is None:
        yield (
            f"Advice: no threshold of *{name}* is right often enough on the choosing half, so "
            "nothing is advised."
        )
        return
    kept = advice.kept_by(advice.by_threshold(name, threshold), testing)
    if not kept.num_advised:
        yield (
            f"Advice from *{name}*, from {threshold:g} of Adam's value on: Adam in all of "
            f"{kept.num_cases} cases of the testing half, which loses nothing and saves nothing."
        )
        return
    is_met = kept.num_kept >= GOAL_KEPT * kept.num_advised
    yield (
        f"Advice from *{name}*, from {threshold:g} of Adam's value on: a coarser partition in "
        f"{kept.num_advised} of {kept.num_cases} cases of the testing half; it keeps "
        f"{100 * training.KEEP:g} % of Adam's lead over AdaSGD in {kept.num_kept} of them, "
        f"{_unknown(kept)}{'as many as' if is_met else 'fewer than'} the goal asks for."
    )


def _unknown(kept: advice.Kept) -> str:
    return f"{kept.num_unknown} more are not known, " if kept.num_unknown else ""


def lead_text(found: Score) -> str:
    """Write the lead over "finer is better", with its standard error if there are two tasks."""
    error = "" if math.isnan(found.lead_error) else f" ± {found.lead_error:.2f}"
    return f"{found.lead:+.2f}{error}"
