"""One Hessian-vector product of a GPT-2, as each package computes it."""

from collections.abc import Callable
from typing import Any

import torch
from gpt2_network import GPT2_124M, SMALL, TINY, gradient, make_gpt2, token_loss, zipf_tokens
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

Action = Callable[[], object]
SHAPES = {"tiny": TINY, "cpu": SMALL, "cuda": GPT2_124M._replace(sequences=1)}


class Problem:
    """The network, its batch and a vector, the same in every process."""

    def __init__(self, device: torch.device, size: str) -> None:
        self.module = make_gpt2(SHAPES[size], device)
        self.tokens = zipf_tokens(SHAPES[size], device)
        self.parameters = list(self.module.parameters())
        num_params = sum(p.numel() for p in self.parameters)
        generator = torch.Generator().manual_seed(1)
        self.vector = torch.randn(num_params, generator=generator).to(device)

    def parts(self) -> list[Tensor]:
        """Give the vector in the shapes of the parameters."""
        parts = self.vector.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]


class Logits(nn.Module):
    """The network from tokens to a row of logits for each token that follows."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: (sequences, tokens) -> (sequences * (tokens - 1), vocabulary)."""
        logits: Tensor = self.module(tokens).logits
        return logits[:, :-1].flatten(0, 1)


def joined(parts: Any) -> Tensor:
    """Join tensors to one vector."""
    return torch.cat([part.reshape(-1) for part in parts])


def one_gradient(problem: Problem) -> Action:
    """A gradient in float32 with torch's fast attention, which products are compared with."""
    return lambda: joined(gradient(problem.module, problem.tokens))


def exact(problem: Problem) -> Action:
    """Double backward in float64, which products are judged by."""
    module = problem.module.double()
    with sdpa_kernel(SDPBackend.MATH):
        loss = token_loss(module, problem.tokens)
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    parts = [part.double() for part in problem.parts()]
    return lambda: joined(torch.autograd.grad(gradients, parameters, parts, retain_graph=True))


def ours(problem: Problem) -> Action:
    """`Landscape.hvp`."""
    from lightning_linf.probe import Landscape

    landscape = Landscape(problem.module, [problem.tokens], loss=token_loss)
    landscape.__enter__()  # until the process ends
    return lambda: landscape.hvp(problem.vector)


def curvlinops(problem: Problem) -> Action:
    """`HessianLinearOperator`, forward over reverse."""
    from curvlinops import HessianLinearOperator

    model = Logits(problem.module)
    data = [(problem.tokens, problem.tokens[:, 1:].flatten())]
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False,
        num_data=data[0][1].numel(), batch_size_fn=lambda tokens: tokens[:, 1:].numel(),
    )  # fmt: skip

    def multiply() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return operator @ problem.vector

    return multiply


def hessian_eigenthings(problem: Problem) -> Action:
    """`HessianOperator`, with its default method."""
    from hessian_eigenthings import HessianOperator

    operator = HessianOperator(problem.module, [problem.tokens], token_loss)

    def multiply() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return operator.matvec(problem.vector)

    return multiply


def pyhessian(problem: Problem) -> Action:
    """`hessian_vector_product` on a graph that `hessian` has kept."""
    from pyhessian import hessian, hessian_vector_product

    model = Logits(problem.module)
    targets = problem.tokens[:, 1:].flatten()
    is_cuda = problem.tokens.device.type == "cuda"
    with sdpa_kernel(SDPBackend.MATH):
        kept = hessian(model, nn.CrossEntropyLoss(), (problem.tokens, targets), cuda=is_cuda)
    parts = problem.parts()
    return lambda: joined(hessian_vector_product(kept.gradsH, kept.params, parts))


def torch_func(problem: Problem) -> Action:
    """`torch.func` by hand: `jvp` of `grad`, over parameters by name."""
    module = problem.module
    names = dict(module.named_parameters())  # tied ones once
    parameters = {name: p.detach() for name, p in names.items()}
    vector = dict(zip(names, problem.parts(), strict=True))

    def loss(values: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(module, values, problem.tokens).logits[:, :-1]
        return cross_entropy(logits.flatten(0, 1), problem.tokens[:, 1:].flatten())

    def multiply() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            _, product = torch.func.jvp(torch.func.grad(loss), (parameters,), (vector,))
        return joined(product.values())

    return multiply


PRODUCTS: dict[str, Callable[[Problem], Action]] = {
    "gradient": one_gradient,
    "exact": exact,
    "lightning_linf": ours,
    "curvlinops": curvlinops,
    "hessian-eigenthings": hessian_eigenthings,
    "PyHessian": pyhessian,
    "torch.func": torch_func,
}


def make(name: str, device: torch.device, size: str) -> Action:
    """Make the product of a package."""
    return PRODUCTS[name](Problem(device, size))
