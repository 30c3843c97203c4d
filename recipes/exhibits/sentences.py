"""What is seen on the pages of the gallery, and what is normal of it."""

import math
from collections.abc import Iterator
from itertools import pairwise

from exhibits.measured import Measured, claim, first, number

_LOWER, _UPPER = "advantage_lower/coordinate", "advantage_upper/coordinate"


def gpt2(run: Measured) -> Iterator[str]:
    """Curvature grows, the edge is far, and Adam's geometry is ahead once the warm-up is over."""
    loss, curvature = run.curve("probe_loss"), run.curve("lambda_max")
    stable, edge = run.curve("largest_stable_lr"), run.curve("edge")
    lower, upper = run.curve(_LOWER), run.curve(_UPPER)
    (start, *_, last), (early, *_) = loss, lower
    yield claim(
        f"While the loss of the measured batch falls from {number(loss[start])} to "
        f"{number(loss[last])}, the largest curvature λ_max grows from {number(curvature[start])} "
        f"to {number(curvature[last])}, and the largest stable learning rate shrinks from "
        f"{number(stable[start])} to {number(stable[last])}. That is normal: curvature tends to "
        "grow until the learning rate limits it ([Cohen et "
        "al.](https://arxiv.org/abs/2103.00065)).",
        loss[last] < loss[start], curvature[last] > 10 * curvature[start],
        stable[last] < stable[start] / 2,
    )  # fmt: skip
    yield claim(
        f"Here it does not: `edge` is at most {number(max(edge.values()))}, far below 1, and the "
        "last steps are short, as the cosine has made them. To second order, and by the batch of "
        f"that step alone, the best step {last} would have been "
        f"{number(run.last('best_step_multiple'))} times as long.",
        max(edge.values()) < 0.5, run.last("best_step_multiple") > 3,
    )  # fmt: skip
    ahead = first(
        (step for step in lower if all(lower[s] > 1 for s in lower if s >= step)), "Adam ahead"
    )
    yield claim(
        "By the largest curvature that each can meet, one step of Adam's geometry lowers the "
        f"loss {number(lower[early])} to {number(upper[early])} times as far as one of SGD's at "
        f"step {early}, and {number(lower[last])} to {number(upper[last])} times at step {last}: "
        f"ahead from step {ahead} on.",
        upper[early] < 1, lower[last] > 1, ahead < last / 2,
    )  # fmt: skip
    yield claim(
        f"The verdict of the last measurement is all the same \"{run.verdict()}\": the noise scale "
        f"of {number(run.last('noise_scale'))} sequences, far above the batch of "
        f"{run.settings['batch_size']}, leaves the other measure, by the curvature along each "
        "step, without one. The star in the table says that a search for the largest "
        "curvature is not at its end; what it has found so far holds. Both are normal for a small "
        "batch and a cheap measurement.",
        "Undecided: the error over batches is not known" in run.verdict(),
        run.last("converged/coordinate") == 0,
        run.last("noise_scale") > 3 * run.settings["batch_size"],
        run.last("step_advantage_relative_error/coordinate") == float("inf"),
    )  # fmt: skip


