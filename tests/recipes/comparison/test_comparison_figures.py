from support.comparisons import record_of

from comparison import figures, variants


def drawn(monkeypatch, record):
    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    figures.draw_comparison(record, None)
    return [
        [[list(zip(*line.get_data(), strict=True)) for line in axes.lines] for axes in figure.axes]
        for figure in kept
    ]


def test_the_figure_shows_differences_within_a_seed(monkeypatch):
    record = record_of(
        (variants.ADAM, 0.1, (1.0, 1.25), (1.0, 2.0), (1.5,)),
        (variants.ROTATED_ADAM, 0.1, (2.0, 2.5), (5.0, 6.0), (3.0,)),
        (variants.ADASGD, 0.1, (2.0, 2.0), (5.0, 6.0), (3.0,)),
        ends=(variants.ADASGD,),  # left out
    )
    record["variants"][0]["shaken"].append({"train_loss": None})
    record["variants"][1]["shaken"].append({"train_loss": 1.0})
    ((by_optimizer, own, there),) = drawn(monkeypatch, record)
    assert by_optimizer == [
        [(0, 0.0), (0, 0.0)], [(0, 0.0)],
        [(1, 1.0), (1, 1.25)], [(1, 1.5)],
    ]  # fmt: skip
    assert own == [[(1.0, 0.0), (2.0, 0.0)], [(5.0, 1.0), (6.0, 1.25)]]
    assert there == [[(1.0, 0.0), (2.0, 0.0)], [(9.0, 1.0), (9.0, 1.25)]]  # at Adam's ends


def test_there_is_no_figure_without_adam(monkeypatch):
    entry = (variants.ADAM, 0.1, (1.0, None), (1.0, 2.0), ())
    assert drawn(monkeypatch, record_of(entry)) == []
