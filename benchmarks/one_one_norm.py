"""How wrong are estimates of the Hessian's (1,1)-norm, given the number of products?

    python benchmarks/one_one_norm.py               # both networks, about 6 minutes on one core
    python benchmarks/one_one_norm.py --model mlp   # half a minute
    python benchmarks/one_one_norm.py --cache F     # keeps or reads the exact Hessians, 0.9 GB

Two small networks are trained, a GPT-2 of 9,152 parameters on Python's own standard library and a
net with LayerNorm of 5,114 on scikit-learn's digits, and their exact Hessians formed by double
backward in float64. Three estimators then get the same products with Cauchy probes: ours
(`cross_fitted_one_one_norm`), the plain geometric mean (`one_one_norm`), and the sum over rows of
medians of Xie, Mohamadi & Li (arXiv:2410.08198). The bound of the blockwise smoothness by rows and
by tensors (`block_smoothness`) is measured alike, against the plain geometric mean.
"""

import argparse
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_linf import Partition
from lightning_linf.functional import cauchy, cross_fitted_one_one_norm, one_one_norm
from lightning_linf.functional.block_cross_fit import block_cauchy, block_smoothness
from lightning_linf.partition.structure import PartitionName

BAR_PROBES, BAR_RMSE, BAR_BIAS = 16, 0.13, 0.05  # what the estimator must reach

Network = tuple[Tensor, nn.Module]  # loss with a graph; all in float64
# The matrix (d, d), the number of rows of each parameter, and by partition the block (d,) of a row
Hessian = tuple[Tensor, list[int], dict[str, Tensor]]


class Errors(NamedTuple):
    """Relative errors on the same products. Shapes: (seeds,)."""

    ours: Tensor
    stated: Tensor  # our own standard error
    plain: Tensor
    paper: Tensor


def train_gpt2() -> Network:
    """Train a GPT-2 of 9,152 parameters on the ASCII bytes of Python's standard library."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)), dtype=torch.uint8)
    data = text[text < 128].long()
    config = GPT2Config(
        vocab_size=128,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        **dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0),
        **dict.fromkeys(["bos_token_id", "eos_token_id"], 0),
        use_cache=False,
        attn_implementation="eager",  # fused attention has no double backward
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))

    def loss() -> Tensor:
        starts = torch.randint(len(data) - 32, (32, 1))
        tokens = data[starts + torch.arange(32)]
        logits = model(tokens).logits[:, :-1].flatten(0, 1)
        # Not `model(tokens, labels=tokens).loss`, which is float32 whatever the logits are.
        return nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())

    _train(optimizer, loss, num_steps=1500)
    model.double()
    return loss(), model


def train_mlp() -> Network:
    """Train a net with LayerNorm of 5,114 parameters on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images) / 16, torch.tensor(labels)
    model = nn.Sequential(
        *(nn.Linear(64, 48), nn.LayerNorm(48), nn.GELU()),
        *(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 10)),
    ).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(batch_size: int = 64) -> Tensor:
        chosen = torch.randint(len(images), (batch_size,))
        return nn.functional.cross_entropy(model(images[chosen]), labels[chosen])

    _train(optimizer, loss, num_steps=300)
    return loss(256), model


def _train(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], num_steps: int) -> None:
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def exact_hessian(network: Network, name: str) -> Hessian:
    """Form the Hessian row by row, by double backward."""
    loss, module = network
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient = torch.cat([g.reshape(-1) for g in gradients])
    dim = len(gradient)
    matrix = torch.empty(dim, dim, dtype=torch.float64)
    begin = time.perf_counter()
    for row in range(dim):
        parts = torch.autograd.grad(gradient[row], parameters, retain_graph=True)
        matrix[row] = torch.cat([part.reshape(-1) for part in parts])
        if row % 100 == 99:
            left = (time.perf_counter() - begin) / (row + 1) * (dim - row - 1)
            print(f"\r{name}: row {row + 1:,} of {dim:,}, {left:.0f} s left  ", end="", flush=True)
    print(f"\r{name}: {dim:,} parameters, loss {float(loss.detach()):.3f}".ljust(60))
    asymmetry = (matrix - matrix.T).abs().max() / matrix.abs().max()
    assert asymmetry < 1e-12, f"unsymmetric by {asymmetry:.1e}"  # a step in float32 leaves 1e-8
    blocks = {}
    for kind in PARTITIONS:
        partition = Partition.of(module, kind)
        blocks[kind] = partition.expand(torch.arange(partition.num_blocks))
    return (matrix + matrix.T) / 2, [p.numel() for p in parameters], blocks


