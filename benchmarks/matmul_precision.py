"""What does `matmul_precision="high"`, matrix products in TF32, change of a report?

    python benchmarks/matmul_precision.py                  # TF32 emulated, 15 minutes on one core
    python benchmarks/matmul_precision.py --model mlp      # one network, in a minute
    python benchmarks/matmul_precision.py --device cuda    # real TF32; gpt2-tiny alone

Every number that `measure_geometry` reports, measured on one batch with the same probes in
"highest" and in "high", and the error that the report itself states beside it ("-": none; of the
ends of a bracket its width). Networks: the GPT-2 of `recipes/gpt2.py` after 400 steps, and trained
ones of `benchmarks/hessians.py`, all in float32.

A CPU has no TF32. There its rounding is emulated: what mm, bmm, addmm and baddbmm multiply is
rounded to 10 bits of mantissa, to nearest even, wherever "high" has switched TF32 on for CUDA, and
added up in float32. An operation that a GPU gives to other kernels is not told apart.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from hessians import TRAIN
from stopwatch import heading, seconds_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from trained_gpt2 import token_loss, trained_gpt2

from lightning_linf import Landscape
from lightning_linf.functional import cauchy
from lightning_linf.functional.full_precision import MatmulPrecision
from lightning_linf.probe.measure import measure_landscape
from lightning_linf.probe.partitions import choose_partitions
from lightning_linf.report import GeometryReport

NAMES = ("coordinate", "tensor", "global")
SMALL = ("factorisation", "graph", "contrastive", "mlp", "gpt2")  # those that run in float32
GPT2_STEPS = (400,)
STEP = 1e-3  # of the secant: this far along the signs of the gradient, as a step of Adam goes


class Network(NamedTuple):
    """A trained network, what it is measured on, and its loss."""

    module: nn.Module
    batch: Any
    loss: Callable[[nn.Module, Any], Tensor]


class EmulatedTF32(TorchDispatchMode):
    """Round what float32 matrix products multiply, while TF32 is switched on for CUDA."""

    products: ClassVar[dict[Any, int]] = {  # and how many leading arguments are only added
        torch.ops.aten.mm.default: 0,
        torch.ops.aten.bmm.default: 0,
        torch.ops.aten.addmm.default: 1,
        torch.ops.aten.baddbmm.default: 1,
    }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation."""
        added = self.products.get(func)
        if added is not None and torch.backends.cuda.matmul.fp32_precision == "tf32":
            args = (*args[:added], *map(round_to_tf32, args[added:]))
        return func(*args, **(kwargs or {}))


def round_to_tf32(values: Tensor) -> Tensor:
    """Round finite float32 to 10 bits of mantissa, ties to even."""
    if values.dtype != torch.float32:
        return values
    bits = values.contiguous().view(torch.int32)
    odd = (bits >> 13) & 1
    return ((bits + 0xFFF + odd) & ~0x1FFF).view(torch.float32)


def measure(
    network: Network, precision: MatmulPrecision, num_probes: int, step: Tensor
) -> dict[str, Any]:
    """Measure all numbers, as pairs of value and stated relative error."""
    module, batch, loss = network
    partitions = choose_partitions(module, NAMES)
    with Landscape(module, [batch], loss=loss, matmul_precision=precision) as landscape:
        report = measure_landscape(landscape, partitions, num_probes=num_probes, last_step=step)
    return dict(numbers(report))


def numbers(report: GeometryReport) -> Iterator[tuple[str, tuple[float, float | None]]]:
    """Give every number of a report with the relative error that it states."""
    d = report.num_params
    yield "loss", (report.loss, None)
    yield "density", (report.density, None)
    yield "(1,1)-norm/d", (report.one_one_norm / d, report.one_one_norm_relative_error)
    yield "stated error of the (1,1)-norm", (report.one_one_norm_relative_error, None)
    yield "lambda_max", (report.lambda_max, report.lambda_max_relative_error)
    for name, block in report.smoothness.items():
        # The ends of a bracket state no error; what they leave open is the distance of both.
        width = block.operator_upper / block.lower - 1
        yield f"N/d lower/{name}", (block.lower / d, width)
        yield f"N/d upper/{name}", (block.operator_upper / d, width)
        if name == "tensor":
            yield f"H/d upper/{name}", (block.upper / d, block.upper_relative_error)
    for name in report.smoothness:
        yield f"dual norm/{name}", (report.dual_norm[name], None)
        yield f"curvature along g/{name}", (report.curvature[name] / d, None)
        if report.secant is not None:
            yield f"secant/{name}", (report.secant[name] / d, None)
        if name != "global":
            advantage = report.advantage[name]
            width = advantage.upper / advantage.lower - 1
            yield f"advantage lower/{name}", (advantage.lower, width)
            yield f"advantage upper/{name}", (advantage.upper, width)
        if name in report.step_advantage and name != "global":
            yield f"advantage along g/{name}", (report.step_advantage[name], None)
        if name in report.r_squared:
            yield f"R²/{name}", (report.r_squared[name], None)


