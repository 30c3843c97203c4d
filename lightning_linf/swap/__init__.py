"""Change the geometry of a training: which optimizer, in which coordinates, from which step on."""

from lightning_linf.swap.carry import carry_state as carry_state
from lightning_linf.swap.geometry import Geometry as Geometry
from lightning_linf.swap.mixin import GeometryMixin as GeometryMixin
from lightning_linf.swap.trainer import swap_optimizers as swap_optimizers
