"""Optimizers whose geometry is chosen: one second moment per block of a partition, or signs."""

from lightning_linf.optim.adasgd import AdaSGD as AdaSGD
from lightning_linf.optim.blockwise import BlockwiseAdam as BlockwiseAdam
from lightning_linf.optim.reparameterized import Reparameterized as Reparameterized
from lightning_linf.optim.signum import Signum as Signum
