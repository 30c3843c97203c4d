"""The one call from a module and its batches to a report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_linf.argument_checks import check_callable, check_whole
from lightning_linf.distributed.heartbeat import phase
from lightning_linf.functional.full_precision import MatmulPrecision
from lightning_linf.functional.linear_map import LinearMap
from lightning_linf.functional.offload import Offload
from lightning_linf.functional.spectral import MatrixSplit
from lightning_linf.partition import Partition
from lightning_linf.partition.structure import check_structure
from lightning_linf.partition_names import FusedQKV, MeasuredName
from lightning_linf.probe.batch_list import list_batches
from lightning_linf.probe.brackets import OPERATOR_HVPS
from lightning_linf.probe.functional_module import Mode
from lightning_linf.probe.landscape import Landscape
from lightning_linf.probe.measure import measure_landscape
from lightning_linf.probe.noise import MeasuredNoise, measure_noise
from lightning_linf.probe.partitions import (
    choose_partitions,
    default_partitions,
    without_spectral,
)
from lightning_linf.probe.progress import products_shown
from lightning_linf.probe.spectral import SPECTRAL_HVPS, split_matrices
from lightning_linf.probe.wrappers import bare_forward, unwrap
from lightning_linf.reparam import Reparameterization
from lightning_linf.report import GeometryReport


def measure_geometry(
    module: nn.Module,
    batches: Sequence[Any] | Iterable[Any],
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    partitions: Sequence[MeasuredName | Partition] | None = None,
    output_dims: Mapping[str, int] | None = None,
    fused_qkv: FusedQKV | None = None,
    num_probes: int = 16,
    max_hvps: int | None = None,
    noise_batches: Sequence[Any] | Iterable[Any] | None = None,
    reparameterization: Reparameterization | LinearMap | None = None,
    mode: Mode = "eval",
    matmul_precision: MatmulPrecision = "highest",
    offload: Offload | None = None,
    whole_parameters: bool = False,
    seed: int = 0,
    reduce: Callable[[Tensor], Tensor] | None = None,
    progress: bool = False,
    on_hvps: Callable[[int], object] | None = None,
) -> GeometryReport:
    """Measure which geometry a loss landscape has, and how far one step of each lowers the loss.

    For each partition Phi of the parameters into blocks: both ends of the smoothness N(Phi) that
    one step of steepest descent feels, a bound of the blockwise smoothness H(Phi), the gradient's
    dual norm, the decrease of the loss by one step and its advantage over SGD's geometry, and how
    alike gradients are within blocks; besides, the gradient's heterogeneity and its noise. Leaves
    the module as it was, to the last bit.

    Args:
        module: A LightningModule, or any module together with ``loss``; also as Fabric, Accelerate
            or DDP have wrapped it.
        batches: What the loss is measured on: its mean over them (:class:`Landscape`). A list, or a
            loader that has a length, of which all are taken and held. Two or more tell an error
            over batches, without which there is no verdict.
        loss: From module and batch to a scalar. Default: the module's ``probe_loss(batch)`` where
            it has one, else its ``training_step``.
        partitions: Names for :meth:`~lightning_linf.partition.Partition.of`, or partitions of the
            module. "coordinate" and "global", the geometries of Adam and of SGD, are always
            measured. Default: these two, "row" and "tensor"; "row" is left out where a parameter
            has no rows, and ``settings["left_out"]`` says why. "spectral" among them is the
            geometry of Muon, which has no blocks: the spectral norm of hidden matrices
            (:func:`~lightning_linf.partition.hidden_matrices`), and l-infinity of the rest.
        output_dims: For "row" and "column", as in :meth:`~lightning_linf.Partition.of`.
        fused_qkv: For "head", as there.
        num_probes: Probes for each partition's upper end, at least 4; 16 give the (1,1)-norm to
            about a tenth. With no more parameters than probes d products give all of the Hessian:
            the (1,1)-norm is then exact, and each search for the ends of N(Phi) has 400 products.
        max_hvps: Budget of Hessian-vector products in all. Default: ``num_probes`` + 33 for each
            partition, 33 for "global", and 9 for "spectral". What a larger one has beyond goes to
            the ends of N(Phi), in equal shares, each of which stops once more would move its ends
            by no more than 1 %.
        noise_batches: Microbatches for the gradient noise, at least 2, one gradient each. Default:
            ``batches`` if there are two or more; with one the noise is not measured.
        reparameterization: Measure in coordinates phi with parameters theta = A phi. What would
            training see after a rotation? ``Rotation(seed=0)`` leaves the eigenvalues of the
            Hessian and the 2-norm of the gradient as they are, and changes the (1,1)-norm.
            Partitions, too, are then those of phi.
        mode: "eval" for the network as it predicts, "train" for dropout with fixed masks and
            BatchNorm with batch statistics.
        matmul_precision: "highest", float32 in full; or "high": on CUDA, TF32 for the matrix
            products of Hessian-vector products, which takes about half the time where these are
            most of it. Gradients, the check of the loss and what comes of them stay in full. On
            five trained networks (TF32 emulated, benchmarks/results/matmul_precision.txt) it moved
            the (1,1)-norm, lambda_max, curvatures and lower ends by up to 0.1 %, which no stated
            error counts, and upper ends of N(Phi), which come of a search, by up to 11 % either
            way. It is not the default, for on a GPU only single products have been compared.
        offload: "cpu": vectors that no product needs wait on the CPU meanwhile. Numbers are the
            same, memory is less and time more: docs/memory.md. :func:`probe_memory` says what a
            probe takes with and without.
        whole_parameters: Of a module that ranks share (``fully_shard``, tensor parallelism), gather
            all on every rank. Otherwise each holds its share of parameters and of vectors, and all
            ranks must call this (:class:`Landscape`).
        seed: Of all random numbers.
        reduce: Sums a tensor over processes and returns it, each of which then has batches of its
            own and makes the same call. Default: the batches of this process alone.
        progress: Show a bar of the products, in a terminal or a notebook.
        on_hvps: Called with the number of products after each pass, for bars of your own.

    Returns:
        The report; ``print`` shows it.

    Raises:
        ValueError: If an argument has a wrong value, or a parameter no place in a partition that
            was asked for.
        ProbeError: If the loss cannot be differentiated twice, or a number is not finite; or if
            it is another when evaluated again, or its second derivatives are wrong
            (:meth:`Landscape.check`, which costs about 7 gradients).

    Source:
        Quantities: Xie, Mohamadi & Li, arXiv:2410.08198. Cost: with one batch about two gradients a
        product; see :func:`~lightning_linf.functional.operator_norm` for the brackets.

    Example:
        >>> import torch
        >>> module, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0]])
        >>> report = measure_geometry(module, [x], loss=lambda m, x: m(x).square().mean())
        >>> round(report.one_one_norm, 3), round(report.lambda_max, 3)  # of the Hessian 2 x x^T
        (18.0, 10.0)
    """
    module = unwrap("measure_geometry", module)
    batches = list_batches("measure_geometry", "batches", batches)
    check_callable("measure_geometry", "on_hvps", on_hvps)
    check_whole("measure_geometry", "num_probes", num_probes, 4)
    check_whole("measure_geometry", "max_hvps", max_hvps, 1, or_none=True)
    check_structure("measure_geometry", output_dims, fused_qkv)
    if isinstance(partitions, (str, Partition)):
        raise ValueError(
            f"measure_geometry: expected a list of `partitions`, got {partitions!r}. Write "
            "[partition]."
        )
    options: dict[str, Any] = {
        "loss": loss, "mode": mode, "seed": seed, "reparameterization": reparameterization,
        "matmul_precision": matmul_precision, "offload": offload, "reduce": reduce,
        "whole_parameters": whole_parameters,
    }  # fmt: skip
    landscape = Landscape(module, batches, **options)
    structure: dict[str, Any] = {"output_dims": output_dims, "fused_qkv": fused_qkv}
    left_out: dict[str, str] = {}
    matrices: MatrixSplit | None = None
    if partitions is None:
        chosen, left_out = default_partitions(module, structure)
    else:
        named, with_spectral = without_spectral(partitions)
        chosen = choose_partitions(module, named, **structure)
        matrices = split_matrices(module) if with_spectral else None
    noise: MeasuredNoise | None = None
    if noise_batches is not None:
        noise_batches = list_batches("measure_geometry", "noise_batches", noise_batches)
        noise_landscape = Landscape(module, noise_batches, **options)
        with bare_forward(module), noise_landscape:
            noise = measure_noise(noise_landscape, chosen)
    most_hvps = max_hvps or (num_probes + OPERATOR_HVPS) * len(chosen)
    most_hvps += 0 if matrices is None or max_hvps else SPECTRAL_HVPS
    shown = products_shown(most_hvps, on_hvps, is_shown=progress)
    with bare_forward(module), landscape, shown as on_hvps:
        with phase("check of the loss"):
            remark = landscape.check()
        if remark is not None:
            rank_zero_warn(f"measure_geometry: {remark}")
        if noise_batches is None and (landscape.num_batches > 1 or reduce is not None):
            noise = measure_noise(landscape, chosen)
        report = measure_landscape(
            landscape,
            chosen,
            matrices=matrices,
            num_probes=num_probes,
            max_hvps=max_hvps,
            noise=noise,
            seed=seed,
            on_hvps=on_hvps,
        )
    return replace(report, settings={**report.settings, **left_out})
