"""Lines of `all.py` about probes of a network: products, whole reports and their memory."""

import gc
import statistics
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from gpt2_network import (
    GPT2_124M,
    GPT2_XL,
    SMALL,
    TINY,
    Shape,
    gradient,
    make_gpt2,
    token_loss,
    zipf_tokens,
)
from live_memory import free_gib, peak_bytes
from stopwatch import medians, seconds_of
from targets import Measured
from torch import Tensor, nn

from lightning_linf.probe import Landscape, measure_landscape
from lightning_linf.probe.partitions import choose_partitions
from lightning_linf.report import GeometryReport

PARTITIONS = ("coordinate", "global")
XL_LEAST_GIB = 60.0  # 10 vectors of 1.56e9 numbers in float32; with less there is no use in a try


class ReportSizes(NamedTuple):
    """What the lines are measured on."""

    shape: Shape
    num_probes: int
    layer_width: int  # two linear layers of as many inputs and outputs
    rows: int  # of the batch on which those take the time that a product takes in training
    rounds: int
    xl: Shape | None


SIZES = {
    "tiny": ReportSizes(TINY, 4, 16, 2, 1, None),
    "cpu quick": ReportSizes(SMALL, 16, 2048, 128, 5, None),
    "cpu": ReportSizes(SMALL, 16, 4096, 128, 9, None),
    "cuda quick": ReportSizes(GPT2_124M, 16, 4096, 128, 5, GPT2_XL),
    "cuda": ReportSizes(GPT2_124M, 16, 4096, 128, 15, GPT2_XL),
}


class TimedLandscape(Landscape):
    """Keeps how long each product takes, from an idle device to an idle device."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds: list[float] = []  # of each product; those of one call share alike

    def hvp(self, vectors: Tensor) -> Tensor:
        """Multiply as a landscape does."""
        return self._timed(vectors, super().hvp)

    def curvatures(self, vectors: Tensor, visit: Callable[[Tensor, float], object]) -> Tensor:
        """Measure along vectors as a landscape does."""
        return self._timed(vectors, partial(super().curvatures, visit=visit))

    def _timed(self, vectors: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
        count = 1 if vectors.ndim == 1 else len(vectors)
        results: list[Tensor] = []
        seconds = seconds_of(lambda: results.append(multiply(vectors)), self.parameters.device)
        self.seconds += [seconds / count] * count
        return results[0]


class Report(NamedTuple):
    """A report of "coordinate" and "global", and what it took."""

    report: GeometryReport
    product: float  # median seconds of a product in it

    @property
    def per_product(self) -> float:
        """Time of the report over that of its products."""
        return self.report.seconds / (self.report.num_hvps * self.product)


Loss = Callable[[nn.Module, Tensor], Tensor]


def take_report(module: nn.Module, batch: Tensor, loss: Loss, num_probes: int) -> Report:
    """Measure a module as `measure_geometry` does, without the check of its loss."""
    partitions = choose_partitions(module, PARTITIONS)
    with TimedLandscape(module, [batch], loss=loss) as landscape:
        landscape.hvp(landscape.gradient())  # builds what is built once
        landscape.seconds.clear()
        report = measure_landscape(landscape, partitions, num_probes=num_probes)
        if len(landscape.seconds) != report.num_hvps:
            raise RuntimeError(
                f"report_lines: expected to have timed all {report.num_hvps} products of a "
                f"report, got {len(landscape.seconds)}. Time what forms the others, too."
            )
        return Report(report, statistics.median(landscape.seconds))


def product_lines(sizes: ReportSizes, device: torch.device) -> dict[str, Measured]:
    """One product over a plain float32 gradient of the same batch, and over a training step."""
    module = make_gpt2(sizes.shape, device)
    tokens = zipf_tokens(sizes.shape, device)
    training = deepcopy(module)  # inside the landscape the module belongs to the probe
    with Landscape(module, [tokens], loss=token_loss) as landscape:
        vector = landscape.gradient()
        actions = {
            "gradient": lambda: gradient(training, tokens),
            "step": training_step(training, zipf_tokens(sizes.shape, device, times=4)),
            "product": lambda: landscape.hvp(vector),
        }
        seconds = medians(actions, device, sizes.rounds)
    batch, product = _of(sizes.shape), f"product {1e3 * seconds['product']:.4g} ms"
    kind = "bf16 autocast" if device.type == "cuda" else "float32"
    return {
        "product": Measured(seconds["product"] / seconds["gradient"],
                            f"{batch}, {product}, gradient {1e3 * seconds['gradient']:.4g}"),
        "product step": Measured(seconds["product"] / seconds["step"],
                                 f"{product}, step on 4 times the batch in {kind} "
                                 f"{1e3 * seconds['step']:.4g}"),
    }  # fmt: skip


def training_step(module: nn.Module, tokens: Tensor) -> Callable[[], object]:
    """Make a step as trainings take it: on CUDA in bf16 autocast, with fused AdamW."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True)
    is_cuda = tokens.device.type == "cuda"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=is_cuda):
            loss = token_loss(module, tokens)
        loss.backward()
        optimizer.step()

    return step


