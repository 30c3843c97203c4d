"""Modules with parameters whose rows no layer's type tells."""

import torch
from torch import nn


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, 3, 4))
        self.scale = nn.Parameter(torch.zeros(()))


class LowRank(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.down = nn.Parameter(torch.zeros(1, 3))


def tied(first, second):
    second.weight = first.weight
    return nn.ModuleList([first, second])
