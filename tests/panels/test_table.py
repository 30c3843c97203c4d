"""Tables of records, and what of them the panels read."""

import numpy as np
import pytest

from lightning_linf.panels import payload
from lightning_linf.panels.table import Metadata, lay_out, stack, thin
from lightning_linf.record import SCHEMA_VERSION, Record, SchemaError


def entry(step, values, **changes):
    return Record(step, "geometry/a", {}, ("a", "b"), {"density": values}, **changes)


def test_long_runs_are_thinned_to_first_last_and_between():
    metadata = lay_out(entry(0, [1.0, 2.0]))[1]
    rows = [(step, np.full((2, 1), step, np.float32)) for step in range(10_000)]
    table, note = stack(metadata, rows)
    assert note is None
    shown = payload.layers(table.thinned(payload.MAX_STEPS), "density")
    assert shown["num_steps"] == 10_000
    assert len(shown["steps"]) == len(set(shown["steps"])) == payload.MAX_STEPS
    assert (shown["steps"][0], shown["steps"][-1]) == (1, 10_000)  # counted from 1
    assert [row[0] + 1 for row in shown["values"]] == shown["steps"]
    gaps = np.diff(shown["steps"])
    assert gaps.max() - gaps.min() <= 1
    curves = payload.curves({"x": [(step, 1.0) for step in range(2000)]})
    assert (len(curves["x"]["steps"]), curves["x"]["num_steps"]) == (500, 2000)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 499, 500, 501, 1000])
def test_thinning_keeps_all_or_exactly_as_many_as_asked(num_steps):
    kept = thin(num_steps, 500)
    assert len(kept) == min(num_steps, 500)
    assert kept == sorted(set(kept))


def test_of_two_records_of_a_step_the_later_one_counts():
    metadata = lay_out(entry(0, [1.0, 2.0]))[1]
    rows = [(5, np.float32([[1], [1]])), (5, np.float32([[2], [2]]))]
    table, _ = stack(metadata, rows)
    assert table.steps == [5]
    assert table.values.tolist() == [[[2.0], [2.0]]]


def test_what_a_training_logged_before_it_went_back_does_not_count():
    steps = [0, 2, 4, 6, 8, 3, 5]  # it was resumed at step 3
    nan = float("nan")
    curve = payload.curves({"loss": [(step, nan if step > 5 else 1.0) for step in steps]})["loss"]
    assert curve["steps"] == [1, 3, 4, 6]
    assert curve["num_steps"] == 4
    assert curve["not_finite_since"] is None
    metadata = lay_out(entry(0, [1.0, 2.0]))[1]
    table, _ = stack(metadata, [(step, np.full((2, 1), step, np.float32)) for step in steps])
    assert table.steps == table.values[:, 0, 0].tolist() == [0, 2, 3, 5]


def test_the_row_of_all_parameters_lacks_only_what_was_not_measured():
    one = entry(0, [1.0, 2.0], whole={"gini": 3.0})
    array, metadata = lay_out(one)
    assert metadata.whole
    np.testing.assert_array_equal(array, np.float32([[1.0], [2.0], [np.nan]]))


def test_metadata_of_an_unknown_kind_are_refused():
    with pytest.raises(SchemaError, match=f"schema 9 is newer than {SCHEMA_VERSION}"):
        Metadata.from_event(b'{"schema": 9}')
    with pytest.raises(ValueError, match="broken metadata"):
        Metadata.from_event(b"[1, 2]")
