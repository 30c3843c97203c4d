"""Write docs/scaling.md: `python docs/scripts/write_scaling.py`.

It is made of benchmarks/results/sharding.json.
"""

import sys
from pathlib import Path

from formatting import table

DOCS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DOCS.parent / "benchmarks"))

from sharding import RESULT, Result  # noqa: E402  # the line above lets it be found
from sharding_graph import SEQUENCE_TOKENS  # noqa: E402
from sharding_model import (  # noqa: E402
    BYTES,
    MODELS,
    STATE_BYTES,
    Extrapolation,
    Fit,
    extrapolate,
    fit,
)

PAGE = DOCS / "scaling.md"
GPU_GIB = 80
LINK_GB = 50  # a second, of each GPU: 400 Gbit/s


def page(result: Result) -> str:
    """Write the page; every number in it comes from the result."""
    fitted = fit(result.cases, result.found)
    return "\n".join([_head(result), _measured(result), _model(fitted), _others(result, fitted)])


def _head(result: Result) -> str:
    return f"""\
# Memory and traffic of a probe on many ranks

(Made by `python docs/scripts/write_scaling.py` from what `python benchmarks/sharding.py --save`
measured on {result.date} with torch {result.versions}, commit {result.commit}.)

A report of `coordinate` and `global` with 4 probes, of a network whose square layers `fully_shard`
has divided among W processes of one machine, joined by gloo, in float32. Each rank has a batch of
its own. *d* is the number of parameters, and a vector has 4 d bytes."""


def _measured(result: Result) -> str:
    rows = []
    for case, found in zip(result.cases, result.found, strict=True):
        vector = BYTES * case.num_params
        rows.append((
            str(case.num_ranks), f"{case.num_params:,}", str(case.num_layers), str(case.rows),
            f"{found.resident / 2**20:.0f} MiB", f"{found.resident / vector:.2f}",
            f"{found.product / vector:.2f}", f"{found.entering / vector:.2f}",
            f"{found.probe / vector:.0f}", str(found.num_hvps),
        ))  # fmt: skip
    titles = (
        "W", "d", "layers", "rows", "memory of a rank", "in vectors", "a product sends",
        "entering sends", "the probe sends", "products",
    )  # fmt: skip
    return f"""
## Measured

Memory is the most that was resident in a process at once beyond what it held before the probe, of
the rank that has most; so the module's own shards are not in it. What is sent is counted by each
rank at every collective, in vectors: the size of the message, times (W − 1) / W for an all-gather,
a reduce-scatter or an all-to-all, and twice that for an all-reduce, as the best algorithms do it.

{table(titles, rows)}"""


def _model(fitted: Fit) -> str:
    vectors = f"{fitted.whole:.2f} d + {fitted.sharded:.2f} d / W"
    return f"""
## The model

    memory of a rank = 4 ({vectors} + {fitted.gathered:.2f} m)
                       + {fitted.graph:.1f} x activations, in bytes
    a product sends    4 x {fitted.sent:.2f} d (W - 1) / W
    entering sends     4 x {fitted.entering:.2f} d (W - 1) / W

m is the number of parameters of the largest module that is gathered at a time, and activations are
rows x width x layers. The four factors of the memory are fitted to the lines above by least squares
of relative errors, none of them negative; the largest error of a line is {fitted.residual:.1%}.
The two of the traffic are means over the lines with several ranks.

{_sentence(fitted)}"""


def _sentence(fitted: Fit) -> str:
    both, sharded = f"{fitted.whole + fitted.sharded:.1f}", f"{fitted.sharded:.1f}"
    if fitted.whole > fitted.sharded:
        return (
            f"Of {both} vectors {fitted.whole:.1f} are whole on every rank: more ranks do not make "
            "a larger network fit."
        )
    divided = f"All {both} vectors" if sharded == both else f"Of {both} vectors {sharded}"
    return (
        f"{divided} are divided among the ranks: twice as many ranks need half the memory for them."
    )


def _others(result: Result, fitted: Fit) -> str:
    gpu = GPU_GIB * 2.0**30
    of_models = [
        (model, extrapolate(model, fitted, graph, gpu))
        for model, graph in zip(MODELS, result.graphs_per_token, strict=True)
    ]
    rows = [
        (
            f"{model.name} ({model.num_params / 1e9:.1f}e9)", str(model.num_gpus),
            _gib(each.state), _gib(each.probe), f"{each.graph_per_token / 2**20:.0f} MiB",
            _batch(each), _gib(each.sent_in_product),
            f"{each.sent_in_product / (LINK_GB * 1e9):.1f} s",
        )
        for model, each in of_models
    ]  # fmt: skip
    titles = (
        "network", "GPUs", "training", "probe without graph", "graph of a token",
        "largest batch of a probe", "a product sends", f"at {LINK_GB} GB/s",
    )  # fmt: skip
    return f"""
## What it says for networks that were not run

Nothing here is measured: the factors above, applied to transformers of the usual shapes (a gated
feed-forward part, untied embeddings) on GPUs of {GPU_GIB} GiB. All columns are of each GPU.
Training takes {STATE_BYTES} bytes of a parameter, divided among the GPUs: weight, gradient and two
moments in float32. The graph of a token is computed by `probe_memory` on tensors without values,
with a product beside it, for sequences of {SEQUENCE_TOKENS:,} tokens. The largest batch is what is
left of the memory; every GPU has a batch of its own. Where less than a sequence is left,
`probe_loss(batch)` can take a shorter one, which also shrinks the attention's part of the graph.

{table(titles, rows)}

The time of a product is at least that of its traffic, if nothing overlaps with it, on links of
{LINK_GB} GB/s for each GPU in both directions.
"""


def _batch(each: Extrapolation) -> str:
    if each.num_tokens == 0:
        return "does not fit"
    sequences = each.num_tokens // SEQUENCE_TOKENS
    return f"{each.num_tokens:,} tokens" + (f" ({sequences} sequences)" if sequences else "")


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


if __name__ == "__main__":
    PAGE.write_text(page(Result.load(RESULT)), encoding="utf-8")
