"""Does the advantage of a geometry rank the best single step that a line search finds in it?

    python benchmarks/advantage.py                # about 6 minutes on one core

A GPT-2 of 370,944 parameters is trained with Adam as in `recipes/gpt2.py`. At several steps of it,
on one fixed batch: the advantage of each partition over "global" by both measures of
`measure_geometry`, and the one observed: the largest decrease of the loss along the partition's
direction of steepest descent, by line search, over that of "global". This is of one step: how a
training ends is another question, whose test is in docs/results/prediction.md.
"""

import argparse
from itertools import combinations

from stopwatch import heading
from torch import Tensor
from trained_gpt2 import token_loss, trained_gpt2

from lightning_linf import Landscape, Partition, measure_geometry
from lightning_linf.functional import dual_direction
from lightning_linf.probe.partitions import choose_partitions

NAMES = ("coordinate", "row", "tensor", "global")


def best_decrease(
    landscape: Landscape, gradient: Tensor, partition: Partition, guess: float
) -> float:
    """Find the largest decrease by line search: powers of 2 around a guess, then finer."""
    direction = -dual_direction(gradient, partition)
    start = landscape.loss()

    def decrease(length: float) -> float:
        return start - landscape.loss(length * direction)

    lengths = [guess * 2.0**k for k in range(-8, 9)]
    best = max(lengths, key=decrease)
    for factor in (2.0**0.5, 2.0**0.25, 2.0**0.125):
        best = max((best / factor, best, best * factor), key=decrease)
    return decrease(best)


def agreement(predicted: list[float], observed: list[float]) -> tuple[int, int]:
    """Count pairs that both order alike, and all pairs."""
    pairs = list(combinations(range(len(predicted)), 2))
    alike = sum((predicted[i] - predicted[j]) * (observed[i] - observed[j]) > 0 for i, j in pairs)
    return alike, len(pairs)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 20, 50, 100, 200, 400])
    parser.add_argument("--probes", type=int, default=8)
    choices = parser.parse_args()
    heading()
    module, batch, kept = trained_gpt2(choices.steps)
    counts = {"from N(Phi)": [0, 0], "from the curvature along the step": [0, 0]}
    print("                   ------- advantage over global ---------")
    print("step   loss  partition   from N(Phi)     along   observed")
    for step in choices.steps:
        module.load_state_dict(kept[step])
        partitions = choose_partitions(module, NAMES)
        report = measure_geometry(
            module, [batch], loss=token_loss, partitions=partitions, num_probes=choices.probes
        )
        decreases = {}
        with Landscape(module, [batch], loss=token_loss) as landscape:
            gradient = landscape.gradient()
            for partition in partitions:
                name = partition.name
                # The step length that is best for a quadratic of this curvature.
                guess = report.dual_norm[name] / report.smoothness[name].lower
                decreases[name] = best_decrease(landscape, gradient, partition, guess)
        observed = [decreases[name] / decreases["global"] for name in decreases]
        for name, advantage in zip(decreases, observed, strict=True):
            print(
                f"{step:4d} {report.loss:6.3f}  {name:10s} {report.advantage[name]!s:>15s} "
                f"{report.step_advantage[name]:7.2f} {advantage:10.2f}",
                flush=True,
            )
        # The upper end rests on the lower end of N(Phi), which the ascent usually reaches.
        upper_ends = [report.advantage[name].upper for name in decreases]
        along = [report.step_advantage[name] for name in decreases]
        for kind, predicted in zip(counts, (upper_ends, along), strict=True):
            found = agreement(predicted, observed)
            counts[kind] = [a + b for a, b in zip(counts[kind], found, strict=True)]
            print(f"{step:4d} pairs ordered as predicted {kind}: {found[0]} of {found[1]}")
    for kind, (alike, total) in counts.items():
        print(f"all steps: {alike} of {total} pairs ordered as predicted {kind}")


if __name__ == "__main__":
    main()
