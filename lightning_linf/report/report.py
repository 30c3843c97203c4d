"""Everything that one measurement of a loss landscape found, and what follows from it."""

import json
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

from lightning_linf.extras import needing
from lightning_linf.report import encoding, files
from lightning_linf.report.frame import Rows, columns_by
from lightning_linf.report.markup import in_notebook
from lightning_linf.report.measurement import Measurement
from lightning_linf.report.shares import shares_sentence
from lightning_linf.report.terminal import ReportView
from lightning_linf.report.text import ReportText, describe
from lightning_linf.report.verdict import Status, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_SCHEMA = 1
# In the JSON for its readers, and not read back; "advice" is of earlier versions.
_COMPUTED = (
    *("schema", "advantage", "decrease", "step_advantage", "verdict", "verdict_status", "shares"),
    "advice",
)
_TEXT_WIDTH = 100


class GeometryReport(Measurement):
    """The geometry of a loss landscape at one point, as :func:`measure_geometry` found it.

    ``print(report)`` shows it. The dicts by partition have the same keys, "coordinate" (Adam) and
    "global" (SGD) always among them; those of what was not measured may have fewer, and those of
    steps have "spectral" (Muon), too, where it was asked for.

    Raises:
        ValueError: If ``smoothness`` lacks one of the two, or ``dual_norm`` has other keys.

    Source:
        Xie, Mohamadi & Li, arXiv:2410.08198. The decrease ``dual_Phi(g)^2 / (2 N(Phi))`` of
        steepest descent in norm_Phi: Balles, Pedregosa & Le Roux, arXiv:2002.08056.
    """

    @property
    def verdict(self) -> str:
        """Does this point favour Adam's geometry over SGD's? In words, with what that rests on."""
        return judge(self).sentence

    @property
    def verdict_status(self) -> Status:
        """The verdict in one or two words; :class:`~lightning_linf.report.Verdict` lists them."""
        return judge(self).status

    def to_dict(self) -> dict[str, Any]:
        """Turn into plain JSON types; inf and NaN become strings.

        What follows from the measured numbers is included, for readers in other languages: the
        advantages, the decreases, the verdict with its status, and the shares of Adam's decrease
        in one step.
        """
        computed = {
            "advantage": self.advantage,
            "decrease": self.decrease,
            "step_advantage": self.step_advantage,
            "verdict": self.verdict,
            "verdict_status": self.verdict_status,
            "shares": shares_sentence(self),
        }
        return {"schema": _SCHEMA, **encoding.encode(self), **encoding.encode(computed)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "GeometryReport":
        """Undo :meth:`to_dict`.

        Raises:
            ValueError: If ``data`` has another schema, missing or unknown keys, or wrong types.
        """
        if not isinstance(data, dict):
            raise ValueError(
                f"GeometryReport: expected `data` to be a dict, got {type(data).__name__}. "
                "Pass what to_dict made."
            )
        if data.get("schema") != _SCHEMA:
            raise ValueError(
                f"GeometryReport: expected `schema` to be {_SCHEMA}, got {data.get('schema')!r}. "
                "Read it with the version of lightning_linf that wrote it."
            )
        measured = {key: value for key, value in data.items() if key not in _COMPUTED}
        report: GeometryReport = encoding.decode(cls, measured, cls.__name__)
        return report

    def to_json(self) -> str:
        """Write as strict JSON text; floats read back exactly."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "GeometryReport":
        """Undo :meth:`to_json`.

        Raises:
            ValueError: If ``text`` is not JSON, and as :meth:`from_dict` does.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"GeometryReport: expected `text` to be JSON, got {text[:40]!r} ({error}). "
                "For a file, use GeometryReport.load(path)."
            ) from error
        return cls.from_dict(data)

    def save(self, path: str | Path) -> None:
        """Write as JSON to a file, which holds its old content until all of the new is there.

        Missing folders are made. A link stays, and the file it points to is written.

        Raises:
            ValueError: If ``path`` is a folder, a device, a pipe or a socket, or write-protected.
        """
        files.write_atomically(Path(path), self.to_json(), "GeometryReport.save: expected `path`")

    @classmethod
    def load(cls, path: str | Path) -> "GeometryReport":
        """Read what :meth:`save` wrote; raises as :meth:`from_json` does."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def to_pandas(self, rows: Rows = "partition") -> "DataFrame":
        """Give the numbers as a table of pandas, which needs to be installed.

        Args:
            rows: "partition", from many blocks to few: the numbers that ``print`` shows, with what
                is of the Hessian over d. Or "parameter", for each parameter tensor.

        Raises:
            ValueError: If ``rows`` is anything else.
            ModuleNotFoundError: If pandas is not installed.
        """
        with needing("notebook", "GeometryReport.to_pandas"):
            from pandas import DataFrame, Index

        index, columns = columns_by(self, rows)
        return DataFrame(columns, index=Index(index, name=rows))

    def plot(self) -> "Figure":
        """Draw the brackets and advantages of all partitions; needs matplotlib.

        A notebook shows the figure, and ``report.plot().savefig("report.svg")`` writes it.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        with needing("figures", "GeometryReport.plot"):
            from lightning_linf.report.plot import draw

        return draw(self)

    def _repr_html_(self) -> str:
        return in_notebook(describe(self))

    def __rich__(self) -> RenderableType:
        return ReportView(describe(self))

    def __str__(self) -> str:
        file = StringIO()
        # Otherwise, in a notebook, rich would display and not write.
        console = Console(file=file, width=_TEXT_WIDTH, color_system=None, force_jupyter=False)
        console.print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    def __repr__(self) -> str:
        return (
            f"GeometryReport(num_params={self.num_params}, loss={self.loss:.6g}, "
            f"partitions={list(self.smoothness)}, num_hvps={self.num_hvps})"
        )


def text_of(data: Any) -> ReportText:
    """Put into words what :meth:`GeometryReport.to_dict` made and a file has kept.

    Raises:
        ValueError: If the file is damaged: it is no report, or has numbers that none can have.
    """
    try:
        return describe(GeometryReport.from_dict(data))
    except (ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"GeometryReport: expected numbers of a measurement, got {error}."
        ) from error
