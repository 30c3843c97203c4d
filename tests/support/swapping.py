"""A module, schedules and callbacks for tests that swap optimizers while a Trainer fits."""

import lightning
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf import Geometry, GeometryMixin
from lightning_linf.optim import Reparameterized
from lightning_linf.reparam import Rotation
from lightning_linf.swap.trainer import swap_optimizers

quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*smaller than the logging interval:UserWarning",
    "ignore:.*a checkpoint that ended before the epoch ended:UserWarning",  # data follow the step
)


def momentum_sgd(module):
    return SGD(module.parameters(), lr=0.1, momentum=0.9)


class Net(lightning.LightningModule):
    """Sees other data at every step, also when it is resumed; keeps the rates it was stepped by."""

    def __init__(self, configure=momentum_sgd):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.configure = configure
        self.rates = []

    def loss(self):
        self.seen += 1
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(int(self.seen)))
        return (self.net(x) - x[:, :2].abs()).square().mean()

    def training_step(self, batch, batch_idx):
        groups = [group for o in self.trainer.optimizers for group in o.param_groups]
        self.rates.append([float(group["lr"]) for group in groups])
        self.log("flat", 1.0)
        return self.loss()

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(64, 1)), batch_size=1)

    def configure_optimizers(self):
        return self.configure(self)


class Gan(Net):
    """Two optimizers by hand, the second with a schedule."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss())
            optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self):
        first = SGD(self.net[0].parameters(), lr=0.1, momentum=0.5)
        second = Adam(self.net[2].parameters(), lr=0.01)
        return [first, second], [schedulers.StepLR(second, 2)]


class Hook(Callback):
    """Call a function in a hook once, at a step."""

    def __init__(self, function, step=0, name="on_train_batch_start"):
        self.function, self.step = function, step
        setattr(self, name, self._call)

    def _call(self, trainer, module, *args):
        if self.function is not None and trainer.global_step >= self.step:
            function, self.function = self.function, None
            function(trainer, module)


def swapping(geometry, step=3, **options):
    return Hook(lambda trainer, module: swap_optimizers(trainer, module, geometry, **options), step)


def fit(module, tmp_path, callbacks=(), ckpt_path=None, **options):
    options = {key: value() if callable(value) else value for key, value in options.items()}
    defaults = {
        "max_steps": 6,
        "logger": False,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }
    trainer = lightning.Trainer(callbacks=[*callbacks], **{**defaults, **options})
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def assert_equal_weights(first, second):
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def assert_other_weights(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert not all(torch.equal(ours, theirs) for ours, theirs in pairs)


def cosine(optimizer):
    return schedulers.CosineAnnealingLR(optimizer, 10)


SCHEDULES = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda i: (i + 1) / 10),
    "lambdas": lambda o: schedulers.LambdaLR(o, [lambda i: 1 / (i + 1), lambda i: 0.9**i]),
    "step": lambda o: schedulers.StepLR(o, 2),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.8),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 5, eta_min=0.01),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4, eta_min=0.01),
    "polynomial": lambda o: schedulers.PolynomialLR(o, 6),
    "cyclic": lambda o: schedulers.CyclicLR(o, 0.01, 0.2, step_size_up=2),
    "cycle": lambda o: schedulers.OneCycleLR(o, [0.2, 0.4], total_steps=9),
    "chained": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1, 2), schedulers.ExponentialLR(o, 0.9)]
    ),
    "sequential": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=2), cosine(o)], [2]
    ),
    "wrapper": lambda o: Wrapper(cosine(o)),
}


class Wrapper:
    """What a user may write around a scheduler."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    @property
    def optimizer(self):
        return self.scheduler.optimizer

    def step(self, *args):
        self.scheduler.step()

    def state_dict(self):
        return self.scheduler.state_dict()

    def load_state_dict(self, state):
        self.scheduler.load_state_dict(state)


class Scheduled(Net):
    """Two groups under a schedule by step, by a scheduler of any kind."""

    def __init__(self, schedule, kind=Adam):
        super().__init__()
        self.schedule, self.kind = schedule, kind
        self.momenta = []

    def training_step(self, batch, batch_idx):
        (group, *_) = self.trainer.optimizers[0].param_groups
        self.momenta.append(group["betas"][0] if "betas" in group else group["momentum"])
        return super().training_step(batch, batch_idx)

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()

    def configure_optimizers(self):
        groups = [
            {"params": self.net[0].parameters()},
            {"params": self.net[2].parameters(), "lr": 0.3},
        ]
        options = {"momentum": 0.9} if self.kind is SGD else {}
        optimizer = self.kind(groups, lr=0.1, **options)
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


def two_groups(module):
    groups = [
        {"params": module.net[0].parameters(), "weight_decay": 0.1, "layer": 1},
        {"params": module.net[2].parameters(), "lr": 0.02},
    ]
    optimizer = AdamW(groups, lr=0.01, betas=(0.8, 0.9), amsgrad=True)
    scheduler = schedulers.OneCycleLR(optimizer, 0.1, total_steps=20)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def rotated(module):
    return Reparameterized(
        module.named_parameters(), lambda p: Adam(p, lr=0.01), Rotation("tensor", seed=4)
    )


class GeometryNet(GeometryMixin, Net):
    geometry = Geometry("adamw", rotation="global", rotation_seed=5)
