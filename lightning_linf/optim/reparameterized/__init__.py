"""Any optimizer, run in other coordinates ``phi`` of the weights ``theta = A phi``.

The step is in :meth:`Reparameterized.step`. The weights and gradients that it reads and writes are
in :class:`~lightning_linf.optim.reparameterized.mapped_tensors.MappedTensors`.
"""

from lightning_linf.optim.reparameterized.reparameterized import Reparameterized as Reparameterized
