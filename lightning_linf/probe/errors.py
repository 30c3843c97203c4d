"""What goes wrong while probing."""


class ProbeError(RuntimeError):
    """A loss landscape could not be measured; the module and the training are as they were."""
