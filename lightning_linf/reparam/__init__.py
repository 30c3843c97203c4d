"""Changes of coordinates theta = A phi, in which an optimizer or a landscape is seen."""

from lightning_linf.reparam.bound import BoundReparameterization as BoundReparameterization
from lightning_linf.reparam.permutation import Permutation as Permutation
from lightning_linf.reparam.reparameterization import Composition as Composition
from lightning_linf.reparam.reparameterization import Reparameterization as Reparameterization
from lightning_linf.reparam.rotation import Rotation as Rotation
from lightning_linf.reparam.scaling import Scaling as Scaling
