"""Estimates as ``torchmetrics.Metric`` objects, for a training loop of your own.

The monitors do not need them. Use them where gradients or Hessian-vector products of your own come
in parts, one after the other or on several ranks: the result is that of the function in
:mod:`lightning_linf.functional` on all parts together.
"""

from lightning_linf.metrics.heterogeneity import GradientHeterogeneity as GradientHeterogeneity
from lightning_linf.metrics.one_one_norm import OneOneNorm as OneOneNorm
