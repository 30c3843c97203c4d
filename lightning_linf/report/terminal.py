"""A report's text in a terminal of 80 columns or more."""

from collections.abc import Sequence

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lightning_linf.report.text import ReportText

# One line below the head, in ASCII: a redirected stdout may know no box characters.
_HEAD_LINE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


class ReportView:
    """What ``rich.print`` shows of a report: one table, or two where one would be too wide."""

    def __init__(self, text: ReportText) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text
        # Text and not str throughout: names of partitions may look like markup.
        yield from (Text(line, style="bold") for line in text.header)
        yield Text()
        whole = self._table(range(len(text.headings)))
        if Measurement.get(console, options.update(max_width=10_000), whole).maximum <= (
            options.max_width
        ):
            yield whole
        else:
            split = 1 + text.num_smoothness
            yield self._table(range(split))
            yield Text()
            yield self._table([0, *range(split, len(text.headings))])
        yield Text()
        yield from (Text(line, style="dim") for line in text.legend)
        yield Text()
        yield Text(text.verdict)
        yield Text(text.shares)

    def _table(self, columns: Sequence[int]) -> Table:
        table = Table(box=_HEAD_LINE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for i in columns:  # the first holds names, the others numbers
            table.add_column(Text(self.text.headings[i]), justify="right" if i else "left")
        for row in self.text.rows:
            table.add_row(*(Text(row[i]) for i in columns))
        return table
