"""How long is a step of these optimizers, beside torch's AdamW and one copy of the parameters?

    OMP_NUM_THREADS=2 python benchmarks/optimizers.py           # 8.4 million parameters, a minute
    python benchmarks/optimizers.py --width 768 --layers 12 --vocabulary 50257   # GPT-2
    python benchmarks/optimizers.py --device cuda

The tensors have GPT-2's shapes and names; gradients are random and stay. Each round times one step
of every optimizer in turn, after one that is not timed, so that what else the machine does falls on
all of them alike. A median is over rounds, a ratio of medians to that of AdamW (fused). A copy
moves two numbers for each parameter, so the floor of AdamW is 3.5 copies, of BlockwiseAdam 3 and of
Signum 2.5.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable

import torch
from stopwatch import heading, seconds_of
from torch import nn

from lightning_linf import Partition, Rotation
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized, Signum


class Attention(nn.Module):
    """Maps of one attention layer."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)


class Block(nn.Module):
    """Parameters of one transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width, width // 64)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Linear(4 * width, width))


class Transformer(nn.Module):
    """Parameters of a GPT-2, the output tied to the embedding."""

    def __init__(self, width: int, num_layers: int, vocabulary: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(1024, width)
        self.h = nn.ModuleList(Block(width) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(width)


Step = Callable[[], object]


def steps(module: nn.Module, weight_decay: float) -> dict[str, Step]:
    """Build every optimizer on the same parameters. By name: what to time."""
    options = {"lr": 1e-6, "weight_decay": weight_decay}
    params, named = list(module.parameters()), list(module.named_parameters())

    def blockwise(name: str) -> Step:
        if name in ("row", "head"):
            partition = Partition.of(module, name, fused_qkv="qkv_head")
            return BlockwiseAdam(named, partition=partition, **options).step
        return BlockwiseAdam(named, partition=name, **options).step

    # Random: memory that was never written may be a single page of zeros, which is copied faster.
    flat = torch.randn(sum(p.numel() for p in params), device=params[0].device)
    copy = torch.empty_like(flat)
    found: dict[str, Step] = {
        "AdamW, fused": torch.optim.AdamW(params, fused=True, **options).step,
        "AdamW, foreach": torch.optim.AdamW(params, foreach=True, **options).step,
        "AdamW, plain": torch.optim.AdamW(params, foreach=False, **options).step,
        "one copy": lambda: copy.copy_(flat),
        "BlockwiseAdam, tensor": blockwise("tensor"),
        "BlockwiseAdam, head": blockwise("head"),
        "BlockwiseAdam, row": blockwise("row"),
        "BlockwiseAdam, coordinate": blockwise("coordinate"),
        "AdaSGD": AdaSGD(params, **options).step,
        "Signum": Signum(params, **options).step,
        "AdamW, rotated": Reparameterized(
            params, lambda p: torch.optim.AdamW(p, **options), Rotation(seed=0)
        ).step,
    }
    found.update(others(module, options))
    return found


def others(module: nn.Module, options: dict[str, float]) -> dict[str, Step]:
    """Optimizers that are not installed with the package."""
    found: dict[str, Step] = {}
    width = module.wte.embedding_dim
    if importlib.util.find_spec("adam_mini"):
        from adam_mini import Adam_mini

        found["Adam-mini"] = Adam_mini(
            module.named_parameters(), dim=width, n_heads=width // 64, verbose=False, **options
        ).step
    if importlib.util.find_spec("pytorch_optimizer"):
        import pytorch_optimizer

        for name in ("AdaBelief", "SignSGD"):
            optimizer = getattr(pytorch_optimizer, name)(module.parameters(), **options)
            found[f"pytorch_optimizer, {name}"] = optimizer.step
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=19_456)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--weight-decay", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    choices = parser.parse_args()
    heading(choices.device)
    for weight_decay in choices.weight_decay:
        torch.manual_seed(0)
        module = Transformer(choices.width, choices.layers, choices.vocabulary).to(choices.device)
        for p in module.parameters():
            p.grad = 1e-3 * torch.randn_like(p)
        named_steps = steps(module, weight_decay)
        seconds: dict[str, list[float]] = {name: [] for name in named_steps}
        for _ in range(choices.rounds):
            for name, step in named_steps.items():
                step()
                seconds[name].append(seconds_of(step, choices.device))
        num_params = sum(p.numel() for p in module.parameters())
        fused = statistics.median(seconds["AdamW, fused"])
        print(
            f"{num_params:,} parameters in {len(list(module.parameters()))} tensors, weight decay "
            f"{weight_decay}"
        )
        copy = statistics.median(seconds["one copy"])  # reads and writes: two numbers an entry
        print(
            "optimizer                     ms, median      least   over AdamW (fused)   in copies"
        )
        for name, each in seconds.items():
            median = statistics.median(each)
            print(
                f"{name:28s} {1e3 * median:11.2f} {1e3 * min(each):10.2f} {median / fused:12.2f}"
                f" {median / copy:19.1f}"
            )
        print(flush=True)


if __name__ == "__main__":
    main()
