"""At which curvature a step with momentum begins to diverge."""


def stability_threshold(
    momentum: float = 0.0, *, dampening: float = 0.0, nesterov: bool = False, keep: float = 1.0
) -> float:
    r"""Compute the largest rate times curvature at which descent with momentum does not diverge.

    On a quadratic of curvature h, with the rate :math:`\eta`, a step is linear in the parameter and
    its momentum, in torch's form

    .. math::
        v' = \mu v + (1 - \tau) h \theta, \qquad \theta' = k \theta - \eta u

    with u = v', or :math:`u = h \theta + \mu v'` with Nesterov's momentum. Its matrix T, of 2 rows,
    is stable while :math:`|\mathrm{tr}\, T| < 1 + \det T < 2`. As :math:`\eta h` grows, the first
    of these to fail is :math:`-\mathrm{tr}\, T < 1 + \det T`: an eigenvalue passes -1, and the
    parameter swings from side to side, farther each time. The threshold is where this happens,

    .. math:: \frac{(1 + \mu)(1 + k)}{1 - \tau} \quad \text{or, with Nesterov's momentum,} \quad
        \frac{(1 + \mu)(1 + k)}{1 + \mu + \mu (1 - \tau)}.

    That is 2 without momentum, 2 + 2 mu with it, and with Adam's running mean, :math:`\tau = \mu =
    \beta_1`, it is :math:`(2 + 2 \beta_1) / (1 - \beta_1)`: 38 for 0.9.

    Args:
        momentum: mu, in [0, 1): what is kept of v.
        dampening: tau: v takes 1 - tau of the gradient. For a running mean it is ``momentum``.
        nesterov: Step along the gradient plus mu times the momentum.
        keep: k: what decoupled weight decay leaves of the parameter, 1 - lr * weight_decay.

    Returns:
        The threshold, a pure number.

    Raises:
        ValueError: If ``momentum`` is not in [0, 1) or ``dampening`` not below 1.

    Source:
        Cohen et al., Adaptive Gradient Methods at the Edge of Stability, arXiv:2207.14484, where
        there is no weight decay; here it moves the threshold from 2 to 2 - lr * weight_decay.

    Example:
        >>> stability_threshold(), stability_threshold(0.5), stability_threshold(0.5, dampening=0.5)
        (2.0, 3.0, 6.0)
    """
    if not (0 <= momentum < 1 and dampening < 1):
        raise ValueError(
            "stability_threshold: expected `momentum` in [0, 1) and `dampening` < 1, got "
            f"{momentum} and {dampening}. No rate is stable with others."
        )
    taken = 1 - dampening
    reach = 1 + momentum + momentum * taken if nesterov else taken
    return (1 + momentum) * (1 + keep) / reach
