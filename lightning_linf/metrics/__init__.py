"""Estimates as ``torchmetrics.Metric`` objects, for a training loop of your own.

The callbacks of this package do not need them: they see a whole gradient or a whole landscape at
once. Use a metric where the data come in parts that you hold one at a time: gradients of shards or
of several batches, Hessian-vector products of your own, or any of these on several ranks, whose
states torchmetrics adds up. The numbers are those of the functions in
:mod:`lightning_linf.functional` on all data together.
"""

from lightning_linf.metrics.heterogeneity import GradientHeterogeneity as GradientHeterogeneity
from lightning_linf.metrics.one_one_norm import OneOneNorm as OneOneNorm
