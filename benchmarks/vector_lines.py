"""Lines of `all.py` about vectors of d numbers: optimizers' steps, rotations, sums and probes."""

from typing import NamedTuple

import torch
from optimizers import Transformer, steps
from stopwatch import medians
from targets import Measured
from torch import Tensor

from lightning_linf.functional import cauchy, rotate
from lightning_linf.functional.heterogeneity import heterogeneity_update
from lightning_linf.functional.one_one_norm import cross_fitted_one_one_norm_compute
from lightning_linf.functional.product_sums import product_sums_init, product_sums_update

STEPS = {
    "step tensor": "BlockwiseAdam, tensor",
    "step head": "BlockwiseAdam, head",
    "step row": "BlockwiseAdam, row",
    "step coordinate": "BlockwiseAdam, coordinate",
    "step adasgd": "AdaSGD",
    "step signum": "Signum",
    "step rotated": "AdamW, rotated",
}
FUSED = "AdamW, fused"
NUM_PROBES = 16


class VectorSizes(NamedTuple):
    """What the lines are measured on."""

    width: int  # of a transformer, whose tensors the optimizers step
    num_layers: int
    vocabulary: int
    dim: int  # of rotated vectors
    probe_dim: int  # of the control variate
    rounds: int


SIZES = {
    "tiny": VectorSizes(64, 1, 100, 1000, 1000, 1),
    "cpu quick": VectorSizes(256, 4, 19_456, 1_000_000, 1_000_000, 9),
    "cpu": VectorSizes(256, 4, 19_456, 10_000_000, 10_000_000, 25),
    "cuda quick": VectorSizes(768, 12, 50_257, 124_439_808, 124_439_808, 9),
    "cuda": VectorSizes(768, 12, 50_257, 124_439_808, 124_439_808, 25),
}


def step_lines(sizes: VectorSizes, device: torch.device) -> dict[str, Measured]:
    """Steps over those of AdamW(fused), with weight decay 0.1."""
    torch.manual_seed(0)
    module = Transformer(sizes.width, sizes.num_layers, sizes.vocabulary).to(device)
    for p in module.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    every = steps(module, 0.1)
    seconds = medians({name: every[name] for name in (FUSED, *STEPS.values())}, device,
                      sizes.rounds)  # fmt: skip
    num_params = sum(p.numel() for p in module.parameters())
    note = f"d = {num_params:,}, AdamW(fused) {1e3 * seconds[FUSED]:.2f} ms"
    return {key: Measured(seconds[name] / seconds[FUSED], note) for key, name in STEPS.items()}


def rotation_lines(sizes: VectorSizes, device: torch.device) -> dict[str, Measured]:
    """One rotation over one copy."""
    x = torch.randn(sizes.dim, device=device)
    y = torch.empty_like(x)
    actions = {"copy": lambda: y.copy_(x), "rotation": lambda: rotate(x, seed=0)}
    seconds = medians(actions, device, sizes.rounds)
    return {"rotation": _ratio(seconds, "rotation", "copy", sizes.dim)}


def heterogeneity_lines(sizes: VectorSizes, device: torch.device) -> dict[str, Measured]:
    """The sums over all gradients of a transformer, over one vector norm of as many numbers."""
    torch.manual_seed(0)
    module = Transformer(sizes.width, sizes.num_layers, sizes.vocabulary)
    gradients = [1e-3 * torch.randn(p.shape, device=device) for p in module.parameters()]
    whole = torch.cat([g.flatten() for g in gradients])
    seconds = medians(
        {
            "sums": lambda: heterogeneity_update(gradients),
            "norm": lambda: torch.linalg.vector_norm(whole),
        },
        device,
        sizes.rounds,
    )
    return {"heterogeneity": _ratio(seconds, "sums", "norm", len(whole))}


def probe_lines(sizes: VectorSizes, device: torch.device) -> dict[str, Measured]:
    """One Cauchy probe, in ms and in copies."""
    x = torch.randn(sizes.dim, device=device)
    y = torch.empty_like(x)
    actions = {
        "copy": lambda: y.copy_(x),
        "probe": lambda: cauchy(sizes.dim, seed=0, probe=0, device=device),
    }
    seconds = medians(actions, device, sizes.rounds)
    return {
        "probe": Measured(1e3 * seconds["probe"], f"d = {sizes.dim:,}"),
        "probe copies": _ratio(seconds, "probe", "copy", sizes.dim),
    }


def control_variate_lines(sizes: VectorSizes, device: torch.device) -> dict[str, Measured]:
    """The estimate of the (1,1)-norm from the sums of all probes."""
    dim = sizes.probe_dim
    tensor_sizes = _tensor_sizes(dim)
    sums = product_sums_init(tensor_sizes, NUM_PROBES, torch.empty(0, device=device))
    for probe in range(NUM_PROBES):
        product = cauchy(dim, seed=1, probe=probe, device=device)
        product_sums_update(sums, product, probe, tensor_sizes)

    def compute() -> Tensor:
        return cross_fitted_one_one_norm_compute(sums, tensor_sizes, 0).value

    seconds = medians({"compute": compute}, device, max(1, sizes.rounds // 8))
    return {"control variate": Measured(seconds["compute"], f"d = {dim:,}")}


def _tensor_sizes(dim: int) -> list[int]:
    """Cut a vector into tensors of unlike sizes, as a network has them."""
    parts = [dim // 2, dim // 4, dim // 8]
    return [*parts, dim - sum(parts)]


def _ratio(seconds: dict[str, float], over: str, under: str, dim: int) -> Measured:
    note = f"d = {dim:,}, {over} {1e3 * seconds[over]:.3g} ms, {under} {1e3 * seconds[under]:.3g}"
    return Measured(seconds[over] / seconds[under], note)
