"""What a comparison says in words about its runs, for or against the theory."""

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap, spearmanr

from comparison.records import Record, ends, losses, own_smoothness, smoothness_at
from comparison.sweep import Rate, best
from comparison.tables import deviation_text, mean_text
from comparison.variants import ADAM, ROTATED_ADAM, ROTATED_SGD, SGD, Variant

_LEVEL = 0.01  # nats; a smaller difference of single runs may be chance
_FEWEST_GROUPS = 3  # of optimizers, to rank them
_NUM_RESAMPLES = 2000


def comparison_sentence(results: Mapping[Variant, Sequence[Rate]], num_steps: int) -> str:
    """Say whether Adam is ahead of Adam in rotated coordinates."""
    if not {ADAM, ROTATED_ADAM} <= results.keys():
        return "Adam and rotated Adam were not both run."
    chosen = best(results[ADAM])
    adam, rotated = chosen.train_loss, best(results[ROTATED_ADAM]).train_loss
    if adam is None or rotated is None:
        return "Adam and rotated Adam cannot be compared: one of them diverged at every rate."
    ahead = rotated - adam
    verdict = (
        f"ahead of rotated Adam by {ahead:.3f}"
        if ahead > _LEVEL
        else f"behind rotated Adam by {-ahead:.3f}"
        if ahead < -_LEVEL
        else f"level with rotated Adam, within {_LEVEL}"
    )
    num_seeds = len(chosen.outcomes)
    seeds = "one seed" if num_seeds == 1 else f"mean of {num_seeds} seeds"
    return (
        f"Adam is {verdict} in training loss ({adam:.3f} against {rotated:.3f}, each at its best "
        f"of the rates tried, {seeds}) after {num_steps} steps."
    )


def seeds_sentences(record: Record) -> list[str]:
    """Say what the runs with other seeds show, for or against the theory."""
    found = {(v["optimizer"], v["geometry"]): v for v in record["variants"]}
    adam, rotated, sgd, rotated_sgd = (
        found.get((variant.optimizer, variant.geometry))
        for variant in (ADAM, ROTATED_ADAM, SGD, ROTATED_SGD)
    )
    texts = []
    if adam and rotated:
        texts.append(_ahead(adam, rotated))
        norms = [ends(variant, "one_one_norm_per_param") for variant in (adam, rotated)]
        texts.append(
            "(1,1)-norm / d in the optimizer's own coordinates: "
            f"{mean_text(norms[0])} for Adam ({_range(norms[0])}), "
            f"{mean_text(norms[1])} for rotated Adam ({_range(norms[1])})."
        )
    if sgd and rotated_sgd:
        texts.append(_unmoved(sgd, rotated_sgd))
    texts += rank_sentences(record, adam)
    if adam:
        texts.append(recommendation_sentence(record, adam))
    return texts


def rank_sentences(record: Record, adam: Record | None) -> list[str]:
    """Say in four ways how well the smoothness H(Phi) ranks the training losses.

    H(Phi) is measured where each run ended, and where Adam's run of the same seed ended, which is
    one point for all geometries. Each is compared with and without SGD, because the size of SGD's
    step, unlike that of the others, follows the size of the gradient. Rotated SGD is left out: it
    is SGD again.
    """
    texts = []
    reference = None if adam is None or None in losses(adam) else adam
    for only_adaptive in (True, False):
        variants = [
            variant
            for variant in record["variants"]
            if not (variant["optimizer"] == "sgd" and (only_adaptive or variant["rotation"]))
            and None not in losses(variant)
        ]
        which = "without SGD" if only_adaptive else "all"
        own = [_pairs(own_smoothness(variant), variant) for variant in variants]
        texts.append(_rank_sentence("at the end of each run", which, own))
        if reference is not None:
            there = [_pairs(smoothness_at(reference, variant), variant) for variant in variants]
            texts.append(_rank_sentence("at the end of Adam's run", which, there))
    return texts


def _pairs(smoothness: Sequence[float], variant: Record) -> list[tuple[float, float]]:
    return list(zip(smoothness, losses(variant), strict=True))


