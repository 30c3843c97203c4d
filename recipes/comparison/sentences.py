"""What a comparison says in words about its runs, for or against the theory.

Runs are compared within a seed. Nothing is concluded of an optimizer whose best learning rate is an
end of those tried, or that diverged; that is said instead.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from comparison.paired import paired
from comparison.ranks import FINEST_FIRST, permutation_p, spearman
from comparison.records import (
    Record,
    above,
    ends,
    label,
    losses,
    own_smoothness,
    smoothness_at,
    why_not,
)
from comparison.single_run import loss_text
from comparison.sweep import Rate, best, is_end
from comparison.tables import mean_text
from comparison.variants import ADAM, ROTATED_ADAM, ROTATED_SGD, SGD, Variant

_FEWEST = 3  # optimizers, to rank them


def comparison_sentence(results: Mapping[Variant, Sequence[Rate]], num_steps: int) -> str:
    """Give the losses of Adam and of Adam in rotated coordinates in the sweep."""
    if not {ADAM, ROTATED_ADAM} <= results.keys():
        return "Adam and rotated Adam were not both run."
    adam, rotated = (best(results[variant]) for variant in (ADAM, ROTATED_ADAM))
    if adam.train_loss is None or rotated.train_loss is None:
        return "Adam and rotated Adam cannot be compared: one of them diverged at every rate."
    if any(is_end(best(results[variant]), results[variant]) for variant in (ADAM, ROTATED_ADAM)):
        return (
            "Adam and rotated Adam cannot be compared: the best rate of one of them is an end of "
            "those tried. --widen adds more."
        )
    num_seeds = len(adam.outcomes)
    seeds = "one seed" if num_seeds == 1 else f"mean of {num_seeds} seeds"
    return (
        f"After {num_steps} steps, training loss at the best of the rates tried, {seeds}: Adam "
        f"{loss_text(adam.train_loss)}, rotated Adam {loss_text(rotated.train_loss)}. The same "
        "seeds chose the rates; others (--seeds) tell how much is chance."
    )


def seeds_sentences(record: Record) -> list[str]:
    """Say what the runs with other seeds show, for or against the theory."""
    found = {(v["optimizer"], v["geometry"]): v for v in record["variants"]}
    adam, rotated, sgd, rotated_sgd = (
        found.get((variant.optimizer, variant.geometry))
        for variant in (ADAM, ROTATED_ADAM, SGD, ROTATED_SGD)
    )
    texts = [f"No conclusion: {why}." for v in record["variants"] if (why := why_not(v))]
    may_conclude = [variant for variant in record["variants"] if why_not(variant) is None]
    if adam in may_conclude:
        assert adam is not None
        texts.append(_against(adam, [v for v in may_conclude if v is not adam]))
        if rotated in may_conclude:
            assert rotated is not None
            texts.append(_norms(adam, rotated))
    if sgd in may_conclude and rotated_sgd in may_conclude:
        assert sgd is not None
        assert rotated_sgd is not None
        texts.append(_unmoved(sgd, rotated_sgd))
    # Rotated SGD is SGD again.
    texts += rank_sentences([v for v in may_conclude if v is not rotated_sgd], adam)
    if any(variant["shaken"] for variant in record["variants"]):
        texts.append(_rounding(record["variants"]))
    return texts


def _against(adam: Record, others: Sequence[Record]) -> str:
    """Say whose training loss is above Adam's, or below, by more than chance.

    Where several seeds were run again with shaken weights, both must show it.
    """
    parts: dict[str, list[str]] = {"Above Adam's": [], "Below Adam's": [], "Not told apart": []}
    for variant in others:
        found = [paired(above(variant, adam))]
        shaken = above(variant, adam, "shaken")
        found += [paired(shaken)] if len(shaken) > 1 else []
        signs = {each.mean > 0 for each in found}
        is_shown = len(signs) == 1 and all(each.is_told_apart for each in found)
        side = "Above Adam's" if found[0].mean > 0 else "Below Adam's"
        parts[side if is_shown else "Not told apart"].append(
            f"{label(variant)} {', shaken '.join(map(str, found))}"
        )
    listed = " ".join(f"{side}: {'; '.join(names)}." for side, names in parts.items() if names)
    return (
        "Training loss less that of Adam with the same seed, mean over "
        f"{_seeds(adam)} (95 % interval). {listed or 'There is nothing to compare.'}"
    )


def _norms(adam: Record, rotated: Record) -> str:
    norms = [ends(variant, "one_one_norm_per_param") for variant in (adam, rotated)]
    return (
        "(1,1)-norm / d in the optimizer's own coordinates, where its runs ended: "
        f"{mean_text(norms[0])} for Adam ({_range(norms[0])} by seed), {mean_text(norms[1])} for "
        f"rotated Adam ({_range(norms[1])})."
    )


def _unmoved(sgd: Record, rotated: Record) -> str:
    differences = above(rotated, sgd)
    return (
        "SGD with and without rotation, same seeds and rate: the training losses differ by "
        f"{max(map(abs, differences)):.2g} at most, in the mean over {_seeds(sgd)} by "
        f"{abs(statistics.fmean(differences)):.2g}."
    )


def rank_sentences(variants: Sequence[Record], adam: Record | None) -> list[str]:
    """Say how well the smoothness H(Phi) orders the optimizers within a seed, beside a free guess.

    H(Phi) is measured where each run ended, and where Adam's run of the same seed ended, which is
    one point for all geometries.
    """
    if len(variants) < _FEWEST:
        return [f"There are too few optimizers to rank them: {len(variants)}."]
    texts = [_rank_sentence("H(Phi) where each run ended", variants, own_smoothness)]
    if adam is not None and why_not(adam) is None:
        there = _rank_sentence(
            "H(Phi) where Adam's run ended", variants, lambda v: smoothness_at(adam, v)
        )
        texts.append(there)
    free = _rank_sentence('The guess "finer is better"', variants, _coarseness)
    texts.append(
        f"{free} It needs no measurement; H(Phi) and N(Phi) of finer blocks are smaller on any "
        "loss."
    )
    return texts


def _coarseness(variant: Record) -> list[float]:
    rotated = variant["rotation"] and variant["partition"] == "coordinate"
    name = f"{variant['partition']} rotated" if rotated else variant["partition"]
    return [float(FINEST_FIRST.index(name))] * len(variant["seeds"])


def _rank_sentence(
    what: str, variants: Sequence[Record], read: Callable[[Record], Sequence[float]]
) -> str:
    predicted = -np.array([read(variant) for variant in variants], dtype=np.float64).T
    ended = np.array([losses(variant) for variant in variants], dtype=np.float64).T
    rhos = spearman(predicted, ended)  # by seed
    return (
        f"{what} and the training loss: Spearman's rho within a seed {rhos.mean():.2f}, mean over "
        f"{_seeds(variants[0])} ({_range([float(rho) for rho in rhos])} by seed; p = "
        f"{permutation_p([(predicted, ended)]):.2g} over the orders of {len(variants)} optimizers)."
    )


def _rounding(variants: Sequence[Record]) -> str:
    """Say what the smallest change of the initial weights does to final losses and their means."""
    texts = []
    for variant in variants:
        pairs = list(zip(losses(variant), losses(variant, "shaken"), strict=False))
        if any(None in pair for pair in pairs):
            texts.append(f"{label(variant)} diverged once")
            continue
        changes = [b - a for a, b in pairs]
        moved = abs(statistics.fmean(changes))
        texts.append(f"{label(variant)} {max(map(abs, changes)):.2g} ({moved:.2g})")
    num_seeds = len(variants[0]["shaken"])
    return (
        "What rounding does, and so another machine or number of threads: where every initial "
        "weight is moved to the next number of its type, final losses change by at most, and in "
        f"brackets their mean over n = {num_seeds} by: {', '.join(texts)}."
    )


def _seeds(variant: Record) -> str:
    return f"n = {len(variant['seeds'])} seeds"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}" if values else "-"
