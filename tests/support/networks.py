"""Small float64 networks with what makes second derivatives hard, and their exact Hessians.

Also the smoothness of a dense matrix by brute force, for the tests of its brackets.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_linf.partition import Partition


def mlp():
    """An MLP with LayerNorm: 109 parameters, regression."""
    module = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5, bias=False))
    batch = torch.randn(12, 5), torch.randn(12, 5)
    return module.double(), tuple(t.double() for t in batch), squared_error


def random_mlp(seed):
    """An MLP with LayerNorm of random widths and weights: 40 to 200 parameters."""
    generator = torch.Generator().manual_seed(seed)
    width, hidden, outputs = (int(torch.randint(3, 9, (), generator=generator)) for _ in range(3))
    module = nn.Sequential(
        nn.Linear(width, hidden),
        nn.LayerNorm(hidden),
        nn.Tanh(),
        nn.Linear(hidden, outputs),
        nn.GELU(),
        nn.Linear(outputs, 3, bias=False),
    ).double()
    with torch.no_grad():
        for p in module.parameters():
            scale = torch.rand((), generator=generator) + 0.5
            p.copy_(p.mean() + scale * torch.randn(p.shape, generator=generator))
    batch = tuple(torch.randn(9, n, generator=generator).double() for n in (width, 3))
    return module, batch, squared_error


def gpt2():
    """A GPT-2 of two layers and under 3,000 parameters, lm_head tied to wte, SDPA attention."""
    transformers = pytest.importorskip("transformers", reason="needs lightning-linf[recipes]")
    config = transformers.GPT2Config(
        vocab_size=32,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    config.loss_type = "ForCausalLM"
    module = transformers.GPT2LMHeadModel(config).double()
    return module, torch.randint(32, (4, 8)), causal_loss


def conv_net():
    """A convolutional net with BatchNorm, whose running statistics are not trivial."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    images = torch.randn(10, 1, 6, 6, dtype=torch.float64)
    module(3 * images + 1)
    return module, (images, torch.randint(3, (10,))), cross_entropy


def squared_error(module, batch):
    x, y = batch
    return (module(x) - y).square().mean()


def cross_entropy(module, batch):
    x, y = batch
    return F.cross_entropy(module(x), y)


def causal_loss(module, batch):
    logits = module(batch).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


ALL = {"mlp": mlp, "gpt2": gpt2, "conv": conv_net}


def dense_hessian(module, loss):
    """Double backward, one row at a time, on the module itself."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    parameters = [p for p in module.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        rows = [
            torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
            for entry in flat
        ]
    hessian = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    torch.testing.assert_close(hessian, hessian.T, rtol=1e-9, atol=1e-10)
    return hessian


def central_difference(module, loss, direction, step=1e-6):
    """Product of the Hessian with ``direction`` from two float64 gradients."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    start = nn.utils.parameters_to_vector(parameters).detach()
    gradients = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * step * direction, parameters)
        parts = torch.autograd.grad(loss(), parameters)
        gradients.append(torch.cat([g.reshape(-1) for g in parts]))
    nn.utils.vector_to_parameters(start, parameters)
    return (gradients[0] - gradients[1]) / (2 * step)


def partition_of(labels, name="labelled"):
    """Partition of one vector of parameters, into blocks of equal labels."""
    module = nn.Module()
    module.theta = nn.Parameter(torch.zeros(len(labels), dtype=torch.float64))
    return Partition.by_function(module, lambda name, p: torch.as_tensor(labels), name=name)


def operator_norm_by_restarts(matrix, partition, num_restarts=300, num_steps=200):
    """Maximum of dual(H v) over the ball of norm 1 by alternating from many starts, at once."""
    vectors = torch.randn(num_restarts, len(matrix), dtype=matrix.dtype)
    best, previous = torch.zeros(()), torch.zeros(())
    for _ in range(num_steps):
        products = _dual_directions(vectors, partition) @ matrix
        best = _dual_norms(products, partition)
        if (best - previous).abs().max() <= 1e-12 * best.max():
            break
        vectors, previous = products, best
    return float(best.max())


def smoothness_by_restarts(matrix, partition, num_restarts=200, num_steps=100):
    """H(Phi): the maximum of sqrt(d_b) ||(H v)_b|| over the ball, block by block."""
    label = partition.expand(torch.arange(partition.num_blocks))
    total = 0.0
    for block, size in enumerate(partition.sizes(matrix).tolist()):
        rows = matrix[label == block]  # (d_b, d)
        vectors = torch.randn(num_restarts if size > 1 else 1, len(rows), dtype=matrix.dtype)
        best = previous = torch.zeros(())
        for _ in range(num_steps):
            vectors = _dual_directions(vectors @ rows, partition) @ rows.T
            best = torch.linalg.vector_norm(vectors, dim=1)
            if (best - previous).abs().max() <= 1e-12 * best.max():
                break
            previous = best
        total += size**0.5 * float(best.max())
    return total


def upper_bound_of_smoothness(matrix, partition):
    """Sum of sqrt(d_b) ||q_b||, where q_i is sum_c sqrt(d_c) ||H_ic||."""
    row_norms = partition.block_sum(matrix.square()).sqrt() @ partition.sizes(matrix).sqrt()
    return float(_dual_norms(row_norms, partition))


def _dual_norms(vectors, partition):
    return partition.block_sum(vectors.square()).sqrt() @ partition.sizes(vectors).sqrt()


def _dual_directions(vectors, partition):
    norms = partition.block_sum(vectors.square()).sqrt()
    factors = torch.where(norms == 0, 0.0, partition.sizes(vectors).sqrt() / norms)
    return vectors * partition.expand(factors)
