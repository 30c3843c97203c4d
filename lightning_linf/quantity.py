"""What is known of a quantity that is logged or recorded; ``quantities.py`` lists all of them."""

from dataclasses import dataclass

PREFIX = "geometry/"


@dataclass(frozen=True)
class Monitor:
    """A callback that measures.

    Args:
        name: Its class.
        table: Name of the table that it records, with one row for each parameter tensor.
        per_optimizer: With several optimizers, its tags end in "/optimizer0", "/optimizer1", ...
    """

    name: str
    table: str
    per_optimizer: bool = False

    @property
    def record_tag(self) -> str:
        """The tag of its table."""
        return PREFIX + self.table


@dataclass(frozen=True)
class Quantity:
    """One thing that is measured.

    Args:
        name: The last part of its tag, and its key in ``history`` and in records.
        meaning: What it says, in one sentence for a reader who sees it for the first time.
        monitors: Who measures it; charts of the first one show it.
        unit: "" for a pure number.
        charts: Titles of the charts in TensorBoard's custom scalars that show it.
    """

    name: str
    meaning: str
    monitors: tuple[Monitor, ...]
    unit: str = ""
    charts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scalar(Quantity):
    """A number of the whole model at each measured step."""

    @property
    def tag(self) -> str:
        """What it is logged under."""
        return PREFIX + self.name


@dataclass(frozen=True)
class PartitionScalar(Quantity):
    """A number of each partition at each measured step."""

    def of(self, partition: str) -> str:
        """Make the tag under which it is logged for one partition."""
        return f"{PREFIX}{self.name}/{partition}"


@dataclass(frozen=True, kw_only=True)
class Column(Quantity):
    """A number, or several quantiles, of each parameter tensor, in a table.

    Args:
        label: What it is called in the panels.
        levels: Of the quantiles, where there are several numbers.
    """

    label: str
    levels: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScalarAndColumn(Column, Scalar):
    """A number of the whole model, and in a table also of each parameter tensor."""


@dataclass(frozen=True)
class Histogram(Scalar):
    """Counts of the entries of the whole gradient; event files show them under the tag."""
