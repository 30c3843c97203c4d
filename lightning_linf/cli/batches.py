"""Take batches from a user's dataloader, through the same hooks as in training."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import islice
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_linf.cli.errors import UsageError
from lightning_linf.lightning_packages import counterpart, either, is_either

Split = Literal["train", "val"]


def make_trainer(
    device: str,
    model: type[LightningModule],
    data: type[LightningDataModule] | None,
) -> Trainer:
    """Make a trainer for one device that writes nothing.

    It is of the package that ``model`` derives from, `lightning` or `pytorch_lightning`.

    Raises:
        UsageError: If ``device`` is unknown or not there, or ``data`` is of another package.
    """
    match = re.fullmatch(r"(auto|cpu|cuda|mps)|cuda:(\d+)", device)
    if match is None:
        raise UsageError(
            "measure: expected --device to be auto, cpu, cuda, cuda:1 (say) or mps, got "
            f"{device!r}."
        )
    kind = counterpart(Trainer, model)
    if data is not None and counterpart(Trainer, data) is not kind:
        raise UsageError(
            f"measure: expected --model and --data of one package, got {model.__name__} of "
            f"{_package(kind)} and {data.__name__} of {_package(counterpart(Trainer, data))}. "
            "Import both classes' bases from the same one."
        )
    try:
        return kind(
            accelerator=match[1] or "cuda",
            devices=1 if match[1] else [int(match[2])],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except either(MisconfigurationException) as error:
        raise UsageError(f"measure: --device {device}: {error}") from error


def take_batches(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LightningDataModule | None,
    split: Split,
    count: int,
) -> list[Any]:
    """Take the first ``count`` batches, and move them and the module to the trainer's device.

    As at the start of training, the module and the datamodule get a ``trainer``, and their
    ``prepare_data`` and ``setup("fit")`` are called. The weights stay as they were, and the trainer
    stays attached, as a ``training_step`` may ask for it.

    Raises:
        UsageError: If there is no such dataloader, or it has fewer batches.
    """
    source = module if datamodule is None else datamodule
    name = f"{split}_dataloader"
    if not _has(name, source):
        remedy = "Give a LightningDataModule as --data." if datamodule is None else "Define it."
        raise UsageError(
            f"measure: expected {type(source).__name__} to have a {name}, got none. {remedy}"
        )
    parts = (module,) if datamodule is None else (datamodule, module)
    _attach(trainer, module, datamodule)
    for part in parts:
        part.prepare_data()
    with _weights_kept(module):
        for part in parts:
            part.setup("fit")
    module.to(trainer.strategy.root_device)
    trainer.training, trainer.validating = split == "train", split == "val"
    # As Lightning combines several dataloaders; one stays as it is.
    mode: Any = "max_size_cycle" if split == "train" else "sequential"
    loader = CombinedLoader(getattr(source, name)(), mode)
    batches = [
        _transferred(batch, dataloader_idx, module, datamodule)
        for batch, _, dataloader_idx in islice(loader, count)
    ]
    loader.reset()  # ends its workers
    trainer.training = True
    if len(batches) < count:
        raise UsageError(
            f"measure: expected {count} batches in {type(source).__name__}.{name} (the larger of "
            f"--num_batches and --num_noise_batches), got {len(batches)}. Lower these."
        )
    return batches


def _attach(
    trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None
) -> None:
    trainer.state.fn = TrainerFn.FITTING
    trainer.strategy.connect(module)  # trainer.lightning_module
    module.trainer = trainer
    if datamodule is not None:
        trainer.datamodule = datamodule  # type: ignore[attr-defined]  # so does Lightning
        datamodule.trainer = trainer


def _has(name: str, part: LightningModule | LightningDataModule) -> bool:
    """Say whether this hook is the user's own, and not that of Lightning's base class."""
    is_data = is_either(part, LightningDataModule)
    parent = counterpart(LightningDataModule if is_data else LightningModule, part)
    return is_overridden(name, part, parent=parent)


def _package(kind: type) -> str:
    return "pytorch_lightning" if kind.__module__.startswith("pytorch_lightning") else "lightning"


@contextmanager
def _weights_kept(module: LightningModule) -> Iterator[None]:
    """Restore weights that ``setup`` changes; training calls it before it reads a checkpoint."""
    state = deepcopy(module.state_dict())
    yield
    module.load_state_dict(state)


def _transferred(
    batch: Any,
    dataloader_idx: int,
    module: LightningModule,
    datamodule: LightningDataModule | None,
) -> Any:
    """Pass a batch through the hooks that move it to the device.

    A datamodule's hook goes before that of the module, as in training. Lightning has a function for
    all of this, but it is private (``_apply_batch_transfer_handler``).
    """

    def hook(name: str) -> Callable[..., Any]:
        owner = datamodule if datamodule and _has(name, datamodule) else module
        return getattr(owner, name)  # type: ignore[no-any-return]

    batch = hook("on_before_batch_transfer")(batch, dataloader_idx)
    batch = hook("transfer_batch_to_device")(batch, module.device, dataloader_idx)
    return hook("on_after_batch_transfer")(batch, dataloader_idx)
