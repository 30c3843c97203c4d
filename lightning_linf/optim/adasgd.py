"""SGD with momentum and one adaptive learning rate for all parameters."""

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_linf.optim.blockwise.blockwise_adam import BlockwiseAdam


class AdaSGD(BlockwiseAdam):
    r"""Adam with one second moment for all parameters: the mean of every squared gradient.

    ``BlockwiseAdam(..., partition="global")``: its direction is that of SGD with momentum, its
    scale that of Adam. What it and Adam do differently is due to the adaptivity by coordinate.

    Args:
        params: As for :class:`BlockwiseAdam`. All parameter groups are one block.
        lr: As there, and so are the following.
        betas: Decay of the mean gradient and of the mean square.
        eps: Added to the root of the mean square.
        weight_decay: Decoupled, as in AdamW.
        eps_inside: Add ``eps`` to the mean square instead.
        maximize: Ascend.
        foreach: Update many tensors with one call each.
        capturable: Keep counters on the parameters' device.

    Raises:
        ValueError: As :class:`BlockwiseAdam`.

    Source:
        Wang & Wiens, AdaSGD: Bridging the gap between SGD and Adam, arXiv:2006.16541, which calls
        it so; blockwise Adam with one block in Xie, Mohamadi & Li, arXiv:2410.08198. Decay is
        decoupled, as in AdamW; neither paper has any.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = AdaSGD([p], lr=0.1)
        >>> p.grad = torch.tensor([3.0, 4.0])  # root of the mean square: 5 / sqrt(2)
        >>> optimizer.step()
        >>> p.detach()
        tensor([0.9151, 0.8869])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_inside: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            partition="global",
            eps_inside=eps_inside,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
        )
