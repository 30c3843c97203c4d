"""A live module as a pure function of its parameters, and what is measured on it."""

from lightning_linf.probe.errors import ProbeError as ProbeError
from lightning_linf.probe.landscape import Landscape as Landscape
from lightning_linf.probe.smoothness import Smoothness as Smoothness
from lightning_linf.probe.smoothness import measure_smoothness as measure_smoothness
