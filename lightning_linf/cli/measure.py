"""`lightning-linf measure`: the geometry at a Lightning checkpoint."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import Progress

from lightning_linf.cli.arguments import ClassArguments, parse
from lightning_linf.cli.errors import UsageError
from lightning_linf.partition_names import (
    DEFAULT,
    ENDS,
    SPECTRAL,
    FusedQKV,
    MeasuredName,
    PartitionName,
)
from lightning_linf.report import GeometryReport, files
from lightning_linf.report.terminal import ReportView
from lightning_linf.report.text import describe

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

_TEXT_WIDTH = 100  # of what is not written to a terminal


def measure(argv: Sequence[str]) -> None:
    """Run the subcommand.

    Raises:
        UsageError: If something is wrong that the user can put right.
        OutputError: If the report cannot be written there.
    """
    options, classes = parse(make_parser(), argv)
    _check(options)
    if sys.path[:1] != [os.getcwd()]:  # as for `python -m`: the user's classes may lie there
        sys.path.insert(0, os.getcwd())
    report = _measure(options, classes)
    if options.output is not None:  # before printing, which a closed pipe can end
        report.save(options.output)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_TEXT_WIDTH)
    console.print(ReportView(describe(report)))
    if options.output is not None:
        console.print(f"Report: {options.output}", highlight=False, markup=False, soft_wrap=True)


def make_parser() -> ArgumentParser:
    """List the options; those of the user's classes are read apart from them."""
    parser = ArgumentParser(
        prog="lightning-linf measure",
        usage="%(prog)s CHECKPOINT --model CLASS [--data CLASS] [--model.ARG VALUE ...] "
        "[--data.ARG VALUE ...] [--config FILE.yaml] [--OPTION VALUE ...]",
        description="Measure the geometry of the loss at a Lightning checkpoint: smoothness along "
        "l-infinity, l2 and between, gradient noise, and how far a step of each lowers the loss.",
        epilog="Constructor arguments come from the checkpoint's hyperparameters "
        "(self.save_hyperparameters(), or LightningCLI). Those given as --model.ARG, --data.ARG or "
        "in --config replace the saved ones of the same name; the others stay as they were saved.",
        exit_on_error=False,
        print_config=None,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="File that Lightning has saved.")
    add(
        "--model",
        metavar="CLASS",
        required=True,
        help="Path of the LightningModule, such as package.Class; the current folder is searched "
        "first. Its probe_loss(batch) is measured where it has one, else its training_step.",
    )
    add(
        "--data",
        metavar="CLASS",
        type=str | None,
        help="Path of the LightningDataModule. Default: the dataloaders of the model itself.",
    )
    add(
        "--config",
        metavar="FILE.yaml",
        action="config",
        help="YAML with these options, and `model:`, `data:` as {class_path, init_args}; the "
        "config.yaml of a LightningCLI will do. Flags win.",
    )
    add("--split", type=Literal["train", "val"], default="train", help="Which dataloader.")
    add(
        "--num_batches",
        type=int,
        default=1,
        help="The loss is the mean over this many batches, the first ones. Two or more tell an "
        "error over batches, without which there is no verdict.",
    )
    add(
        "--num_noise_batches",
        type=int,
        default=8,
        help="Batches for the gradient noise, the first ones again; one gradient each. 0: no more "
        "than --num_batches, which give it if they are two or more.",
    )
    add(
        "--partitions",
        type=MeasuredName,
        nargs="+",
        metavar="NAME",
        help=f"Partitions to measure, out of {', '.join(get_args(PartitionName))}; coordinate and "
        "global always are. Also spectral, the geometry of Muon. Default: coordinate, global, "
        "tensor, and row unless a parameter has no rows.",
    )
    add(
        "--output_dims",
        type=dict[str, int] | None,
        metavar="{PATTERN: DIM}",
        help="For row and column: by a regular expression searched in a parameter's name, the "
        "dimension that is the output.",
    )
    add(
        "--fused_qkv",
        type=FusedQKV | None,
        help="For head: the order of the outputs of a linear map that computes query, key and "
        "value. qkv_head: all heads' queries first (nanoGPT, timm); head_qkv: all of the first "
        "head first (GPT-NeoX, BLOOM).",
    )
    add(
        "--num_probes",
        type=int,
        default=16,
        help="Random probes for each partition, at least 4; 16 give the (1,1)-norm to about 10 %.",
    )
    add(
        "--max_hvps",
        type=int | None,
        help="Budget of Hessian-vector products. Default: num_probes + 33 for each partition, 33 "
        "for global. And 9 for spectral. What a larger one has beyond goes to the ends of N(Phi).",
    )
    add(
        "--mode",
        type=Literal["eval", "train"],
        default="eval",
        help="eval: the network as it predicts; train: dropout with fixed masks, BatchNorm with "
        "batch statistics.",
    )
    add(
        "--matmul_precision",
        type=Literal["highest", "high"],
        default="highest",
        help="highest: matrix products in full float32; high: in TF32 on CUDA, faster and coarser.",
    )
    add(
        "--offload",
        type=Literal["cpu"] | None,
        default=None,
        help="cpu: vectors that no product needs wait on the CPU, for less memory and more time.",
    )
    add("--seed", type=int, default=0, help="Of the probes, and of a shuffled dataloader.")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (say) or mps.")
    add(
        "--output",
        metavar="FILE.json",
        type=str | None,
        help="Also save the report, for GeometryReport.load.",
    )
    add(
        "--trust_checkpoint",
        type=bool,
        default=False,
        help="Read a checkpoint that holds more than tensors and plain data. It can run any code "
        "when it is read: only for files from a source that you trust.",
    )
    return parser


