"""What a report says of the training that it was measured in."""

import re

import torch
from torch import nn

from lightning_linf.optim import BlockwiseAdam
from lightning_linf.recorder.training import training_settings


def test_model_optimizers_and_time_are_named():
    module = nn.Linear(2, 1)
    groups = [{"params": [module.weight], "lr": torch.tensor(0.5)}, {"params": [module.bias]}]
    optimizers = [
        torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01),
        BlockwiseAdam(module.parameters(), lr=1e-3, partition="tensor"),
    ]
    settings = training_settings(module, optimizers)
    assert settings["model"] == "Linear"
    assert settings["optimizer"].startswith(
        "SGD(lr=0.5, momentum=0.9, weight_decay=0.01, first of 2 groups), BlockwiseAdam(lr=0.001, "
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d\+00:00", settings["date"])
    assert training_settings(module, []).keys() == {"date", "model"}
