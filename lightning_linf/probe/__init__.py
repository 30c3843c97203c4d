"""A live module as a pure function of its parameters, and what is measured on it."""

from lightning_linf.errors import ProbeError as ProbeError
from lightning_linf.probe.edge import measure_edge as measure_edge
from lightning_linf.probe.geometry import measure_geometry as measure_geometry
from lightning_linf.probe.landscape import Landscape as Landscape
from lightning_linf.probe.measure import measure_landscape as measure_landscape
from lightning_linf.probe.memory import probe_memory as probe_memory
from lightning_linf.probe.memory_by_phase import ProbeMemory as ProbeMemory
