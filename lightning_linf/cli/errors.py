"""The error of the command that its user can put right."""


class UsageError(Exception):
    """A wrong command line, file or class; shown in one line, without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
