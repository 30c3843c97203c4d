"""Worlds in which it is known what predicts the order."""

import numpy as np
import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
from support.recipes import RECIPES

from prediction import advice, findings
from prediction.conclusions import conclusions
from prediction.contenders import CONTENDERS
from prediction.findings import Ended, score
from prediction.training import KEEP

ON_ALL_TASKS = [c for c in CONTENDERS if c.reads != "spectral"]
NAMES = tuple(c.name for c in ON_ALL_TASKS)
READS = tuple(c.reads for c in ON_ALL_TASKS)
GEOMETRIES = ("coordinate", "row", "tensor", "coordinate rotated", "global")


def world(num_tasks=12, seeds=3, truth="fickle"):
    """Make tasks in which the quantity "true" gives the losses; the others know nothing or little.

    In a fickle world the order of geometries is another on each task; in a fine one, finer is
    better. "half" is true on the choosing half alone, and "small" is the inverse of "true".
    """
    draw = np.random.default_rng(0)
    made = []
    for i in range(num_tasks):
        half = "choose" if i % 2 == 0 else "test"
        order = np.arange(5.0) if truth == "fine" else draw.permutation(5).astype(float)
        losses = np.array([[1 + order[GEOMETRIES.index(read)] for read in READS]] * seeds)
        values = {
            "true": {name: [1 / (1 + order[j])] * seeds for j, name in enumerate(GEOMETRIES)},
            "small": {name: [1 + order[j]] * seeds for j, name in enumerate(GEOMETRIES)},
            "noise": {name: list(draw.random(seeds)) for name in GEOMETRIES},
            "half": {
                name: [1 / (1 + order[j])] * seeds if half == "choose" else list(draw.random(seeds))
                for j, name in enumerate(GEOMETRIES)
            },
            "partial": {
                name: [1 / (1 + order[j])] * seeds for j, name in enumerate(GEOMETRIES[:3])
            },
        }
        larger = {name: name != "small" for name in values}
        made.append(Ended(f"task{i}", half, NAMES, READS, losses, values, larger, ("row",) * seeds))
    return made


def test_a_quantity_that_is_the_truth_has_rho_1_and_one_that_knows_nothing_has_none():
    ended = world()
    scores = {name: score(p, ended) for name, p in findings.predictions(ended).items()}
    for name in (
        "true",
        "small",
        "partial",
        "order of the other seeds",
        "best that the ties allow",
    ):
        assert scores[name].rho == pytest.approx(1.0)
        assert scores[name].p == pytest.approx(1e-5, rel=0.1)  # none of 100,000
    assert abs(scores["noise"].rho) < 0.3
    assert scores["noise"].p > 0.05
    assert abs(scores["finer is better"].rho) < 0.3
    assert scores["true"].p_above_free == pytest.approx(1 / 2**12)
    assert (scores["finer is better"].lead, scores["finer is better"].p_above_free) == (0.0, 1.0)


def test_where_finer_is_better_holds_nothing_beats_it():
    ended = world(truth="fine")
    found = score(findings.predictions(ended)["true"], ended)
    assert found.free_rho == pytest.approx(1.0)
    assert (found.lead, found.p_above_free) == pytest.approx((0.0, 1.0))
    text = "\n".join(conclusions(ended))
    assert 'orders the optimizers no better than "finer is better"' in text


def test_what_is_measured_of_some_geometries_is_compared_among_them():
    ended = world(truth="fine")
    found = score(findings.predictions(ended)["partial"], ended)
    assert list(found.by_task) == list(found.free) == [each.task for each in ended]
    assert ended[0].predicted("partial")[0, NAMES.index("AdaSGD")] != 0  # NaN, not a number
    assert np.isnan(ended[0].predicted("partial")[:, NAMES.index("rotated Adam")]).all()
    short = [
        Ended("task", "test", NAMES[2:4], READS[2:4], ended[0].losses[:, 2:4], ended[0].values,
              ended[0].larger_is_better)
    ]  # fmt: skip
    assert score(findings.predictions(ended)["true"], short) is None  # two are no order


