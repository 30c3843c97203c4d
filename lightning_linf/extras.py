"""Packages that only some of this package needs, and that its extras install."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needing(extra: str, caller: str) -> Iterator[None]:
    """Import inside of it what ``extra`` installs: where a package is missing, the error says how.

    Args:
        extra: Name of the extra in pyproject.toml.
        caller: Public name that the message begins with.

    Raises:
        ModuleNotFoundError: If a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{caller}: expected the package {package!r}, got none. "
            f"Run: pip install 'lightning-linf[{extra}]'",
            name=error.name,
        ) from None
