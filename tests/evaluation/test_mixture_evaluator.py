"""The metrics of models of a known mixture: what the truth scores, what they refuse."""

import numpy as np
import pytest

from sct_jax.data.mixtures import known_data
from sct_jax.errors import UserError
from sct_jax.evaluation.mixtures import MixtureEvaluator
from sct_jax.evaluation.oracle import exact_consistency, exact_jump

RING, SHAPE = known_data("2d")


def evaluator(**changes):
    return MixtureEvaluator(RING, SHAPE, **({"kind": "consistency", "conditional": False, "queries": 4} | changes))


def exact(x, t, labels):
    return exact_consistency(RING.posterior_mean, x, t, labels=labels, rtol=1e-7)


def draw(num, seed=9, component=None):
    return RING.sample(np.random.default_rng(seed), num, component)[0].reshape(num, *SHAPE)


def test_the_truth_scores_the_floor():
    found = evaluator().metrics(exact, draw(400))
    assert set(found) == {"w2", "consistency_error", "consistency_error_at_t_max"}
    assert found["consistency_error"] < 1e-9
    floor = evaluator().floor(400)
    assert set(floor) == {"w2"}
    assert found["w2"] < 1.7 * floor["w2"]
    shifted = evaluator().metrics(lambda *given: exact(*given) + 0.2, draw(400) + 0.5)
    assert shifted["consistency_error"] == pytest.approx(0.04, rel=1e-3)
    assert shifted["consistency_error_at_t_max"] == pytest.approx(0.04, rel=1e-3)
    assert shifted["w2"] == pytest.approx(0.5 * 2**0.5, rel=0.1)


def test_a_conditional_model_is_compared_within_its_components():
    labels = np.resize([0, 4], 300)  # opposite ends of the ring
    conditional, blind = evaluator(conditional=True), evaluator()
    right, wrong = draw(300, component=labels), draw(300)
    scores = [conditional.metrics(exact, samples, labels, ["w2"])["w2"] for samples in (right, wrong)]
    assert scores[0] < 0.1
    assert scores[1] > 0.5
    assert conditional.floor(300, sample_labels=labels)["w2"] < 0.05
    assert conditional.curve(exact)["mean"] < 1e-9
    assert conditional.curve(lambda x, t, labels: exact(x, t, None))["at_t_max"] > 0.1
    assert blind.curve(exact)["class_conditional"] is False


def test_a_diffusion_model_is_compared_with_the_posterior_mean():
    found = evaluator(kind="diffusion").metrics(lambda x, t, labels: RING.posterior_mean(x, t), draw(50))
    assert set(found) == {"w2", "denoiser_error", "denoiser_error_at_t_max"}
    assert found["denoiser_error"] < 1e-12
    assert evaluator(kind="diffusion").curve(exact)["at_t_max"] > 0.1


def test_a_two_time_model_is_compared_at_random_pairs_of_times_too():
    def two_time(x, t, labels, s=None):
        x, t, s = np.float64(x), np.float64(t), 0 * np.float64(t) if s is None else np.float64(s)
        ratio = (s / t)[:, None, None, None]
        return np.float32((exact_jump(RING, x, t, s, rtol=1e-6) - ratio * x) / (1 - ratio))

    measures = evaluator(kind="two-time", queries=2)
    assert measures.names == ("w2", "consistency_error", "jump_error")
    found = measures.metrics(two_time, draw(50))
    assert set(found) == {"w2"} | {f"{name}_error{at}" for name in ("consistency", "jump") for at in ("", "_at_t_max")}
    assert found["consistency_error"] < 1e-9
    assert found["jump_error"] < 1e-9
    chord = measures.metrics(lambda x, t, labels, s=None: two_time(x, t, labels), draw(50), names=["jump_error"])
    assert chord.keys() == {"jump_error", "jump_error_at_t_max"}
    assert chord["jump_error"] > 1e-3  # a consistency model that jumps along chords
    assert measures.curve(two_time)["metric"] == "consistency_error"


def test_the_seed_decides_the_states_and_the_reference():
    one, again, other = (evaluator().metrics(lambda x, t, labels: 0 * x, draw(50), seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert all(one[name] != other[name] for name in one)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"'consistency_eror': did you mean consistency_error\?"):
        evaluator().check(100, ["consistency_eror"])
    with pytest.raises(UserError, match="known for this model: w2, denoiser_error"):
        evaluator(kind="diffusion").check(100, ["fd_pca"])
    with pytest.raises(UserError, match="--num 1501: w2 compares 1 to 1,500"):
        evaluator().check(1501)
    evaluator().check(100_000, ["consistency_error"])
