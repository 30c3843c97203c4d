import io

from rich.console import Console
from support.comparisons import rates, record_of

from comparison import tables, variants


def test_the_comparison_fits_80_columns_and_tells_best_rates_at_an_end():
    def text(results):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(tables.comparison_table(results, 250))
        return console.export_text()

    results = {variant: rates(5.0, 4.75, None) for variant in variants.FEW}
    results[variants.FEW[2]] = rates(None, None, None)
    table = text(results)
    assert "*" not in table
    assert "…" not in table
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert "adam coordinate, rotated 2 4.750 5.250 1: 5.000 0.250" in lines
    assert "3: diverged" in lines
    assert "blockwise_adam tensor 1 diverged diverged 2: diverged 0.250" in lines
    table = text({variants.ADAM: rates(4.75, 5.0, 5.25)})
    assert "1* 4.750" in " ".join(table.split())
    assert "* an end of the rates tried" in table


def test_the_seeds_table_fits_80_columns():
    everything = [(v, 0.1, (1.0, 1.25), (1234.5, 0.012), ()) for v in variants.ALL]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables.seeds_table(record_of(*everything)))
    text = console.export_text()
    assert "…" not in text
    assert "adam coordinate, rotated tensor 1.125 ±0.177 617" in " ".join(text.split())


def test_the_cells_of_the_page_are_paired_by_seed_and_say_what_is_an_end():
    entries = [
        (variants.ADAM, 0.1, (1.0, 2.0), (1.0, 1.0), ()),
        (variants.ROTATED_ADAM, 0.2, (1.5, 2.5), (1.0, 1.0), ()),
        (variants.ADASGD, 0.3, (1.0, 3.0), (1.0, 1.0), ()),
        (variants.SGD, 0.4, (1.0, None), (1.0, 1.0), ()),
    ]
    rows = tables.seeds_rows(record_of(*entries, ends=(variants.ADASGD,)))
    assert [row[2:7] for row in rows] == [
        ["0.1", "1.500 ±0.707", "-", "1.500", "25%"],
        ["0.2", "2.000 ±0.707", "+0.500 (+0.500 to +0.500)", "2.000", "25%"],
        ["0.3 *", "2.000 ±1.414", "-", "2.000", "25%"],
        ["0.4", "1/2 diverged", "-", "1/2 diverged", "25%"],
    ]
