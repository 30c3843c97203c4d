"""See, while you train, which geometry your loss landscape has, and how far steps in it go.

Importing this package imports neither torch nor lightning; its names do, when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_linf.callbacks import EdgeMonitor as EdgeMonitor
    from lightning_linf.callbacks import (
        GradientHeterogeneityMonitor as GradientHeterogeneityMonitor,
    )
    from lightning_linf.callbacks import GradientNoiseMonitor as GradientNoiseMonitor
    from lightning_linf.callbacks import LinfSmoothnessMonitor as LinfSmoothnessMonitor
    from lightning_linf.callbacks import StepMonitor as StepMonitor
    from lightning_linf.callbacks import SwapOptimizer as SwapOptimizer
    from lightning_linf.partition import Partition as Partition
    from lightning_linf.probe import Landscape as Landscape
    from lightning_linf.probe import measure_edge as measure_edge
    from lightning_linf.probe import measure_geometry as measure_geometry
    from lightning_linf.probe import probe_memory as probe_memory
    from lightning_linf.recorder import GeometryRecorder as GeometryRecorder
    from lightning_linf.reparam import Permutation as Permutation
    from lightning_linf.reparam import Rotation as Rotation
    from lightning_linf.reparam import Scaling as Scaling
    from lightning_linf.report import EdgeReport as EdgeReport
    from lightning_linf.report import GeometryReport as GeometryReport
    from lightning_linf.report import StepLineReport as StepLineReport
    from lightning_linf.swap import Geometry as Geometry
    from lightning_linf.swap import GeometryMixin as GeometryMixin

_HOMES = {
    "EdgeMonitor": "lightning_linf.callbacks",
    "EdgeReport": "lightning_linf.report",
    "Geometry": "lightning_linf.swap",
    "GeometryMixin": "lightning_linf.swap",
    "GeometryRecorder": "lightning_linf.recorder",
    "GeometryReport": "lightning_linf.report",
    "GradientHeterogeneityMonitor": "lightning_linf.callbacks",
    "GradientNoiseMonitor": "lightning_linf.callbacks",
    "LinfSmoothnessMonitor": "lightning_linf.callbacks",
    "Landscape": "lightning_linf.probe",
    "Partition": "lightning_linf.partition",
    "Permutation": "lightning_linf.reparam",
    "Rotation": "lightning_linf.reparam",
    "Scaling": "lightning_linf.reparam",
    "StepLineReport": "lightning_linf.report",
    "StepMonitor": "lightning_linf.callbacks",
    "SwapOptimizer": "lightning_linf.callbacks",
    "measure_edge": "lightning_linf.probe",
    "measure_geometry": "lightning_linf.probe",
    "probe_memory": "lightning_linf.probe",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
