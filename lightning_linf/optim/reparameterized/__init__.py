"""Any torch optimizer in other coordinates, and how these follow the parameters."""

from lightning_linf.optim.reparameterized.reparameterized import Reparameterized as Reparameterized