def report_lines(sizes: ReportSizes, device: torch.device) -> dict[str, Measured]:
    """A report of a GPT-2: time over that of its products, their number, and memory on CUDA."""
    tokens = zipf_tokens(sizes.shape, device)
    module = make_gpt2(sizes.shape, device)
    found: list[Report] = []

    def measure() -> None:
        found.append(take_report(module, tokens, token_loss, sizes.num_probes))

    memory = Measured(None, "only on CUDA, where activations are as large as in training")
    if device.type == "cuda":
        peak = _peak_gib(measure, device)
        training = training_step(module, zipf_tokens(sizes.shape, device, times=4))
        step_peak = _peak_gib(training, device)
        memory = Measured(
            peak, f"{_of(sizes.shape)}; training on 4 times the batch {step_peak:.3g}"
        )
    else:
        measure()
    taken = found[0]
    note = f"{_of(sizes.shape)}, {taken.report.seconds:.3g} s, product {1e3 * taken.product:.4g} ms"
    return {
        "report": Measured(taken.per_product, note),
        "report products": Measured(taken.report.num_hvps, f"{sizes.num_probes} probes"),
        "memory": memory,
    }


def vector_count_lines(sizes: ReportSizes, device: torch.device) -> dict[str, Measured]:
    """Vectors of d in use at once, with two wide layers and a batch of 2: the graph is small."""
    module = linear_layers(sizes.layer_width, device)
    num_params = sum(p.numel() for p in module.parameters())
    batch = torch.randn(2, sizes.layer_width, device=device)

    def product() -> None:
        with Landscape(module, [batch], loss=layer_loss) as landscape:
            landscape.hvp(torch.ones(num_params, device=device))

    def report() -> None:
        take_report(module, batch, layer_loss, 4)

    note = f"d = {num_params:,}, batch of 2"
    return {
        key: Measured(peak_bytes(action, device) / (4 * num_params), note)
        for key, action in (("product vectors", product), ("report vectors", report))
    }


def share_lines(sizes: ReportSizes, device: torch.device) -> dict[str, Measured]:
    """Time beside products in a report of two wide layers, on a batch of ``rows``."""
    module = linear_layers(sizes.layer_width, device)
    batch = torch.randn(sizes.rows, sizes.layer_width, device=device)
    taken = take_report(module, batch, layer_loss, 4)
    note = (
        f"d = {taken.report.num_params:,}, batch of {sizes.rows}, 4 probes, "
        f"{taken.report.num_hvps} products of {1e3 * taken.product:.3g} ms in "
        f"{taken.report.seconds:.3g} s"
    )
    return {"share": Measured(100 * (1 - 1 / max(taken.per_product, 1.0)), note)}


def linear_layers(width: int, device: torch.device) -> nn.Module:
    """Two linear layers, whose parameters are many and whose graph is small."""
    torch.manual_seed(0)
    with device:
        return nn.Sequential(
            nn.Linear(width, width, bias=False), nn.Tanh(), nn.Linear(width, width, bias=False)
        )


def layer_loss(module: nn.Module, x: Tensor) -> Tensor:
    """Mean square of the outputs."""
    return module(x).square().mean()


def xl_lines(sizes: ReportSizes, device: torch.device) -> dict[str, Measured]:
    """A report of GPT-2 XL, with 4 probes: does it fit, and in how much?"""
    if sizes.xl is None or device.type != "cuda":
        return {"xl": Measured(None, "only on CUDA")}
    free = free_gib(device)
    if free < XL_LEAST_GIB:
        return {"xl": Measured(None, f"{free:.0f} GiB are free, and it takes {XL_LEAST_GIB:g}")}
    module, tokens = make_gpt2(sizes.xl, device), zipf_tokens(sizes.xl, device)
    found: list[Report] = []
    try:
        peak = _peak_gib(lambda: found.append(take_report(module, tokens, token_loss, 4)), device)
    except torch.OutOfMemoryError:
        return {"xl": Measured(float("inf"), f"out of memory, of which {free:.0f} GiB were free")}
    report = found[0].report
    note = f"{_of(sizes.xl)}, {report.num_hvps} products in {report.seconds:.3g} s"
    return {"xl": Measured(peak, note)}


def _peak_gib(action: Callable[[], object], device: torch.device) -> float:
    """Peak of all that CUDA has in use, in GiB: what was there before included."""
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    return (before + peak_bytes(action, device)) / 2**30


def _of(shape: Shape) -> str:
    return f"{shape.sequences} x {shape.tokens} tokens"