def compare(name: str, network: Network, num_probes: int) -> dict[str, float]:
    """Print all numbers in both precisions; their relative differences."""
    with Landscape(network.module, [network.batch], loss=network.loss) as landscape:
        step = -STEP * landscape.gradient().sign()
    full, coarse = (measure(network, p, num_probes, step) for p in ("highest", "high"))
    print(f"\n{name}, {sum(p.numel() for p in network.module.parameters()):,} parameters")
    print(f"{'':32s}{'highest':>12s}{'high':>12s}{'difference':>12s}{'stated':>10s}")
    differences = {}
    for key, (value, error) in full.items():
        other = coarse.get(key, (float("nan"), None))[0]
        differences[key] = abs(other / value - 1) if value else abs(other)
        stated = "-" if error is None else f"{100 * error:.2g} %"
        print(f"{key:32s}{value:12.5g}{other:12.5g}{100 * differences[key]:10.2g} %{stated:>10s}")
    return differences


def products(network: Network, device: torch.device) -> None:
    """Print how far single products are apart, and on a GPU how long they take."""
    module, batch, loss = network
    found: dict[str, list[Tensor]] = {}
    vectors: dict[str, Tensor] = {}
    for precision in ("highest", "high"):
        with Landscape(module, [batch], loss=loss, matmul_precision=precision) as landscape:
            dim, like = landscape.parameters.num_params, landscape.parameters.like
            normal = torch.randn(dim, generator=torch.Generator().manual_seed(0)).to(device)
            draw = [cauchy(dim, seed=0, probe=k, dtype=like.dtype, device=device) for k in (0, 1)]
            vectors = {"signs": normal.sign(), "normal": normal, "Cauchy": draw[0], "2": draw[1]}
            for key, vector in vectors.items():
                found.setdefault(key, []).append(landscape.hvp(vector))
            if device.type == "cuda":
                multiply = partial(landscape.hvp, normal)
                times = sorted(seconds_of(multiply, device) for _ in range(11))
                print(f"{precision}: {1e3 * times[5]:.1f} ms a product")
    for key in ("signs", "normal", "Cauchy"):
        full, coarse = found[key]
        v, error = vectors[key], (coarse - full)
        logs = (coarse.abs().log() - full.abs().log()).nan_to_num(0, 0, 0).mean()
        print(
            f"H v, {key:7s} v: 2-norm {error.norm() / full.norm():.1e}, 1-norm "
            f"{abs(coarse.abs().sum() / full.abs().sum() - 1):.1e}, mean of log|Hv| {logs:+.1e}, "
            f"v.Hv {abs(v.dot(error) / v.dot(full)):.1e}"
        )
    u, w = vectors["Cauchy"], vectors["2"]
    for place, precision in enumerate(("highest", "high")):
        hu, hw = found["Cauchy"][place], found["2"][place]
        cancelled = u.abs().dot(hw.abs()) + w.abs().dot(hu.abs())
        print(f"u.Hv - v.Hu over what cancels, {precision}: {abs(u @ hw - w @ hu) / cancelled:.1e}")


def networks(names: list[str], device: torch.device) -> Iterator[tuple[str, Network]]:
    """Train them, one after the other."""
    if "gpt2-tiny" in names:
        module, batch, kept = trained_gpt2(list(GPT2_STEPS))
        for step in GPT2_STEPS:
            module.load_state_dict(kept[step])
            yield (
                f"gpt2-tiny, step {step}",
                Network(module.to(device), batch.to(device), token_loss),
            )
    for name in names:
        if name == "gpt2-tiny":
            continue
        torch.manual_seed(0)
        loss, module = TRAIN[name]()
        module.float()
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                setattr(module, key, value.float())
        module.register_forward_pre_hook(
            lambda _, args: tuple(a.float() if a.is_floating_point() else a for a in args)
        )
        yield name, Network(module, None, lambda m, b, loss=loss: loss())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    choices = ["gpt2-tiny", *SMALL]
    parser.add_argument("--model", nargs="+", choices=choices, default=choices, metavar="NAME")
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    names = options.model if device.type == "cpu" else ["gpt2-tiny"]
    heading(device)
    worst: dict[str, float] = {}
    with EmulatedTF32() if device.type == "cpu" else nullcontext():
        for name, network in networks(names, device):
            for key, value in compare(name, network, options.probes).items():
                worst[key] = max(worst.get(key, 0.0), value)
            products(network, device)
    print("\nLargest difference over all networks")
    for key, value in worst.items():
        print(f"{key:32s}{100 * value:10.2g} %")


if __name__ == "__main__":
    main()