def rotated(plain: Measured, turned: Measured) -> Iterator[str]:
    """In rotated coordinates l-infinity is less smooth, and Adam's advantage smaller."""
    norms = [run.curve("one_one_norm_per_param") for run in (plain, turned)]
    ratios = {step: norms[1][step] / norms[0][step] for step in norms[0]}
    ends = [(run.last(_LOWER), run.last(_UPPER)) for run in (plain, turned)]
    losses = [run.last("val_loss") for run in (plain, turned)]
    last = max(norms[0])
    yield claim(
        "AdamW of both runs begins at the same weights; the second sees them in randomly rotated "
        "coordinates, and each is measured in its own. A rotation changes neither the loss nor "
        "λ_max at a point, but it spreads what curvature the coordinates had kept apart: at "
        "every step that was measured the (1,1)-norm, the smoothness along l-infinity, is larger "
        f"in the rotated run. Over d it is {number(norms[1][last])} against "
        f"{number(norms[0][last])} at step {last}. Of this the runs' different paths are a part.",
        min(ratios.values()) > 1.5, norms[0].keys() == norms[1].keys(),
    )  # fmt: skip
    yield claim(
        f"At step {last} Adam's step, by the largest curvature, lowers the loss "
        f"{number(ends[0][0])} to {number(ends[0][1])} times as far as SGD's in the coordinates "
        f"of the parameters, and {number(ends[1][0])} to {number(ends[1][1])} times in the "
        "rotated ones. That is what the [paper](https://arxiv.org/abs/2410.08198) says of Adam: "
        "its geometry depends on the coordinates.",
        ends[1][1] < ends[0][0],
    )  # fmt: skip
    edge = turned.curve("edge")
    above = [step for step, value in edge.items() if value > 1]
    yield claim(
        "The training does not follow: the rotated run ends at a validation loss of "
        f"{number(losses[1])}, the other at {number(losses[0])}. One seed tells nothing of that; "
        "several do not tell the two apart either ([results](../results.md)). Not quite normal "
        f"is step {above[0]}, where `edge` is {number(edge[above[0]])} in the rotated run: near "
        "the top of the learning rate, steps with that preconditioner would diverge; at the next "
        f"measurement it is {number(edge[above[0] + turned.settings['smoothness_every']])}.",
        losses[1] < losses[0], len(above) == 1, max(plain.curve("edge").values()) < 1,
    )  # fmt: skip


def resnet(run: Measured) -> Iterator[str]:
    """It fits its images: curvature falls with the loss, and the edge with the curvature."""
    loss, curvature, edge = (run.curve(name) for name in ("probe_loss", "lambda_max", "edge"))
    change, validation = run.curve("step_change"), run.curve("val_loss")
    (start, *_, last), above = loss, [step for step, value in edge.items() if value > 1]
    best = min(validation, key=validation.__getitem__)
    yield claim(
        f"The loss of the measured batch falls from {number(loss[start])} at step {start} to "
        f"{number(loss[last])} at step {last}, and λ_max with it, from {number(curvature[start])} "
        f"to {number(curvature[last])}: the opposite of the GPT-2. That is normal for a network "
        "that comes to fit its data, as the curvature of a cross-entropy vanishes with its "
        "errors.",
        loss[last] < loss[start] / 100, curvature[last] < curvature[start] / 5,
    )  # fmt: skip
    yield claim(
        f"`edge` is above 1 at steps {', '.join(map(str, above))}, {number(edge[start])} at the "
        f"first, and {number(edge[last])} at the end. Yet every step that was measured lowered "
        "the loss of its batch: above 1 is a warning, not a proof. It is of the steepest "
        "direction alone, would need many steps with the same preconditioner, and is measured on "
        "the evaluation-mode network, whose BatchNorm has running statistics, where training has "
        "those of the batch.",
        above == list(edge)[: len(above)], len(above) >= 2, edge[last] < 0.1,
        all(value < 0 for value in change.values()),
    )  # fmt: skip
    yield claim(
        f"The validation loss is least at step {best}, {number(validation[best])}, and "
        f"{number(validation[last])} at the end. No panel of the geometry tells of that: all of "
        "them measure the loss of training batches.",
        validation[last] > 1.1 * validation[best],
    )  # fmt: skip


