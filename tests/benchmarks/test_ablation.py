"""Ablations' paired differences against scipy's paired t test; which rows are compared with which."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ablation():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("ablation")
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(("more", "better"), [(False, 4), (True, 1)])
def test_differences_are_the_paired_t_test(ablation, more, better):
    ours, theirs = [1.0, 2.5, 3.0, 0.5, 2.0], [1.5, 2.6, 3.9, 0.4, 2.9]
    found = ablation.differences(ours, theirs, more)
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    np.testing.assert_allclose(found["interval"], [interval.low, interval.high], rtol=1e-12)
    assert found["mean"] / found["standard_error"] == pytest.approx(test.statistic)
    assert found["ratio"] == pytest.approx(9.0 / 11.3)
    assert found["better"] == better


def test_a_way_to_sample_is_compared_with_the_baselines_first_of_as_many_steps(ablation):
    def runs(*rows):  # of two seeds, the second worse by a half
        row = lambda steps, value, **sampling: {"sampling_steps": steps, "w2": value, "sampling": sampling}  # noqa: E731
        return [{"measured": [row(steps, value + seed / 2, **how) for steps, value, how in rows]} for seed in (0, 1)]

    results = {
        "plain": runs((1, 5.0, {}), (2, 4.0, {}), (2, 3.0, {"noise": "none"})),
        "phased": runs((2, 3.5, {"eta": 0.5}), (4, 1.0, {})),
    }
    found = ablation.paired(results, ("w2", "fd_pca"), ("plain", "left out"))
    assert [(row["variant"], row["sampling"], row["w2"]["mean"]) for row in found] == [
        ("plain", {"noise": "none"}, -1.0),
        ("phased", {"eta": 0.5}, -0.5),
    ]
    assert "fd_pca" not in found[0]
    assert "| phased | 2 steps, η = 0.5 | −0.50 [−0.50, −0.50], 2 of 2, × 0.88 |" in ablation.paired_table(
        found, ("w2",)
    )


def test_every_studys_baselines_are_variants_of_it_and_every_schedule_is_compared(ablation):
    for study, baselines in ablation.BASELINES.items():
        assert set(baselines) <= set(ablation.STUDIES[study])
    assert set(ablation.BASELINES) == set(ablation.STUDIES)
    schedules = {variant.overrides.get("objective.schedule") for variant in ablation.STUDIES["schedule"].values()}
    assert {"smooth", "smooth_matched", "staged"} <= schedules
