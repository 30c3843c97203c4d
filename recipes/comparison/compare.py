"""Compare optimizers on equal terms, each at the best learning rate of a sweep.

All runs have the same data in the same order, initial weights, warm-up, schedule, clipping and
number of steps. None has weight decay, because it means something else in each geometry. A finished
run is kept as `runs_dir/name/*.json`, so an interrupted comparison goes on where it stopped.

With --seeds, every optimizer also trains at its best rate with seeds that the sweep did not have.
Where these runs end, the geometry is measured in the coordinates that the optimizer saw. Where
Adam's runs end, the geometries of all optimizers are measured, so that they compare at one point.
With --rounding, some of these runs are repeated from weights that differ as rounding does. Nothing
is concluded of an optimizer whose best rate is an end of those tried: --widen adds rates.

All results are written to `runs_dir/name/comparison.json`, with a figure beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from command_line import parse
from comparison.figures import draw_comparison
from comparison.options import Options
from comparison.records import write_json
from comparison.runs import Runs, say
from comparison.sentences import comparison_sentence, seeds_sentences
from comparison.single_run import Outcome, Run
from comparison.sweep import Rate, best, chosen, is_end, sweep
from comparison.tables import comparison_table, seeds_table
from comparison.variants import ADAM, CHOICES, FEW, Variant
from comparison.versions import versions
from training.config import ConfigT, Prepare, TrainingConfig

ABOUT = (
    "Train with Adam, Adam in rotated coordinates, blockwise Adam, AdaSGD and SGD, each at three "
    "learning rates a factor 2 apart, without probes, and show who is ahead. --lr is Adam's middle "
    "one; those of the others are multiples of it that fit the preset tiny. Finished runs are not "
    "repeated."
)
NUM_STEPS = 250
_MOST_WARMUP_STEPS = 25
_DEFAULTS = Options()


@dataclass(frozen=True)
class Comparison:
    """The results: runs of the sweep, those with other seeds, and these shaken, by variant."""

    config: TrainingConfig
    sweep: Mapping[Variant, Sequence[Rate]]
    seeds: Mapping[Variant, Sequence[Outcome]]
    shaken: Mapping[Variant, Sequence[Outcome]]


def shorter(presets: Mapping[str, Callable[[], ConfigT]]) -> dict[str, Callable[[], ConfigT]]:
    """Change presets to what a comparison takes by default: fewer steps of larger batches."""

    def change(preset: Callable[[], ConfigT]) -> ConfigT:
        config = preset()
        return replace(
            config,
            name=f"{config.name}-compare",
            batch_size=2 * config.batch_size,  # accumulated: less chance in who is ahead
            max_steps=min(config.max_steps, NUM_STEPS),
            warmup_steps=min(config.warmup_steps, _MOST_WARMUP_STEPS),
            weight_decay=0.0,
        )

    return {name: lambda preset=preset: change(preset) for name, preset in presets.items()}  # type: ignore[misc]


def run(
    args: Sequence[str],
    presets: Mapping[str, Callable[[], ConfigT]],
    prepare: Prepare,
    train: Callable[[ConfigT], Any],
    about: str,
    lacks: str | None = None,
) -> None:
    """Do what the command line of a recipe asks for: train, or compare.

    Args:
        args: The command line without the program.
        presets: Named sets of settings, the default first.
        prepare: Makes trainer, module and data of a config (see `training.config.Prepare`).
        train: The recipe's function that trains, for a command line without `compare`.
        about: First line of the help.
        lacks: A partition that the network does not have, as a ResNet has no "head".
    """
    if args[:1] != ["compare"]:
        train(parse(presets, args, about, "%(prog)s [compare]")[0])
        return
    config, options = parse(shorter(presets), args[1:], ABOUT, "%(prog)s compare", Options)
    there = {name: [v for v in CHOICES[name] if v.partition != lacks] for name in CHOICES}
    main(config, prepare, there[options.variants], options, there["all"])


def main(
    config: TrainingConfig,
    prepare: Prepare,
    variants: Sequence[Variant] = FEW,
    options: Options = _DEFAULTS,
    measured: Sequence[Variant] = (),
) -> list[Comparison]:
    """Make the runs that were not made before, and print the results, for every batch size.

    Args:
        config: Settings that all runs share.
        prepare: As for :func:`run`.
        variants: The optimizers to compare.
        options: Settings of the comparison.
        measured: The variants whose geometries are measured at the ends of Adam's runs; by default
            ``variants``.
    """
    options.check(config)
    runs = Runs(prepare, config.data_id(), options.jobs, options.budget)
    results = []
    for size in options.batch_sizes or (config.batch_size,):
        sized = config
        if options.batch_sizes:
            say(f"Batches of {size}")
            micro = min(config.micro_batch, size)
            name = f"{config.name}-batch{size}"
            sized = replace(config, batch_size=size, micro_batch=micro, name=name)
        results.append(compare(sized, runs, variants, options, measured or variants))
    return results


def compare(
    config: TrainingConfig,
    runs: Runs,
    variants: Sequence[Variant],
    options: Options,
    measured: Sequence[Variant],
) -> Comparison:
    """Compare at one batch size."""
    swept = sweep(config, runs, variants, options.sweep_seeds, options.widen)
    say(comparison_table(swept, config.max_steps))
    say(comparison_sentence(swept, config.max_steps))
    seeds: Mapping[Variant, Sequence[Outcome]] = {}
    if options.seeds:
        seeds = _other_seeds(config, runs, swept, measured, options)
    shaken = _shaken(config, runs, swept, options) if options.rounding else {}
    comparison = Comparison(config, swept, seeds, shaken)
    record = _record(comparison, options, runs.data_id)
    path = Path(config.runs_dir, config.name, "comparison.json")
    write_json(path, record)
    if seeds:
        say(seeds_table(record))
        for sentence in seeds_sentences(record):
            say(sentence)
        rank_zero_only(draw_comparison)(record, path.with_suffix(".png"))
    return comparison


def _other_seeds(
    config: TrainingConfig,
    runs: Runs,
    swept: Mapping[Variant, Sequence[Rate]],
    measured: Sequence[Variant],
    options: Options,
) -> dict[Variant, list[Outcome]]:
    """Run every variant at its best rate with other seeds, and measure the geometry at the end.

    At the ends of Adam's runs all geometries are measured, so that they compare at one point.
    """
    partitions = tuple({variant.partition: None for variant in measured})
    rotations = tuple({v.rotation: None for v in measured if v.partition == "coordinate"})

    def measuring(variant: Variant, config: TrainingConfig) -> Run:
        return Run(
            config,
            partitions if variant == ADAM else (variant.partition,),
            tuple(filter(None, rotations)) if variant == ADAM else (),
            options.points,
        )

    return _at_best(config, runs, swept, options, options.seeds, measuring)


def _shaken(
    config: TrainingConfig,
    runs: Runs,
    swept: Mapping[Variant, Sequence[Rate]],
    options: Options,
) -> dict[Variant, list[Outcome]]:
    """Repeat the first of these runs, shaken and not measured."""

    def shaken(variant: Variant, config: TrainingConfig) -> Run:
        return Run(config, is_shaken=True)

    return _at_best(config, runs, swept, options, options.rounding, shaken)


def _at_best(
    config: TrainingConfig,
    runs: Runs,
    swept: Mapping[Variant, Sequence[Rate]],
    options: Options,
    num_seeds: int,
    make: Callable[[Variant, TrainingConfig], Run],
) -> dict[Variant, list[Outcome]]:
    """Make runs of every variant at its best rate, with seeds that the sweep did not have."""
    first = config.seed + options.sweep_seeds
    pairs = [(variant, first + i) for variant in swept for i in range(num_seeds)]
    made = [
        make(variant, replace(chosen(config, variant, best(swept[variant]).lr), seed=seed))
        for variant, seed in pairs
    ]
    results: dict[Variant, list[Outcome]] = {variant: [] for variant in swept}
    for (variant, _), outcome in zip(pairs, runs.finish(made), strict=True):
        results[variant].append(outcome)
    return results


def _is_end(swept: Mapping[Variant, Sequence[Rate]], variant: Variant) -> bool:
    """Whether the variant's rate, or that of the one whose rate it takes, is an end."""
    rates = swept[variant.same_rate_as or variant]
    return is_end(best(rates), rates)


def _record(comparison: Comparison, options: Options, data_id: str) -> dict[str, Any]:
    """Collect the content of comparison.json."""
    config = comparison.config
    return {
        "name": config.name,
        "config": asdict(config),
        "options": {k: v for k, v in asdict(options).items() if k != "budget"},
        "data": data_id,
        "variants": [
            {
                "optimizer": variant.optimizer,
                "geometry": variant.geometry,
                "partition": variant.partition,
                "rotation": variant.rotation and "{} {:g}".format(*variant.rotation),
                "lr": best(rates).lr,
                "is_end": _is_end(comparison.sweep, variant),
                "sweep": [asdict(rate) for rate in rates],
                "seeds": [asdict(outcome) for outcome in comparison.seeds.get(variant, ())],
                "shaken": [asdict(outcome) for outcome in comparison.shaken.get(variant, ())],
            }
            for variant, rates in comparison.sweep.items()
        ],
        "versions": versions(),
    }
