"""The largest absolute eigenvalue of one Hessian, as each package computes it.

Of a network with LayerNorm, 2,474 parameters, trained on scikit-learn's digits; each with its own
settings, or where it asks for some, with those that are stated.
"""

from collections.abc import Callable

import torch
from hessians import digits
from torch import Tensor, nn
from torch.nn import functional as F

Action = Callable[[], object]


class Digits:
    """The network after training and a batch, the same in every process."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        images, labels = digits()
        images = images.float()
        self.module = nn.Sequential(
            nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 10)
        )
        self.loss = nn.CrossEntropyLoss()
        optimizer = torch.optim.Adam(self.module.parameters(), lr=3e-3)
        for _ in range(200):
            chosen = torch.randint(len(images), (64,))
            optimizer.zero_grad()
            self.loss(self.module(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        optimizer.zero_grad()
        chosen = torch.randint(len(images), (256,))
        self.images, self.labels = images[chosen], labels[chosen]
        self.parameters = list(self.module.parameters())


def exact(problem: Digits) -> Action:
    """Of the whole Hessian, by double backward in float64."""

    def value() -> float:
        module = problem.module.double()
        parameters = list(module.parameters())
        loss = F.cross_entropy(module(problem.images.double()), problem.labels)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        gradient = torch.cat([each.flatten() for each in gradients])
        rows = [torch.autograd.grad(g, parameters, retain_graph=True) for g in gradient]
        hessian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        return float(torch.linalg.eigvalsh((hessian + hessian.T) / 2).abs().max())

    return value


def ours(problem: Digits) -> Action:
    """`lambda_max`, until both ends are within 1 %: its default."""
    from lightning_linf.functional import lambda_max
    from lightning_linf.probe import Landscape

    def loss(module: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(module(batch), problem.labels)

    landscape = Landscape(problem.module, [problem.images], loss=loss)
    landscape.__enter__()  # until the process ends
    num_params = sum(p.numel() for p in problem.parameters)
    start = torch.randn(num_params, generator=torch.Generator().manual_seed(0))

    def ends() -> list[float]:
        found = lambda_max(landscape.hvp, start)
        return [found.value, found.value + found.residual]

    return ends


def curvlinops(problem: Digits) -> Action:
    """SciPy's `eigsh` of `HessianLinearOperator`."""
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    data = [(problem.images, problem.labels)]
    operator = HessianLinearOperator(
        problem.module, problem.loss, problem.parameters, data, check_deterministic=False
    ).to_scipy()
    return lambda: float(abs(eigsh(operator, k=1, which="LM", return_eigenvectors=False)[0]))


def hessian_eigenthings(problem: Digits) -> Action:
    """`lanczos` with 30 products: its default for one eigenvalue is 2."""
    from hessian_eigenthings import HessianOperator, lanczos

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(module(batch[0]), batch[1])

    operator = HessianOperator(problem.module, [(problem.images, problem.labels)], loss)
    return lambda: float(lanczos(operator, k=1, max_iter=30, seed=0).eigenvalues[0].abs())


def pyhessian(problem: Digits) -> Action:
    """`eigenvalues`: power iteration until two values are within 0.1 %."""
    from pyhessian import hessian

    kept = hessian(problem.module, problem.loss, (problem.images, problem.labels), cuda=False)
    return lambda: abs(float(kept.eigenvalues()[0][0]))


def cockpit(problem: Digits) -> Action:
    """The power iteration behind `HessMaxEV`, until two values are within 0.1 %."""
    from cockpit.quantities.hess_max_ev import HVPLinearOperator

    loss = problem.loss(problem.module(problem.images), problem.labels)
    operator = HVPLinearOperator(loss, problem.parameters)
    return lambda: abs(float(operator.power_iteration()))


def func_hessian(problem: Digits) -> Action:
    """`torch.func.hessian`, and all eigenvalues of it."""
    module, names = problem.module, [name for name, _ in problem.module.named_parameters()]
    sizes = [p.numel() for p in problem.parameters]

    def loss(vector: Tensor) -> Tensor:
        parts = zip(vector.split(sizes), problem.parameters, strict=True)
        values = [part.view_as(p) for part, p in parts]
        output = torch.func.functional_call(
            module, dict(zip(names, values, strict=True)), problem.images
        )
        return F.cross_entropy(output, problem.labels)

    vector = torch.cat([p.detach().flatten() for p in problem.parameters])

    def value() -> float:
        hessian = torch.func.hessian(loss)(vector)
        return float(torch.linalg.eigvalsh((hessian + hessian.T) / 2).abs().max())

    return value


EIGENVALUES: dict[str, Callable[[Digits], Action]] = {
    "exact": exact,
    "lightning_linf": ours,
    "curvlinops": curvlinops,
    "hessian-eigenthings": hessian_eigenthings,
    "PyHessian": pyhessian,
    "Cockpit": cockpit,
    "torch.func.hessian": func_hessian,
}


def make(name: str, device: torch.device, size: str) -> Action:
    """Make what computes the eigenvalue with a package; on the CPU, always of the same network."""
    return EIGENVALUES[name](Digits())
