"""What is to be reached on a GPU and on a CPU, line by line, and whether it is."""

from typing import NamedTuple


class Target(NamedTuple):
    """At most this much, by device; without numbers nothing is asked for there."""

    bar: float | None = None
    goal: float | None = None


class Line(NamedTuple):
    """One number that is measured."""

    what: str
    unit: str
    cuda: Target = Target()
    cpu: Target = Target()


class Measured(NamedTuple):
    """A value, or why there is none; and what it was measured on."""

    value: float | None
    note: str = ""


STEP = "steps of AdamW(fused)"
LINES: dict[str, Line] = {
    "step tensor": Line("BlockwiseAdam step, tensor", STEP, Target(1.1, 0.9), Target(1.1)),
    "step head": Line("BlockwiseAdam step, head", STEP, Target(1.1, 0.9)),
    "step row": Line("BlockwiseAdam step, row", STEP, Target(1.1, 0.9)),
    "step coordinate": Line("BlockwiseAdam step, coordinate", STEP, Target(1.1, 0.9)),
    "step adasgd": Line("AdaSGD step", STEP, Target(1.0, 0.8)),
    "step signum": Line("Signum step", STEP, Target(1.0, 0.8)),
    "step rotated": Line("AdamW step in rotated coordinates", STEP, Target(8.0, 6.0)),
    "rotation": Line("one global rotation", "copies", Target(14.0, 10.0), Target(30.0)),
    "heterogeneity": Line("heterogeneity of all gradients", "vector norms", Target(20.0, 5.0)),
    "probe": Line("one Cauchy probe", "ms", Target(3.0, 1.0)),
    "probe copies": Line("one Cauchy probe", "copies"),
    "control variate": Line("control variate, 16 probes", "s", Target(0.15, 0.05)),
    "product": Line("Hessian-vector product", "gradients", Target(2.2, 2.1), Target(2.2, 2.1)),
    "product step": Line("Hessian-vector product", "training steps"),
    "report": Line("report, per product", "products", Target(1.1, 1.05), Target(1.1, 1.05)),
    "report products": Line(
        "products of a report, coordinate + global", "products", Target(None, 32), Target(None, 32)
    ),
    "memory": Line("peak memory of that report", "GiB", Target(30.0, 24.0)),
    "product vectors": Line("a product, beyond the start", "vectors of d"),
    "report vectors": Line(
        "a report, 4 probes, beyond the start", "vectors of d", Target(14, 10), Target(14, 10)
    ),
    # 20 and 10 % of the whole are these shares; asked for at d = 33.5M on two cores.
    "share": Line("part of that report beside products", "%", cpu=Target(20.0, 10.0)),
    "xl": Line("GPT-2 XL, report of 4 probes, peak", "GiB", Target(130.4, 74.5)),  # 140, 80 GB
}


def target_of(line: Line, device_type: str) -> Target:
    """Give what is asked for on a device."""
    return line.cuda if device_type == "cuda" else line.cpu


def verdict(target: Target, measured: Measured) -> str:
    """Say whether a target is reached."""
    if measured.value is None:
        return f"not measured: {measured.note}"
    if target.bar is None and target.goal is None:
        return "no target here"
    if target.goal is not None and measured.value <= target.goal:
        return "met, goal"
    if target.bar is not None and measured.value <= target.bar:
        return "met, bar"
    return "FALLS SHORT"


def table_head() -> str:
    """Give the head of the table that :func:`table_row` makes."""
    return f"{'what':44s} {'bar':>7s} {'goal':>7s} {'measured':>9s}  {'unit':23s} verdict"


def table_row(line: Line, device_type: str, measured: Measured) -> str:
    """Give one line of the table."""
    target = target_of(line, device_type)
    bar, goal = ("" if limit is None else f"{limit:g}" for limit in target)
    value = "" if measured.value is None else f"{measured.value:.4g}"
    note = f"  ({measured.note})" if measured.note and measured.value is not None else ""
    return (
        f"{line.what:44s} {bar:>7s} {goal:>7s} {value:>9s}  {line.unit:23s} "
        f"{verdict(target, measured)}{note}"
    )
