"""Adam with one second moment for each block of parameters.

The step starts in :meth:`BlockwiseAdam.step`. From there:
``parameter_blocks.py`` has found the block sets when the optimizer was made; ``step_inputs.py``
collects gradients and state of each; ``step.py`` computes the update.
"""

from lightning_linf.optim.blockwise.blockwise_adam import BlockwiseAdam as BlockwiseAdam
