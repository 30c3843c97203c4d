"""A training with every kind of state, and all of it that must not differ, to the last bit."""

import random
from types import SimpleNamespace

import lightning
import numpy as np
import torch
import torchmetrics
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf.callbacks import (
    EdgeMonitor,
    GradientHeterogeneityMonitor,
    LinfSmoothnessMonitor,
)

IGNORED_WARNINGS = (
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*smaller than the logging interval:UserWarning",
    "ignore:.*`training_step` returned `None`:UserWarning",
    "ignore:.*in eval mode at the start of training:UserWarning",  # on purpose here
)


class Memory(Logger):
    """Keep every logged number; count what the module sends past ``self.log``."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.rows = []
        self.calls = []
        self.experiment = SimpleNamespace(add_text=self.calls.append)

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


class Everything(lightning.LightningModule):
    """Every kind of state that a second call of ``training_step`` would disturb."""

    def __init__(self, activation_checkpointing=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.3))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)
        self.teacher = nn.Linear(6, 3).requires_grad_(False)
        self.hidden = [nn.BatchNorm1d(6)]  # a list, to keep it out of the state_dict
        self.hidden_parameters = list(self.teacher.parameters())
        self.random_state = np.random.RandomState(7)
        self.frozen_eval = nn.Dropout(0.5).eval()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.mean_loss = torchmetrics.MeanMetric()
        self.predictions = torchmetrics.CatMetric()
        self.calls = 0
        self.losses = []
        self.nested = {"seen": [0], "meter": SimpleNamespace(total=0.0)}
        self.running = torch.zeros(3)
        self.array = np.zeros(2)
        self.generator = torch.Generator().manual_seed(7)
        self.numpy_generator = np.random.default_rng(7)
        self.python_generator = random.Random(7)
        self.activation_checkpointing = activation_checkpointing
        self.hook_calls = 0
        self.head.register_forward_hook(self._count)

    def on_train_start(self):
        self.hidden[0].to(self.device)  # no module moves what a list holds
        self.running = self.running.to(self.device)

    def _count(self, module, args, output):
        self.hook_calls += 1

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x + 0.01 * self.hidden[0](x) + 0.01 * self.random_state.rand()
        if self.activation_checkpointing:
            hidden = checkpoint(self.body, x, use_reentrant=False)
        else:
            hidden = self.body(x)
        logits = self.head(self.frozen_eval(self.spectral(hidden)))
        noise = torch.rand((), generator=self.generator) + torch.rand(())
        noise = noise + self.numpy_generator.random() + np.random.random()  # noqa: NPY002
        noise = noise + self.python_generator.random() + random.random()
        target = self.teacher(x).softmax(-1)
        loss = nn.functional.cross_entropy(logits, y) * (1 + 0.01 * noise)
        loss = loss + 0.1 * (logits.softmax(-1) - target).square().mean()
        with torch.no_grad():
            for ours, theirs in zip(self.hidden_parameters, self.head.parameters(), strict=True):
                ours.data.lerp_(theirs.data[:, :6] if theirs.ndim == 2 else theirs.data, 0.1)
        self.calls += 1
        self.losses.append(loss.item())
        self.nested["seen"][0] += len(x)
        self.nested["meter"].total += loss.item()
        self.running += logits.detach().float().mean(0)
        self.array += 1
        self.last_logits = logits.detach()
        self.accuracy(logits, y)
        self.mean_loss.update(loss.detach())
        self.predictions.update(logits.detach().argmax(-1))
        self.logger.experiment.add_text(str(self.calls))
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"calls": float(self.calls), "noise": noise})
        return {"loss": loss, "logits": logits.detach()}

    def on_train_epoch_end(self):
        self.log("mean_loss", self.mean_loss.compute())
        self.mean_loss.reset()

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.ndim > 1 and p.requires_grad]
        vectors = [p for p in self.parameters() if p.ndim == 1 and p.requires_grad]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr": 1e-2}]
        optimizer = torch.optim.AdamW(groups, lr=3e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def monitors(mode="eval", num_batches=1, partitions=(), every_n_steps=1):
    return [
        GradientHeterogeneityMonitor(every_n_steps=every_n_steps, on_error="raise"),
        LinfSmoothnessMonitor(
            every_n_steps=every_n_steps,
            partitions=partitions,
            num_probes=4,
            num_batches=num_batches,
            mode=mode,
            on_error="raise",
            max_overhead=None,
        ),
        EdgeMonitor(
            every_n_steps=every_n_steps,
            num_batches=num_batches,
            mode=mode,
            on_error="raise",
            max_overhead=None,
        ),
    ]


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(80, 6, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(-1)), batch_size=8, shuffle=True)


def train(tmp_path, callbacks, *, make=Everything, steps=20, ckpt_path=None, **options):
    lightning.seed_everything(3, verbose=False)
    module = make()
    logger = Memory()
    trainer = lightning.Trainer(
        max_steps=steps,
        callbacks=[*callbacks],
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        **{"accelerator": "cpu", **options},
    )
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    return trainer, module, logger


def trace(trainer, module, logger):
    """Everything that must not differ, as one structure."""
    rows = [
        (step, {k: v for k, v in row.items() if not k.startswith("geometry/")})
        for step, row in logger.rows
    ]
    return {
        "weights": {k: v.clone() for k, v in module.state_dict().items()},
        "optimizer": trainer.optimizers[0].state_dict()["state"],
        "curves": [(step, row) for step, row in rows if row],
        "metrics": {
            name: {k: str(v) for k, v in metric.metric_state.items()}
            for name, metric in module.named_children()
            if isinstance(metric, torchmetrics.Metric)
        },
        "counters": (module.calls, module.losses, module.nested["seen"], module.hook_calls),
        "hidden": {k: v.clone() for k, v in module.hidden[0].state_dict().items()},
        "meter": (module.nested["meter"].total, module.running, module.array.tolist()),
        "flags": [part.training for part in module.modules()],
        "experiment": logger.calls,
        "random": (
            torch.get_rng_state(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            module.generator.get_state(),
            module.numpy_generator.random(),
            module.python_generator.random(),
            module.random_state.rand(),
        ),
        "attributes": sorted(module.__dict__),
        "grads": [p.grad is None for p in module.parameters()],
    }


def assert_same(first, second, path=""):
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert list(first) == list(second), path
        for key in first:
            assert_same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{path}/{index}")
    else:
        assert first == second, path
