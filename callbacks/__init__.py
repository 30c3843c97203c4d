"""Lightning callbacks: when to measure, and what to log."""

from lightning_linf.callbacks.edge import EdgeMonitor as EdgeMonitor
from lightning_linf.callbacks.heterogeneity import (
    GradientHeterogeneityMonitor as GradientHeterogeneityMonitor,
)
from lightning_linf.callbacks.monitor import GeometryMonitor as GeometryMonitor
from lightning_linf.callbacks.noise import GradientNoiseMonitor as GradientNoiseMonitor
from lightning_linf.callbacks.smoothness import LinfSmoothnessMonitor as LinfSmoothnessMonitor
from lightning_linf.callbacks.step import StepMonitor as StepMonitor
from lightning_linf.callbacks.swap_optimizer import SwapOptimizer as SwapOptimizer
