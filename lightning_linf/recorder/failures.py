"""An error of a measurement in words, for those who go on without it."""

import re


def kind_and_cause(error: Exception) -> tuple[str, str]:
    """Give what errors that differ in numbers alone have in common, and the whole text."""
    cause = f"{type(error).__name__}: {error}"
    return re.sub(r"[-+\d.e]+|inf|nan", "", cause), cause
