"""Five optimizers: AdaSGD, Signum, BlockwiseAdam, MuonWithAdamW and, around any, Reparameterized.

Each is a class of its own: ``adasgd.py``, ``signum.py`` and ``muon.py``, and the folders
``blockwise/`` and ``reparameterized/``, whose module of the same name has the class. What they
share is how hyperparameters are checked (``hyperparameters.py``) and how a state is loaded
(``saved_state.py``).

When one optimizer replaces another during training (:mod:`lightning_linf.swap`), two class
attributes tell what has to be known of an optimizer; a class without them still works:

- ``decoupled_weight_decay``: True if weight decay shrinks the weights, as in AdamW, and is not
  added to the gradient, as in Adam and SGD. Default: False.
- ``carried_state``: the entries of a parameter's state that can be filled from another optimizer's:
  ``"exp_avg"``, a running mean of the gradient; ``"exp_avg_sq"``, a running mean of its square;
  and ``"step"``, the number of updates, if the running means start at 0 and are divided by
  ``1 - beta ** step``. Default: none.
"""

from lightning_linf.optim.adasgd import AdaSGD as AdaSGD
from lightning_linf.optim.blockwise import BlockwiseAdam as BlockwiseAdam
from lightning_linf.optim.muon import MuonWithAdamW as MuonWithAdamW
from lightning_linf.optim.reparameterized import Reparameterized as Reparameterized
from lightning_linf.optim.signum import Signum as Signum