def vit(run: Measured) -> Iterator[str]:
    """Queries, keys and values stand out among the layers, and one step went uphill."""
    density = run.by_tensor("density")
    joint = [name for name in density if ".in_proj_" in name]
    least = sorted(density, key=density.__getitem__)[: len(joint)]
    yield claim(
        f"At the last step the {len(joint)} tensors of {len(density)} in which the gradient is "
        f"least dense, {number(density[least[0]])} to {number(density[least[-1]])}, are the joint "
        "weights and biases of queries, keys and values (`in_proj`) of both blocks. Of the "
        "biases that is normal for any attention with a softmax: the loss does not depend on "
        "those of the keys, a third of the entries, whose gradient is rounding alone.",
        set(least) == set(joint), len(joint) == 2 * run.settings["n_layer"],
    )  # fmt: skip
    change, error = run.curve("step_change"), run.curve("step_change_error")
    uphill = first((step for step, value in change.items() if value > 0), "a rising loss")
    edge, multiple = run.curve("edge"), run.curve("best_step_multiple")
    yield claim(
        f"`edge` is {number(min(edge.values()))} to {number(max(edge.values()))}: the learning "
        f"rate is large and bearable. One of the {len(change)} measured steps, that of step "
        f"{uphill}, raised the loss of its batch, by {number(change[uphill])} ± "
        f"{number(error[uphill])}, and its best multiple is {number(multiple[uphill])}: it went "
        "uphill, as momentum and noisy gradients let a step do. One such step in "
        f"{len(change)} is no alarm.",
        max(edge.values()) < 1, max(edge.values()) > 0.5, multiple[uphill] < 0,
        sum(value > 0 for value in change.values()) == 1,
    )  # fmt: skip
    lower, upper = run.curve(_LOWER), run.curve(_UPPER)
    start, *_, last = lower
    yield claim(
        f"By the largest curvature Adam's geometry is behind at step {start} "
        f"({number(lower[start])} to {number(upper[start])}) and ahead at step {last} "
        f"({number(lower[last])} to {number(upper[last])}), in the same order as in the GPT-2. "
        f"The verdict is \"{run.verdict()}\", as a batch of {run.settings['batch_size']} images "
        "leaves the gradient in the noise: the noise scale of the last step is infinite, which "
        "is to say that its gradient cannot be told from noise.",
        upper[start] < 1, lower[last] > 1, "Undecided" in run.verdict(),
        run.last("noise_scale") == float("inf"),
    )  # fmt: skip


def diverging(run: Measured) -> Iterator[str]:
    """At the edge for a while, then off it, until nothing is a number."""
    edge, loss = run.curve("edge"), run.curve("probe_loss")
    train, rate = run.curve("train_loss"), run.curve("lr-SGD/pg1")
    reached = first((step for step, value in edge.items() if value > 1), "an edge above 1")
    off = first((step for step in loss if loss[step] > 2 * loss[min(loss)]), "a risen loss")
    at_edge = [step for step in edge if reached <= step < off]
    escaping = [step for step in loss if step >= off]
    lost = first(
        (step for step, value in train.items() if not math.isfinite(value)), "a loss not finite"
    )
    yield claim(
        f"The learning rate rises from step to step. At step {reached}, at a rate of "
        f"{number(rate[reached])}, `edge` is above 1 for the first time, and from there to step "
        f"{at_edge[-1]} it is {number(min(edge[s] for s in at_edge))} to "
        f"{number(max(edge[s] for s in at_edge))}, while the loss of the measured batch stays at "
        f"{number(min(loss[s] for s in at_edge))} to {number(max(loss[s] for s in at_edge))}: for "
        f"a while training can stay at the edge of stability. From step {off} on it does not: "
        f"`edge` is {', '.join(number(edge[s]) for s in escaping[:3])}, the loss "
        f"{', '.join(number(loss[s]) for s in escaping[:3])}, and {number(loss[escaping[-1]])} at "
        f"step {escaping[-1]}. The training loss is no finite number from step {lost} on.",
        max(edge[s] for s in edge if s < reached) < 1, max(edge[s] for s in at_edge) > 1,
        max(loss[s] for s in at_edge) < 1.1 * loss[min(loss)],
        all(edge[s] > 2 for s in escaping[:3]), len(escaping) > 3,
        all(loss[s] < loss[t] for s, t in pairwise(escaping)), lost > escaping[-1],
        all(not math.isfinite(value) for step, value in train.items() if step >= lost),
    )  # fmt: skip
    density, top = run.finite("density"), run.finite("top1_energy")
    (start, *_, end) = density
    yield claim(
        f"The gradient tells the same: its density falls from {number(density[start])} at step "
        f"{start} to {number(density[end])} at step {end}, where the largest 1 % of its entries "
        f"hold {100 * top[end]:.1f} % of its square.",
        density[end] < density[start] / 10, top[end] > 0.9,
    )  # fmt: skip
    measured = max(edge)
    yield claim(
        "What follows is as it should be: no monitor ends the training, each says once that it "
        "cannot measure, and the panel of the verdict says from which step on the loss is not "
        f"finite. The last whole report, of step {measured}, is of a point that is lost "
        f"already, where `edge` is {number(edge[measured])}: what a measurement says of such a "
        "point is no longer of use.",
        measured < lost, run.run.report_step + 1 == measured,
    )  # fmt: skip
