"""What goes wrong while probing."""


class ProbeError(RuntimeError):
    """A loss landscape could not be measured; the module and the training are as they were."""


class ProbeMemoryError(ProbeError):
    """A rank has too little memory for a probe; raised on all of them."""


class RefusedLossError(ProbeError):
    """A loss is no function or its products are wrong, and will be: what it is, not where."""


class RestoreError(RuntimeError):
    """A module could not be put back as it was: training on would be another training."""


class RankLostError(RuntimeError):
    """A collective failed, so ranks do no longer meet in the same ones: the training must end."""