def _rank_sentence(where: str, which: str, groups: Sequence[Sequence[tuple[float, float]]]) -> str:
    what = f"Spearman's rho of H(Phi) {where} and the training loss ({which}"
    if len(groups) < _FEWEST_GROUPS:
        return f"{what}): {len(groups)} optimizers, too few."
    rho, lower, upper = rank_correlation(groups)
    return (
        f"{what}, {len(groups)} optimizers, {sum(map(len, groups))} runs): {rho:.2f}, 95 % "
        f"interval {lower:.2f} to {upper:.2f} over resampled optimizers."
    )


def rank_correlation(groups: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float, float]:
    """Correlate the ranks of two quantities, and give a 95 % interval by resampling.

    Seeds of one optimizer are not independent optimizers, so a resample draws whole groups.

    Args:
        groups: The pairs of each optimizer. Shape (optimizers, seeds, 2), at least 2 optimizers.

    Returns:
        Spearman's rho and the two ends of the interval; NaN if a quantity does not vary.
    """
    pairs = np.asarray(groups)

    def rho(chosen: npt.NDArray[np.int64]) -> float:
        return float(spearmanr(*pairs[chosen].reshape(-1, 2).T).statistic)

    everyone = np.arange(len(pairs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about resamples of one run alone, which have no rho
        resampled = bootstrap(
            (everyone,), rho, n_resamples=_NUM_RESAMPLES, vectorized=False, method="percentile",
            rng=np.random.default_rng(0),
        ).bootstrap_distribution  # fmt: skip
        lower, upper = np.nanquantile(resampled, [0.025, 0.975])
        return rho(everyone), float(lower), float(upper)


def recommendation_sentence(record: Record, adam: Record) -> str:
    """Say which partition `recommend` named where Adam's runs ended, and how it trained."""
    chosen = Counter(str(name) for name in ends(adam, "recommended"))
    by_partition = {
        variant["partition"]: variant
        for variant in record["variants"]
        if variant["optimizer"] in ("blockwise_adam", "adasgd")
    } | {"coordinate": adam}
    texts = []
    for name, count in chosen.most_common():
        text = f"{name} on {count} of {chosen.total()}"
        if name in by_partition and name != "coordinate":
            differences = _differences(by_partition[name], adam)
            text += f", where training ends {_signed(differences)} above Adam"
        texts.append(text)
    return (
        "Coarsest partition that both measures show to reach 90 % of Adam's decrease in one step, "
        f"at the end of Adam's runs: {'; '.join(texts) or 'none'}. "
        f"Blockwise Adam against Adam: {_blockwise(record, adam)}."
    )


def _ahead(adam: Record, rotated: Record) -> str:
    differences = _differences(rotated, adam)
    if not differences:
        return "Adam and rotated Adam cannot be compared: runs of one of them diverged."
    spreads = [deviation_text(losses(variant)) for variant in (adam, rotated)]
    mean = statistics.fmean(differences)
    side = "ahead of" if mean > 0 else "behind"
    return (
        f"Adam is {side} rotated Adam by {abs(mean):.3f} in training loss, mean of "
        f"{len(differences)} seeds ({_range(differences)} by seed); standard deviation of each "
        f"over seeds: {spreads[0]} and {spreads[1]}."
    )


def _unmoved(sgd: Record, rotated: Record) -> str:
    differences = [abs(difference) for difference in _differences(rotated, sgd)]
    if not differences:
        return "SGD and rotated SGD cannot be compared: runs of one of them diverged."
    return (
        f"SGD with and without rotation, same seeds and rate: the training losses differ by "
        f"{max(differences):.2g} at most."
    )


def _blockwise(record: Record, adam: Record) -> str:
    """Write how much higher the training loss of each blockwise optimizer is than Adam's."""
    return ", ".join(
        f"{variant['geometry']} {_signed(_differences(variant, adam))}"
        for variant in record["variants"]
        if variant["optimizer"] in ("blockwise_adam", "adasgd")
    )


def _differences(variant: Record, other: Record) -> list[float]:
    """Subtract the training losses, seed by seed; empty if one of them diverged."""
    pairs = list(zip(variant["seeds"], other["seeds"], strict=True))
    losses = [(a["train_loss"], b["train_loss"]) for a, b in pairs]
    return [] if any(None in pair for pair in losses) else [a - b for a, b in losses]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}" if values else "-"


def _signed(differences: Sequence[float]) -> str:
    if not differences:
        return "(diverged)"
    mean = statistics.fmean(differences)
    return f"{mean:+.3f}" if math.isfinite(mean) else "(diverged)"
