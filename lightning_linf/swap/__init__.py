"""Change the geometry of a training: which optimizer, in which coordinates, from which step on.

``optimizer_names.py`` lists the optimizers that can be chosen by name, ``geometry.py`` makes one
of the optimizer that there is, ``carry.py`` gives it that one's state, and ``trainer.py`` puts it
into a running Trainer.
"""

from lightning_linf.swap.carry import carry_state as carry_state
from lightning_linf.swap.geometry import Geometry as Geometry
from lightning_linf.swap.mixin import GeometryMixin as GeometryMixin
from lightning_linf.swap.optimizer_names import OptimizerName as OptimizerName
from lightning_linf.swap.trainer import swap_optimizers as swap_optimizers
