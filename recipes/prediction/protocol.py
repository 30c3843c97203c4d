"""The protocol of the test as a page, which was kept with the repository before the first run."""

from collections.abc import Iterator, Sequence

from comparison.sweep import STEP
from prediction import advice, training
from prediction.contenders import CONTENDERS, FINER_IS_BETTER
from prediction.ledger import MOST_RATES, SEEDS, SWEEP_SEEDS
from prediction.markdown import paragraph, table
from prediction.quantities import QUANTITIES
from prediction.tasks import TASKS, Half

GOAL_RHO = 0.8  # of the chosen quantity on the testing half
GOAL_LEAD = 0.2  # over "finer is better", there
GOAL_P = 0.01  # of that rho, there
GOAL_KEPT = 0.9  # share of the advised cases that keep Adam's lead, there
CLEAR_P = 0.05  # at most, of a lead over "finer is better" that counts as one

_WORDS: dict[Half, str] = {"choose": "chooses", "test": "tests"}


def protocol() -> Iterator[str]:
    """Write the page, line by line."""
    yield "# Which measured quantity predicts the order of optimizers? The protocol"
    yield from paragraph(
        "Written down before the runs, from the constants of `recipes/prediction/`. "
        "`python recipes/predict.py` follows it and writes the results, "
        "[prediction.md](prediction.md)."
    )
    yield from _what_is_run()
    yield from _what_is_read()
    yield from _how_it_is_judged()
    yield from paragraph(
        "**Seen before.** Until this was written: trainings with Adam and rotated Adam at one rate "
        "and measurements on Adam's, with the seed 1000, on all tasks, to time them; sweeps of "
        "tumours, friedman and autoencoder, of the choosing half; and trainings of 20 steps on "
        "tumours, friedman, waves and factors, to try the program. A negative vᵀHv seen there is "
        "why step_advantage stands with |vᵀHv|, too."
    )


def _what_is_run() -> Iterator[str]:
    yield from paragraph(
        f"**Tasks**: {len(TASKS)}, with data that need no download. One half chooses the rule, the "
        "other half tests it. Two of them, word-llama and vit, resemble those on which the "
        "question arose, and are in the choosing half."
    )
    yield from table(
        ["task", "kind", "parameters", "batch", "steps", "half"],
        [
            [t.name, t.kind, f"{t.num_params:,}", str(t.batch_size), str(t.num_steps),
             _WORDS[t.half]]
            for t in TASKS
        ],
    )  # fmt: skip
    yield from paragraph("**Optimizers**, and the geometry that is read for each:")
    yield from table(
        ["optimizer", "what it is", "geometry"],
        [[c.name, f"`{c.geometry.describe()}`", c.reads] for c in CONTENDERS],
    )
    yield from paragraph(
        "Muon runs where the network has hidden matrices. Those are orthogonalized, and *spectral* "
        "is their spectral norm; what else there is goes to AdamW. It has no H, no Λ, no secant, "
        "no noise scale and no R², and is left out of what needs one of them."
    )
    yield from paragraph(
        f"beta1 and momentum are {training.BETAS[0]}, beta2 is {training.BETAS[1]}. There is no "
        "weight decay and no clipping. The learning rate rises for the first "
        f"{_percent(training.WARMUP)} of the steps and then falls along a cosine to "
        f"{_percent(training.LAST_RATE)} of its peak. The seed of a run fixes initial weights, "
        "order of the data, and rotation."
    )
    yield from paragraph(
        "**Losses.** The final loss is the mean training loss of the last "
        f"{_percent(training.AVERAGED)} of the steps. A run whose loss is not finite has diverged, "
        "and ranks last."
    )
    yield from paragraph(
        f"**Rates.** Each optimizer is swept on each task at rates a factor {STEP:g} apart, with "
        f"the seeds {_listed(SWEEP_SEEDS)}: three rates at first, then one beyond the best while "
        f"that is the largest or the smallest, up to {MOST_RATES}. The best rate has the least "
        f"mean final loss, and no run with it diverged. With it the seeds {_listed(SEEDS)} are "
        "run, and only these count. An optimizer whose best rate is still at an end is left out of "
        "its task, and the page says so."
    )


def _what_is_read() -> Iterator[str]:
    yield from paragraph(
        "**Measurement.** Adam's run at its best rate, for each of these seeds, after "
        f"{_percent(training.MEASURED)} of its steps: in training mode, on the mean loss of the "
        f"{training.NUM_BATCHES} batches that come next, with {training.NUM_PROBES} probes, in the "
        "coordinates of the parameters and in those of rotated Adam. Nothing later is used for a "
        "prediction."
    )
    yield from paragraph(
        "**Quantities.** g is the gradient, v a step of steepest descent in the norm of the "
        "geometry, dual(g) the dual norm; where vᵀHv is not positive, a promised decrease counts "
        "as infinite. Those marked < should be small."
    )
    yield from table(
        ["quantity", "", "what it is"],
        [[q.name, "" if q.larger_is_better else "<", q.meaning] for q in QUANTITIES],
    )


def _how_it_is_judged() -> Iterator[str]:
    yield from paragraph(
        "**Score.** For each task and seed, Spearman's rho between the predicted order and that of "
        "the final losses, ties by mean ranks. The mean over seeds is the rho of the task, and the "
        "mean over tasks that of the quantity. p is the share of arrangements that order as well "
        "when the optimizers of each task are permuted, all seeds of it alike."
    )
    yield from paragraph(
        "**What is free.** N(Φ) grows with coarser partitions on any loss, so a quantity may be "
        "right without telling anything of the loss. Each is compared with the guess \"finer is "
        f"better\", which ranks the geometries {_order(FINER_IS_BETTER)}, the best first, and has "
        "the same ties as they. The p of a lead over it comes from random signs of the leads by "
        "task. Beside these stand the mean order of the optimizers on the choosing half; and, as "
        "bounds, for each seed the order of the other seeds, and the order that was found, as far "
        "as the ties allow it."
    )  # fmt: skip
    yield from paragraph(
        "**The rule.** The quantity with the largest lead on the choosing half is chosen. Then "
        "only the testing half counts, and it has one try. The goal: rho at least "
        f'{GOAL_RHO:g}, at least {GOAL_LEAD:g} above "finer is better", p below {GOAL_P:g}. A '
        f"lead whose p is above {CLEAR_P:g} is not called one."
    )
    yield from paragraph(
        f"**Advice.** Of {_order(advice.COARSE_FIRST)} the first is advised whose value, over "
        f"Adam's own, reaches a threshold (of a quantity marked <: Adam's over its own); if none "
        f"does, Adam. The threshold is the least of {_listed(advice.THRESHOLDS)} whose advice is "
        f"right in {_percent(advice.RELIABLE)} of the cases on the choosing half in which it is "
        "not Adam; if there is none, nothing is advised. A case is a task and a seed. Advice is "
        "right if the loss of the advised optimizer is below AdaSGD's by at least "
        f"{_percent(training.KEEP)} of what Adam's is. The goal: right in {_percent(GOAL_KEPT)} of "
        "the advised cases on the testing half. Beside it stand what the tool advised "
        f"when the test was made (`recommend({training.KEEP:g})`: the coarsest partition that both "
        "measures, with their errors, show to reach that share of Adam's decrease in one step), "
        "and the same partition everywhere."
    )


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _listed(values: Sequence[float]) -> str:
    *first, last = (f"{value:g}" for value in values)
    return f"{', '.join(first)} and {last}"


def _order(names: Sequence[str]) -> str:
    return ", ".join(f"*{name}*" for name in names)
