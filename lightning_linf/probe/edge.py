"""How near the next step of a live optimizer is to instability."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_linf.argument_checks import check_callable, check_whole
from lightning_linf.functional.full_precision import MatmulPrecision
from lightning_linf.functional.lambda_max import lanczos
from lightning_linf.functional.random import derive_seed
from lightning_linf.functional.random_vectors import normal_vector
from lightning_linf.probe.functional_module import Mode
from lightning_linf.probe.landscape import Landscape
from lightning_linf.probe.last_step import measure_last_step
from lightning_linf.probe.preconditioned import PreconditionedHessian
from lightning_linf.probe.products import HessianProducts
from lightning_linf.probe.wrappers import bare_forward, unwrap, unwrap_optimizer
from lightning_linf.report import EdgeReport, StepReport

EDGE_HVPS = 16
_TOLERANCE = 0.01  # between both ends of the edge, relative


def measure_edge(
    module: nn.Module,
    batches: Sequence[Any] | Iterable[Any],
    optimizer: Optimizer,
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    last_step: Sequence[Tensor] | None = None,
    max_hvps: int = EDGE_HVPS,
    mode: Mode = "eval",
    matmul_precision: MatmulPrecision = "highest",
    seed: int = 0,
    reduce: Callable[[Tensor], Tensor] | None = None,
    on_hvps: Callable[[int], object] | None = None,
    whole_parameters: bool = False,
) -> EdgeReport:
    r"""Measure how near an optimizer's next step is to the edge of stability.

    With its second moments held fixed, the step of an adaptive optimizer is that of gradient
    descent with momentum under a preconditioner P. On a quadratic it diverges where the largest
    eigenvalue of :math:`P^{-1/2} H P^{-1/2}` times the learning rate exceeds a threshold, which
    :func:`~lightning_linf.functional.stability_threshold` derives: 2 for SGD, 2 + 2 mu with
    momentum, 38 for Adam with beta1 = 0.9. ``edge`` is that product over the threshold: below 1
    the step is stable, and full-batch training at a constant learning rate settles near 1. Noise
    keeps training on small batches below it. Leaves the module and the optimizer as they were.

    Parameter groups may differ in all hyperparameters. Coupled weight decay adds to the curvature,
    decoupled weight decay moves the threshold. In :class:`~lightning_linf.optim.Reparameterized`
    the eigenvalue is that in the optimizer's coordinates. Since P is that after the last step, the
    batches should be those of this step, or many: a gradient that P has not seen would change it.
    An entry that has only had gradients of 0 has P = eps; if it has curvature all the same, the
    edge is huge until it moves.

    All of this is of the present point. Where the loss sharpens quickly, a rate below
    ``largest_stable_lr`` may become unstable within some steps: early in the training of a small
    network it was 0.56 to 4.3 times the largest rate that was stable for the next 100 steps, and
    0.95 to 1.05 times after 1,600 steps (benchmarks/results/edge.txt).

    Args:
        module: A LightningModule, or any module together with ``loss``.
        batches: What the loss is measured on: its mean over them (:class:`Landscape`).
        optimizer: The live one, after a step: SGD, Adam, AdamW, BlockwiseAdam, AdaSGD, or one of
            these within Reparameterized.
        loss: From module and batch to a scalar. Default: the module's ``probe_loss(batch)`` where
            it has one, else its ``training_step``.
        last_step: What the last step has added to each parameter of the optimizer, in their order;
            then the report says what it did to the loss of the batches, at one product more.
        max_hvps: Products for the edge, 16 by default; it stops earlier once both ends are within
            1 %.
        mode: "eval" for the network as it predicts, "train" for dropout with fixed masks and
            BatchNorm with batch statistics.
        matmul_precision: As in :func:`measure_geometry`.
        seed: Of all random numbers.
        reduce: As in :func:`measure_geometry`.
        on_hvps: Called with the number of products after each pass, for progress bars.
        whole_parameters: As in :class:`Landscape`, for a sharded module.

    Returns:
        The report; ``print`` shows it.

    Raises:
        ValueError: If an argument has a wrong value, or the optimizer is of another class.
        ProbeError: If an adaptive optimizer has not made a step, and what :class:`Landscape` and
            its check raise.

    Source:
        Cohen et al., Adaptive Gradient Methods at the Edge of Stability, arXiv:2207.14484. Cost:
        about two gradients a product.

    Example:
        >>> import torch
        >>> module, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0]])
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> report = measure_edge(module, [x], optimizer, loss=lambda m, x: m(x).square().mean())
        >>> round(report.edge, 3), round(report.largest_stable_lr, 3)  # 0.1 * 10 / 2; 2 / 10
        (0.5, 0.2)
    """
    module, optimizer = unwrap("measure_edge", module), unwrap_optimizer("measure_edge", optimizer)
    check_callable("measure_edge", "on_hvps", on_hvps)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    landscape = Landscape(
        module,
        batches,
        loss=loss,
        mode=mode,
        seed=seed,
        parameters=parameters,
        matmul_precision=matmul_precision,
        whole_parameters=whole_parameters,
        reduce=reduce,
    )
    with bare_forward(module), landscape:
        remark = landscape.check()
        if remark is not None:
            rank_zero_warn(f"measure_edge: {remark}")
        step = None if last_step is None else _joined(landscape, parameters, last_step)
        return measure_edge_of_landscape(
            landscape, [optimizer], last_step=step, max_hvps=max_hvps, seed=seed, on_hvps=on_hvps
        )


def measure_edge_of_landscape(
    landscape: Landscape,
    optimizers: Sequence[Optimizer],
    *,
    last_step: Tensor | None = None,
    with_edge: bool = True,
    max_hvps: int = EDGE_HVPS,
    seed: int = 0,
    on_hvps: Callable[[int], object] | None = None,
) -> EdgeReport:
    """Measure a landscape that is entered; :func:`measure_edge` enters one for you.

    Args:
        landscape: Inside its ``with``, without reparameterization.
        optimizers: That step its parameters; several count as one with the groups of all.
        last_step: The present point minus the one before the last step, shape (d,).
        with_edge: False: measure the last step alone, for which any optimizer will do.
        max_hvps: Products for the edge.
        seed: Of the start of the iteration.
        on_hvps: Called with the number of products after each pass.

    Raises:
        ValueError: If an argument has a wrong value, or an optimizer is of another class.
        ProbeError: As :func:`measure_edge`.
    """
    begin, hvps_before = time.perf_counter(), landscape.num_hvps
    check_whole("measure_edge", "max_hvps", max_hvps, 1)
    vector = landscape.parameters
    products = HessianProducts(landscape, on_hvps)
    hessian = PreconditionedHessian(landscape, products, optimizers) if with_edge else None
    gradient = landscape.gradient()  # first: no evaluation may follow a kept graph
    step: StepReport | None = None
    per_tensor: dict[str, StepReport] = {}
    if last_step is not None:
        step, per_tensor = measure_last_step(gradient, last_step, landscape.parameters, products)
    del gradient, last_step
    lower = upper = math.nan
    if hessian is not None:
        krylov = lanczos(
            hessian,
            normal_vector(vector.num_params, seed=derive_seed("edge", seed), like=vector.like),
            max_hvps=max_hvps,
            tol=_TOLERANCE,
            positive_end=True,
        )
        lower, upper = krylov.value, krylov.upper
    return EdgeReport(
        num_params=vector.num_params,
        loss=landscape.loss(),
        edge=lower,
        edge_upper=upper,
        learning_rate=float(optimizers[0].param_groups[0]["lr"]),
        step=step,
        per_tensor=per_tensor,
        settings={
            "mode": landscape.mode,
            "matmul_precision": landscape.matmul_precision,
            "seed": seed,
            "num_batches": landscape.num_batches,
            "optimizer": ", ".join(type(optimizer).__name__ for optimizer in optimizers),
        },
        num_hvps=landscape.num_hvps - hvps_before,
        seconds=time.perf_counter() - begin,
    )


def _joined(
    landscape: Landscape, parameters: Sequence[Tensor], last_step: Sequence[Tensor]
) -> Tensor:
    """Join the moves of an optimizer's parameters in the order of the landscape. Shape: (d,)."""
    shapes = [tuple(p.shape) for p in parameters]
    if [tuple(move.shape) for move in last_step] != shapes:
        raise ValueError(
            f"measure_edge: expected `last_step` of one tensor for each of {len(shapes)} "
            f"parameters of the optimizer, in their shapes and order, got {len(last_step)}. "
            "Subtract copies of the parameters before the step from those after it."
        )
    moves = dict(zip(parameters, last_step, strict=True))
    return landscape.parameters.flatten([moves[p].detach() for p in landscape.parameters.originals])
