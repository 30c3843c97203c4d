"""Any optimizer, run in other coordinates ``phi`` of the weights ``theta = A phi``.

The step is in :meth:`Reparameterized.step <.reparameterized.Reparameterized.step>`; what it reads
and writes, weights and gradients, in :class:`~.mapped_tensors.MappedTensors`.
"""

from lightning_linf.optim.reparameterized.reparameterized import Reparameterized as Reparameterized
