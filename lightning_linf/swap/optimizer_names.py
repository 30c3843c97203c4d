"""The optimizers that can be chosen by name, in code and on command lines."""

from typing import Literal

import torch
from torch.optim import Optimizer

from lightning_linf.optim import AdaSGD, BlockwiseAdam, MuonWithAdamW, Signum

OptimizerName = Literal["adam", "adamw", "sgd", "adasgd", "blockwise_adam", "signum", "muon"]
OPTIMIZERS: dict[OptimizerName, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adasgd": AdaSGD,
    "blockwise_adam": BlockwiseAdam,
    "signum": Signum,
    "muon": MuonWithAdamW,
}
