from support.comparisons import record_of

from comparison import figures, variants


def test_the_figure_leaves_out_what_diverged(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    entries = [
        (variants.ADAM, 0.1, (1.0, 1.25), (1.0, 2.0), "tensor"),
        (variants.ROTATED_ADAM, 0.1, (None, 2.5), (5.0, 6.0), "coordinate"),
    ]
    figures.draw_comparison(record_of(*entries), tmp_path)
    entries[0] = (variants.ADAM, 0.1, (1.0, None), (1.0, 2.0), "tensor")
    figures.draw_comparison(record_of(*entries), tmp_path)
    points = [
        [[list(zip(*line.get_data(), strict=True)) for line in axes.lines] for axes in figure.axes]
        for figure in drawn
    ]
    assert points[0] == [
        [[(1.0, 1.0), (2.0, 1.25)], [(6.0, 2.5)]],
        [[(2.0, 1.0), (4.0, 1.25)], [(12.0, 2.5)]],
        [[(1.0, 1.0), (2.0, 1.25)], [(6.0, 2.5)]],
        [[(1.0, 1.0), (2.0, 1.25)], [(9.0, 2.5)]],  # at Adam's end, of the same seed
    ]
    assert points[1] == [
        [[(1.0, 1.0)], [(6.0, 2.5)]], [[(2.0, 1.0)], [(12.0, 2.5)]], [[(1.0, 1.0)], [(6.0, 2.5)]],
    ]  # fmt: skip