def test_the_rule_is_chosen_on_one_half_and_judged_on_the_other():
    ended = [
        Ended(e.task, e.half, e.contenders, e.reads, e.losses,
              {k: v for k, v in e.values.items() if k in ("noise", "half")}, e.larger_is_better)
        for e in world()
    ]  # fmt: skip
    assert findings.choose(ended) == "half"
    text = "\n".join(conclusions(ended))
    assert "*half* has the largest lead" in text
    assert "rho 1.00 against" in text
    assert "The goal is missed: rho at least 0.8" in text
    for each in ended:  # the testing half has no say in the choice
        if each.half == "test":
            each.losses[:] = -each.losses
    assert findings.choose(ended) == "half"


def test_the_conclusion_follows_from_the_numbers():
    text = "\n".join(conclusions(world()))
    assert "*true* has the largest lead" in text
    assert "On the testing half its rho is 1.00, p = 1e-05" in text
    assert 'better than "finer is better", by the margin set before.' in text
    assert "The goal is reached." in text
    assert "What may not be concluded: anything of larger networks" in text
    assert list(conclusions(world()[::2])) == [
        "Nothing yet: a half of the tasks has no task that is finished."
    ]


def test_a_small_sample_of_leads_is_not_called_a_lead():
    few = [each for each in world(num_tasks=6) if each.task != "task0"]  # 3 tasks: p >= 1/8
    text = "\n".join(conclusions(few))
    assert "is not shown to order the optimizers better" in text


def test_the_mean_order_of_some_tasks_predicts_on_others():
    ended = world(truth="fine")
    predicted = findings.order_of(ended[:6])(ended[7])
    assert findings.spearman(predicted, ended[7].losses).mean() == pytest.approx(1.0)


def test_the_order_of_the_other_seeds_leaves_out_its_own():
    losses = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    one = Ended("t", "test", NAMES[:3], READS[:3], losses, {}, {})
    rhos = findings.spearman(findings.other_seeds(one), losses)
    assert rhos == pytest.approx([0.0, 0.0, -1.0])


def lead(losses):
    values = {"true": {"coordinate": [1.0], "row": [0.95], "tensor": [0.7], "global": [0.2]}}
    names = ("Adam", "row", "tensor", "AdaSGD")
    reads = ("coordinate", "row", "tensor", "global")
    return Ended("t", "test", names, reads, np.array([losses]), values, {"true": True}, ("row",))


@pytest.mark.parametrize(
    ("losses", "partition", "kept"),
    [
        ([1.0, 1.05, 1.2, 2.0], "row", True),  # 95 % of a lead of 1
        ([1.0, 1.05, 1.2, 2.0], "tensor", False),  # 80 %
        ([1.0, 1.05, 1.2, 2.0], "global", False),
        ([2.0, 1.9, 2.5, 1.0], "row", True),  # Adam is behind by 1, row by 0.9
        ([2.0, 1.95, 2.5, 1.0], "row", False),
        ([2.0, 1.9, 2.5, 1.0], "global", True),
        ([1.0, np.inf, 1.2, 2.0], "row", False),
        ([1.0, 1.1, 1.2, np.inf], "row", None),  # the lead is not known
    ],
)
def test_a_lead_is_kept_or_not(losses, partition, kept):
    assert advice.kept_lead(lead(losses), 0, partition) is kept
    assert KEEP == 0.9


def test_the_coarsest_partition_above_the_threshold_is_advised():
    one = lead([1.0, 1.05, 1.2, 2.0])
    given = {t: advice.by_threshold("true", t)(one, 0) for t in (0.1, 0.5, 0.9, 1.0)}
    assert given == {0.1: "global", 0.5: "tensor", 0.9: "row", 1.0: "coordinate"}
    small = Ended("t", "test", one.contenders, one.reads, one.losses,
                  {"small": {k: [1 / v[0]] for k, v in one.values["true"].items()}},
                  {"small": False})  # fmt: skip
    assert advice.by_threshold("small", 0.5)(small, 0) == "tensor"
    assert advice.kept_by(advice.by_threshold("true", 0.5), [one]) == advice.Kept(1, 1, 0, 0)
    assert advice.kept_by(advice.by_threshold("true", 0.9), [one]) == advice.Kept(1, 1, 1, 0)
    assert advice.kept_by(advice.always("coordinate"), [one]) == advice.Kept(1, 0, 0, 0)
    assert advice.kept_by(advice.tool, [one]).num_kept == 1
    assert advice.choose_threshold("true", [one]) == 0.8
    assert advice.choose_threshold("true", [lead([1.0, 1.5, 1.5, 2.0])]) is None


def test_recipes_are_beside_the_tests():
    assert (RECIPES / "predict.py").is_file()
