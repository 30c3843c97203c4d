"""Two reports side by side: what they tell apart."""

from support.reports import D, block, make_report, plain, trained_gpt2


def test_comparison_tells_apart_what_does_not_overlap():
    first = trained_gpt2()
    dual_norm = first.dual_norm | {"coordinate": 2 * first.dual_norm["coordinate"]}
    tensor = block(28, 40 * D, 50 * D, 60 * D)
    second = trained_gpt2(
        loss=0.75,
        one_one_norm=2 * 25.2 * D,
        lambda_max=35.9,
        dual_norm=dual_norm,
        smoothness=first.smoothness | {"tensor": tensor},
    )
    for width in (80, 100):
        text = plain(first.compare(second, ("step 10", "step 900")), width)
        rows = {line[:24].split("  ")[0].strip(): line.split() for line in text.splitlines()}
        assert rows["loss"][-2:] == ["0.5", "-"]
        assert rows["lambda_max"][-2:] == ["1.01", "no"]
        assert rows["(1,1)-norm/d"][-2:] == ["2", "yes"]
        assert rows["N(coordinate)/d"][-2:] == ["1", "no"]
        assert rows["N(tensor)/d"][-2:] == ["1.77", "yes"]  # sqrt(40 50 / (24.9 25.5))
        assert rows["advantage of coordinate"][-2:] == ["4", "yes"]
        assert "advantage of global" not in rows
        assert "step 900 over step 10" in text
        assert "Not converged in step 10: row." in text
        assert "parameters differ" not in text


def test_one_one_norms_are_told_apart_beyond_two_standard_errors_of_their_difference():
    first = make_report()  # 0.75 +- 0.075 per parameter
    for factor, told in ((1.32, "no"), (1.34, "yes")):  # 2 sqrt(1 + f^2) / 10 = f - 1 at 1.333
        text = plain(first.compare(make_report(one_one_norm=6.0 * factor)), 100)
        (line,) = (line for line in text.splitlines() if line.startswith("(1,1)-norm"))
        assert line.split()[-1] == told


def test_comparison_is_of_common_partitions_and_says_when_sizes_differ():
    text = plain(make_report().compare(trained_gpt2(), ("a", "b")), 100)
    assert "N(tensor)/d" in text
    assert "N(row)/d" not in text
    assert "a has 8, b 370,944" in text