def _check(options: Namespace) -> None:
    """Refuse, before anything costs time, what would fail after it."""
    output = Path(options.output or "report.json")
    for name, is_right, expected in (
        ("num_batches", options.num_batches >= 1, "at least 1"),
        ("num_noise_batches", options.num_noise_batches in (0, max(2, options.num_noise_batches)),
         "0 or at least 2"),
        ("output", output.parent.is_dir(), "in a folder that exists"),
    ):  # fmt: skip
        if not is_right:
            raise UsageError(f"measure: expected --{name} {expected}, got {options[name]!r}.")
    if options.output is not None:
        files.destination(output, "measure: expected --output")


def _measure(options: Namespace, classes: dict[str, ClassArguments]) -> GeometryReport:
    # Not at the top: Lightning takes seconds to import.
    from lightning.pytorch import LightningDataModule, LightningModule, seed_everything

    from lightning_linf.cli.batches import make_trainer, take_batches
    from lightning_linf.cli.checkpoint import Checkpoint, find_class

    for package in ("lightning.pytorch", "pytorch_lightning"):  # no "GPU available: False"
        logging.getLogger(package).setLevel(logging.WARNING)
    for message in (  # what Lightning itself uses; the second for LightningCLI's checkpoints
        ".*LeafSpec.*is deprecated",
        "(?s).*(JsonargparseDeprecation|was deprecated in v4)",
    ):
        warnings.filterwarnings("ignore", message)
    checkpoint = Checkpoint.open(Path(options.checkpoint), options.trust_checkpoint)
    model_class = find_class("--model", options.model, LightningModule)
    data_class = find_class("--data", options.data, LightningDataModule) if options.data else None
    trainer = make_trainer(options.device, model_class, data_class)
    seed_everything(options.seed, verbose=False)
    module = checkpoint.load(model_class, classes["model"])
    datamodule = checkpoint.load(data_class, classes["data"]) if data_class else None
    count = max(options.num_batches, options.num_noise_batches)
    batches = take_batches(trainer, module, datamodule, options.split, count)
    report = _measure_module(options, module, batches)
    origin = {
        "checkpoint": options.checkpoint,
        "global_step": checkpoint.global_step,
        "split": options.split,
    }
    return replace(report, settings={**report.settings, **origin})


def _measure_module(
    options: Namespace, module: "LightningModule", batches: Sequence[Any]
) -> GeometryReport:
    from lightning_linf.errors import ProbeError
    from lightning_linf.probe import measure_geometry
    from lightning_linf.probe.brackets import OPERATOR_HVPS
    from lightning_linf.probe.spectral import SPECTRAL_HVPS

    names = {*(options.partitions or DEFAULT), *ENDS}
    most_hvps = (options.num_probes + OPERATOR_HVPS) * len(names - {SPECTRAL})
    most_hvps += SPECTRAL_HVPS if SPECTRAL in names else 0
    if options.max_hvps is not None:
        most_hvps = options.max_hvps
    try:
        with _progress(most_hvps) as advance:
            return measure_geometry(
                module,
                batches[: options.num_batches],
                partitions=options.partitions,
                output_dims=options.output_dims,
                fused_qkv=options.fused_qkv,
                num_probes=options.num_probes,
                max_hvps=options.max_hvps,
                noise_batches=batches[: options.num_noise_batches] or None,
                mode=options.mode,
                matmul_precision=options.matmul_precision,
                offload=options.offload,
                seed=options.seed,
                on_hvps=advance,
            )
    except (ProbeError, ValueError) as error:
        if isinstance(error, ProbeError) or _is_ours(error):
            raise UsageError(str(error)) from error
        raise


def _is_ours(error: Exception) -> bool:
    """Whether this package raised it, and not the user's code that it called."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    return str(module).startswith("lightning_linf.")


@contextmanager
def _progress(most_hvps: int) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Hessian-vector products", total=most_hvps)
        yield lambda count: progress.update(task, advance=count)
