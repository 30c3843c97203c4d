"""SGD with momentum and one adaptive learning rate for all parameters."""

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_linf.optim.blockwise.blockwise_adam import BlockwiseAdam


class AdaSGD(BlockwiseAdam):
    r"""Adam with a single second moment: the mean of all squared gradients of the model.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) \, \|g\|_2^2 / d \\
        \theta &\leftarrow (1 - \eta \lambda) \theta - \eta \, \hat m / (\sqrt{\hat v} + \epsilon)

    where ``v`` is one number and ``d`` the number of parameters. It steps in the direction of SGD
    with momentum, by a length like that of Adam. So where the two optimizers train differently,
    Adam's learning rate for each coordinate is the reason. It is :class:`BlockwiseAdam` with
    ``partition="global"``, whose documentation has the details.

    Args:
        params: Parameters, pairs of name and parameter, or parameter groups of either. All groups
            together have one second moment.
        lr: Learning rate; may be a tensor of shape ().
        betas: Decay of the mean gradient and of the mean square.
        eps: Added to the root of the mean square.
        weight_decay: Decoupled weight decay, as in AdamW.
        eps_inside: Add ``eps`` to the mean square, not to its root.
        maximize: Maximize the objective instead of minimizing it.
        foreach: False: update tensor by tensor, as the formulas are written. Default: the fastest
            form that there is for the device.
        capturable: Keep the counts of steps on the parameters' device, for CUDA graphs.

    Raises:
        ValueError: As :class:`BlockwiseAdam`.

    Source:
        Wang & Wiens, AdaSGD: Bridging the gap between SGD and Adam, arXiv:2006.16541; blockwise
        Adam with one block in Xie, Mohamadi & Li, arXiv:2410.08198. Neither paper has weight decay;
        here it is AdamW's.

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
