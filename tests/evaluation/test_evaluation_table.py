"""Rows of several repetitions: mean, spread and minimum of the right things, and as text."""

import pytest

from sct_jax.evaluation.table import format_table, summarize

EACH = [
    {"fid": 3.0, "kid": 0.02, "kid_standard_error": 0.004, "recall": 0.5},
    {"fid": 2.0, "kid": 0.04, "kid_standard_error": 0.006, "recall": 0.7},
    {"fid": 2.5, "kid": 0.03, "kid_standard_error": 0.005, "recall": 0.6},
]


def table(row, floor=None):
    return format_table({"results": [{"sampling_steps": 2, "evaluations": 2} | row], "floor": floor or {}}).splitlines()


def test_repetitions_have_mean_spread_and_minimum():
    row = summarize(EACH, minimum=True)
    assert row["fid"] == pytest.approx(2.5)
    assert row["fid_std"] == pytest.approx(0.5)
    assert row["minimum"] == {"fid": 2.0, "kid": 0.02}  # of recall more is better, and an error is no score
    assert row["kid_standard_error"] == pytest.approx(0.005)
    assert "kid_standard_error_std" not in row
    assert row["per_seed"] == EACH
    assert "minimum" not in summarize(EACH)


def test_the_text_shows_them():
    header, cells = table(summarize(EACH, minimum=True))
    assert header.split() == ["steps", "evaluations", "fid", "kid", "recall"]
    assert "2.5000 ± 0.5000, min 2.0000" in cells
    assert "0.6000 ± 0.1000" in cells
    assert "min 0.5" not in cells
    header, cells = table(summarize(EACH[:1]))
    assert cells.split() == ["2", "2", "3.0000", "0.02", "±", "0.004", "0.5000"]


def test_the_floor_is_the_last_row_where_there_is_one():
    *_, last = table(summarize(EACH[:1]), {"fid": 0.25})
    assert last.split() == ["real", "-", "0.2500", "-", "-"]
