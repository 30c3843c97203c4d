"""torchmetrics over the functional sums: the same numbers from a stream, a batch, or many ranks."""

from lightning_linf.metrics.heterogeneity import GradientHeterogeneity as GradientHeterogeneity
from lightning_linf.metrics.one_one_norm import OneOneNorm as OneOneNorm
