"""What would a probe of a GPT-2 take of the memory? Predicted on tensors without values.

    OMP_NUM_THREADS=1 python benchmarks/predicted_memory.py     # half a minute, hardly any memory
    python benchmarks/predicted_memory.py --only tiny

A report of `coordinate` and `global` with 4 probes, in float32. Nothing is measured:
`tests/probe/test_vector_counts.py` and `test_probe_memory.py` compare such predictions with what
the allocator counts.
"""

import argparse

import torch
from gpt2_network import GPT2_124M, GPT2_XL, TINY, Shape, make_gpt2, token_loss
from stopwatch import heading

from lightning_linf import probe_memory
from lightning_linf.probe import ProbeMemory

SHAPES = {"tiny": TINY, "124M": GPT2_124M, "XL": GPT2_XL}
DEVICE = torch.device("meta")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=["124M", "XL"])
    choices = parser.parse_args()
    heading()
    print("network  graph  product  vector  at the peak  with offload")
    for name in choices.only:
        shape = SHAPES[name]
        plain, offloaded = (_predict(shape, offload) for offload in (False, True))
        sizes = (plain.graph, plain.product, plain.vector, plain.peak, offloaded.peak)
        tokens = f"{shape.sequences} x {shape.tokens} tokens"
        cells = [f"{name}, {plain.num_params:,} parameters, {tokens}"]
        print("  ".join(cells + [_gib(size) for size in sizes]), flush=True)


def _predict(shape: Shape, offload: bool) -> ProbeMemory:
    tokens = torch.zeros(shape.sequences, shape.tokens, dtype=torch.int64, device=DEVICE)
    return probe_memory(
        make_gpt2(shape, DEVICE), [tokens], loss=token_loss, num_probes=4, num_partitions=2,
        offload="cpu" if offload else None,
    )  # fmt: skip


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"


if __name__ == "__main__":
    main()
