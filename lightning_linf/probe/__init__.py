"""A live module as a pure function of its parameters, and what is measured on it."""

from lightning_linf.probe.errors import ProbeError as ProbeError
from lightning_linf.probe.geometry import measure_geometry as measure_geometry
from lightning_linf.probe.geometry import measure_landscape as measure_landscape
from lightning_linf.probe.landscape import Landscape as Landscape
