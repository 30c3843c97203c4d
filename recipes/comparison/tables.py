"""What a comparison says: the sweep, the other seeds with the geometry, and what follows."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import HORIZONTALS
from rich.table import Table

from comparison.rank_correlation import spearman, spearman_interval
from comparison.records import Record, ends, losses, own_smoothness, smoothness_at
from comparison.single_run import number
from comparison.sweep import Rate, best, is_end
from comparison.variants import ADAM, ROTATED_ADAM, ROTATED_SGD, SGD, Variant

_LEVEL = 0.01  # nats; a closer result tells nothing from one seed
_FEWEST_GROUPS = 3  # of optimizers, to rank them


def comparison_table(results: Mapping[Variant, Sequence[Rate]], num_steps: int) -> Table:
    """Lay out one row per optimizer, at its learning rate with the least training loss."""
    table = _table(f"After {num_steps} steps, by optimizer", (
        ("optimizer", "left"), ("geometry", "left"), ("best lr", "right"),
        ("train\nloss", "right"), ("val\nloss", "right"), ("other lr:\ntrain loss", "right"),
        ("s /\nstep", "right"),
    ))  # fmt: skip
    for variant, rates in results.items():
        chosen = best(rates)
        at_end = is_end(chosen, rates)
        table.add_row(
            variant.optimizer,
            variant.geometry,
            f"{chosen.lr:g}{'*' if at_end else ''}",
            number(chosen.train_loss),
            number(chosen.val_loss),
            "\n".join(f"{r.lr:g}: {number(r.train_loss)}" for r in rates if r is not chosen),
            f"{chosen.seconds_per_step:.3f}",
        )
        if at_end:
            table.caption = "* an end of the rates tried: a better one may lie beyond (--widen)"
    return table


def comparison_sentence(results: Mapping[Variant, Sequence[Rate]], num_steps: int) -> str:
    """Say whether Adam is ahead of itself in rotated coordinates."""
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


def seeds_table(record: Record) -> Table:
    """Lay out one row per optimizer: its losses over the seeds, and the geometry at the end."""
    num_seeds = record["options"]["seeds"]
    table = _table(f"At the best rate, other seeds ({num_seeds}), and the geometry at the end", (
        ("optimizer", "left"), ("geometry", "left"), ("train loss", "right"),
        ("(1,1)-\nnorm/d", "right"), ("lambda\nmax", "right"), ("H(Phi)\n/ d", "right"),
    ))  # fmt: skip
    for optimizer, geometry, train_loss, _, *measured in seeds_rows(record):
        table.add_row(optimizer, geometry, train_loss, *measured)
    table.caption = "± sd over seeds; geometry: mean, in the coordinates that the optimizer saw"
    return table


def seeds_rows(record: Record) -> list[list[str]]:
    """Write the cells of that table."""
    return [
        [
            variant["optimizer"],
            variant["geometry"],
            _spread([outcome["train_loss"] for outcome in variant["seeds"]]),
            _spread([outcome["val_loss"] for outcome in variant["seeds"]]).split(" ±")[0],
            _mean(ends(variant, "one_one_norm_per_param")),
            _mean(ends(variant, "lambda_max")),
            _mean(own_smoothness(variant)),
        ]
        for variant in record["variants"]
    ]


def seeds_sentences(record: Record) -> list[str]:
    """Say what the other seeds show, for or against the theory."""
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
            f"{_mean(norms[0])} for Adam ({_range(norms[0])}), {_mean(norms[1])} for rotated Adam "
            f"({_range(norms[1])})."
        )
    if sgd and rotated_sgd:
        texts.append(_unmoved(sgd, rotated_sgd))
    texts += rank_sentences(record, adam)
    if adam:
        texts.append(recommendation_sentence(record, adam))
    return texts


def rank_sentences(record: Record, adam: Record | None) -> list[str]:
    """Say how well the smoothness of the geometries ranks the training losses, in four ways.

    Where each run ended; where Adam's run of the same seed ended, one point for all geometries;
    each with and without SGD, whose step follows the gradient's size. Rotated SGD is SGD again, so
    it does not count.
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
    rho = spearman([pair for group in groups for pair in group])
    lower, upper = spearman_interval(groups)
    return (
        f"{what}, {len(groups)} optimizers, {sum(map(len, groups))} runs): {rho:.2f}, 95 % "
        f"interval {lower:.2f} to {upper:.2f} over resampled optimizers."
    )


def recommendation_sentence(record: Record, adam: Record) -> str:
    """Say which partition `recommend` chose on Adam's runs, and what Adam loses with it."""
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
        f"Recommended at the end of Adam's runs: {'; '.join(texts) or 'nothing'}. "
        f"Blockwise Adam against Adam: {_blockwise(record, adam)}."
    )


def _ahead(adam: Record, rotated: Record) -> str:
    differences = _differences(rotated, adam)
    if not differences:
        return "Adam and rotated Adam cannot be compared: runs of one of them diverged."
    spreads = [_deviation(losses(variant)) for variant in (adam, rotated)]
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
    texts = [
        f"{variant['geometry']} {_signed(_differences(variant, adam))}"
        for variant in record["variants"]
        if variant["optimizer"] in ("blockwise_adam", "adasgd")
    ]
    return ", ".join(texts)


def _differences(variant: Record, other: Record) -> list[float]:
    """Subtract the training losses, seed by seed; empty if one of them diverged."""
    pairs = list(zip(variant["seeds"], other["seeds"], strict=True))
    losses = [(a["train_loss"], b["train_loss"]) for a, b in pairs]
    return [] if any(None in pair for pair in losses) else [a - b for a, b in losses]


def _table(title: str, columns: Sequence[tuple[str, Any]]) -> Table:
    # 80 columns hold no more
    table = Table(title=title, box=HORIZONTALS, padding=0, pad_edge=False, show_edge=False)
    for name, side in columns:
        table.add_column(name, justify=side, no_wrap=True)
    return table


def _spread(losses: Sequence[float | None]) -> str:
    finite = [loss for loss in losses if loss is not None]
    if len(finite) < len(losses) or not finite:
        return f"{len(losses) - len(finite)}/{len(losses)} diverged"
    return f"{statistics.fmean(finite):.3f} ±{_deviation(finite)}"


def _deviation(values: Sequence[float]) -> str:
    return f"{statistics.stdev(values):.3f}" if len(values) > 1 else "?"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3g}" if values else "-"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}" if values else "-"


def _signed(differences: Sequence[float]) -> str:
    if not differences:
        return "(diverged)"
    mean = statistics.fmean(differences)
    return f"{mean:+.3f}" if math.isfinite(mean) else "(diverged)"