def measure(hessian: Hessian, num_probes: list[int], num_seeds: int) -> dict[int, Errors]:
    """Compare the estimators with the exact norm; a seed's first n probes serve for n."""
    matrix, sizes, _ = hessian
    exact = matrix.abs().sum()
    rows: dict[int, list[list[float]]] = {n: [] for n in num_probes}
    for seed in range(num_seeds):
        draw = partial(cauchy, len(matrix), seed=seed, dtype=torch.float64)
        all_products = torch.stack([draw(probe=k) for k in range(max(num_probes))]) @ matrix
        for n in num_probes:
            products = all_products[:n]
            ours = cross_fitted_one_one_norm(products, seed=seed, sizes=sizes)
            medians = products.abs().quantile(0.5, dim=0)  # of even n: the mean of the middle two
            values = torch.stack([ours.value, one_one_norm(products), medians.sum()]) / exact - 1
            rows[n].append([float(values[0]), float(ours.relative_error), *values[1:].tolist()])
    return {n: Errors(*torch.tensor(rows[n], dtype=torch.float64).T) for n in num_probes}


def measure_bound(hessian: Hessian, kind: PartitionName, num_probes: int, num_seeds: int) -> None:
    """Print the errors of the bound of the blockwise smoothness at one number of probes."""
    matrix, sizes, blocks = hessian
    holder = nn.ParameterList([torch.zeros(len(matrix), dtype=matrix.dtype)])
    partition = Partition.by_function(holder, lambda name, p: blocks[kind], name=kind)
    roots = partition.sizes(matrix).sqrt()

    def total(row_norms: Tensor) -> Tensor:
        return (roots * partition.block_sum(row_norms.square()).sqrt()).sum()

    exact = total(partition.block_sum(matrix.square()).sqrt() @ roots)
    rows = []
    for seed in range(num_seeds):
        draws = [
            block_cauchy(partition, seed=seed, probe=k, like=matrix) for k in range(num_probes)
        ]
        products = torch.stack(draws) @ matrix
        ours = block_smoothness(products, partition, seed=seed, sizes=sizes)
        plain = total(products.abs().log().mean(dim=0).exp())
        errors = torch.stack([ours.value, plain]) / exact - 1
        rows.append([*errors.tolist(), float(ours.relative_error)])
    ours_errors, plain_errors, stated = torch.tensor(rows).T
    print(
        f"bound by {kind} at {num_probes} probes: bias {ours_errors.mean():+.3f}, "
        f"rmse {_rms(ours_errors):.3f}, stated {stated.mean():.3f}; plain mean: "
        f"bias {plain_errors.mean():+.3f}, rmse {_rms(plain_errors):.3f}"
    )


def print_table(errors: dict[int, Errors]) -> None:
    """Print bias and root mean square of the relative errors, a line per number of probes."""
    print("           ---------- ours ----------     - plain mean -     -- median --")
    print("  probes     bias   rmse     sd  stated     bias   rmse        bias   rmse")
    for n, (ours, stated, plain, paper) in errors.items():
        print(
            f"{n:8d} {ours.mean():+8.3f} {_rms(ours):6.3f} {ours.std():6.3f} {stated.mean():7.3f}"
            f" {plain.mean():+8.3f} {_rms(plain):6.3f}    {paper.mean():+8.3f} {_rms(paper):6.3f}"
        )


def verdict(name: str, errors: dict[int, Errors]) -> str:
    """Say whether our estimator reaches the bar."""
    if BAR_PROBES not in errors:
        return f"{name}: not judged, which takes --probes {BAR_PROBES}"
    ours = errors[BAR_PROBES].ours
    rmse, bias, spread = _rms(ours), abs(float(ours.mean())), float(ours.std()) / len(ours) ** 0.5
    met = "met" if rmse <= BAR_RMSE and bias <= BAR_BIAS else "MISSED"
    figures = f"rmse {rmse:.3f} (<= {BAR_RMSE}), |bias| {bias:.3f} +- {spread:.3f} (<= {BAR_BIAS})"
    return f"{name}: bar at {BAR_PROBES} probes {met}: {figures}"


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


PARTITIONS: tuple[PartitionName, ...] = ("row", "tensor")
TRAIN = {"gpt2": train_gpt2, "mlp": train_mlp}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=48, help="sets of probes (default: 48)")
    parser.add_argument("--probes", type=int, nargs="+", default=[8, 16, 24, 50], metavar="N")
    parser.add_argument("--model", choices=["gpt2", "mlp", "both"], default="both")
    parser.add_argument("--cache", type=Path, help="file of Hessians, read if there, else written")
    choices = parser.parse_args()
    if choices.seeds < 2 or min(choices.probes) < 4:
        parser.error("expected --seeds >= 2 and every one of --probes >= 4")
    hessians = torch.load(choices.cache) if choices.cache and choices.cache.exists() else {}
    verdicts = []
    for name in TRAIN if choices.model == "both" else [choices.model]:
        if name not in hessians:
            try:
                network = TRAIN[name]()
            except ImportError as error:
                verdicts.append(f"{name}: left out ({error}). Install it first.")
                continue
            hessians[name] = exact_hessian(network, name)
            if choices.cache:
                torch.save(hessians, choices.cache)
        errors = measure(hessians[name], sorted(set(choices.probes)), choices.seeds)
        print(f"\n{name}: relative errors over {choices.seeds} sets of probes")
        print_table(errors)
        for kind in PARTITIONS:
            measure_bound(hessians[name], kind, BAR_PROBES, choices.seeds)
        verdicts.append(verdict(name, errors))
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
