"""The oracle against closed forms: one Gaussian, the quantiles of a line, data sets as limits of mixtures."""

import numpy as np
import pytest
from scipy.stats import norm, ortho_group

from sct_jax.data.mixtures import known_data
from sct_jax.evaluation.oracle import (
    GaussianMixture,
    consistency_error,
    draw_queries,
    empirical_denoiser,
    exact_consistency,
    exact_jump,
    prediction_error,
    target_moments,
    wasserstein,
    wasserstein_floor,
)

LEVELS = np.array([0.02, 0.3, 1.0, 9.0, 80.0])


@pytest.fixture(scope="module")
def ring():
    return known_data("2d").mixture


@pytest.fixture(scope="module")
def line():
    return GaussianMixture([0.2, 0.5, 0.3], [[-1.0], [0.2], [1.1]], [[0.04], [0.0025], [0.09]])


def noisy(mixture, t, seed=0):
    rng = np.random.default_rng(seed)
    x_0, component = mixture.sample(rng, len(t))
    return x_0 + t[:, None] * rng.standard_normal(x_0.shape), component


def test_one_gaussian_has_the_closed_form():
    """``f(x, t) = μ + V diag(σ/√(σ² + t²)) Vᵀ (x − μ)``."""
    axes, std, mean = ortho_group.rvs(6, random_state=0), np.geomspace(0.03, 1.5, 6), np.linspace(-1, 1, 6)
    gaussian = GaussianMixture([1.0], mean[None], std[None] ** 2, axes[None])
    t = np.repeat(LEVELS, 8)
    x, _ = noisy(gaussian, t)
    expected = mean + ((x - mean) @ axes * std / np.sqrt(std**2 + t[:, None] ** 2)) @ axes.T
    np.testing.assert_allclose(exact_consistency(gaussian.posterior_mean, x, t), expected, atol=2e-8)
    np.testing.assert_allclose(gaussian.component_flow(x, t, 0.0, np.zeros(40, int)), expected, atol=1e-12)
    part = exact_consistency(gaussian.posterior_mean, x, t, s=0.3 * t)
    np.testing.assert_allclose(part, gaussian.component_flow(x, t, 0.3 * t, np.zeros(40, int)), rtol=1e-6, atol=1e-7)


def test_on_a_line_the_flow_keeps_the_quantile(line):
    """In one dimension trajectories do not cross: ``F_0(f(x, t)) = F_t(x)``."""
    t = np.repeat(LEVELS, 8)
    x, _ = noisy(line, t)

    def cumulative(x, t):
        spread = np.sqrt(line.variances[:, 0] + t[:, None] ** 2)
        return norm.cdf((x - line.means[:, 0]) / spread) @ line.weights

    end = exact_consistency(line.posterior_mean, x, t)
    np.testing.assert_allclose(cumulative(end, 0 * t), cumulative(x, t), atol=1e-7)
    halfway = exact_consistency(line.posterior_mean, x, t, s=t / 2)
    np.testing.assert_allclose(cumulative(halfway, t / 2), cumulative(x, t), atol=1e-7)


def test_tolerances_agree_and_parts_of_a_path_join(ring):
    t = np.repeat(LEVELS, 16)
    x, _ = noisy(ring, t)
    end = exact_consistency(ring.posterior_mean, x, t)
    tight = exact_consistency(ring.posterior_mean, x, t, rtol=1e-11)
    np.testing.assert_allclose(end, tight, atol=1e-6)
    assert np.abs(exact_consistency(ring.posterior_mean, x, t, rtol=1e-3) - tight).max() > 1e-6  # it is the tolerance
    middle = exact_consistency(ring.posterior_mean, x, t, s=t / 3)
    np.testing.assert_allclose(exact_consistency(ring.posterior_mean, middle, t / 3), end, atol=1e-6)


def test_the_exact_function_carries_noise_to_the_data(ring):
    t = np.full(600, 80.0)
    x, _ = noisy(ring, t)
    generated = exact_consistency(ring.posterior_mean, x, t, rtol=1e-6)
    exact, _ = ring.sample(np.random.default_rng(5), 600)
    assert wasserstein(generated, exact) < 1.5 * wasserstein_floor(ring, 600)
    assert wasserstein(ring.posterior_mean(x, 80.0), exact) > 4 * wasserstein_floor(ring, 600)


def test_labels_reach_the_denoiser(ring):
    t = np.repeat(LEVELS, 8)
    x, component = noisy(ring, t)
    own = exact_consistency(ring.posterior_mean, x, t, labels=component)
    np.testing.assert_allclose(own, ring.component_flow(x, t, 0.0, component), atol=1e-7)


@pytest.mark.parametrize(("t", "s"), [(0.0, 0.0), (1.0, 1.0), (1.0, -0.1)])
def test_times_out_of_order_are_refused(ring, t, s):
    with pytest.raises(ValueError, match="0 <= s < t"):
        exact_consistency(ring.posterior_mean, np.zeros((1, 2)), t, s=s)


@pytest.mark.parametrize("block", [3, 1024])
def test_the_empirical_posterior_mean_is_that_of_points_without_width(block):
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((10, 2, 2, 1)), np.arange(10) % 2
    points = GaussianMixture(np.full(10, 0.1), images.reshape(10, 4), np.zeros((10, 4)))
    t = np.geomspace(0.002, 80.0, 30)
    x = images[np.arange(30) % 10] + t[:, None, None, None] * rng.standard_normal((30, 2, 2, 1))
    np.testing.assert_allclose(
        empirical_denoiser(images, block=block)(x, t), points.posterior_mean(x, t), rtol=1e-6, atol=1e-7
    )
    masked = empirical_denoiser(images, labels, block=block)
    for own in (0, 1):
        chosen = np.flatnonzero(labels == own)
        part = empirical_denoiser(images[chosen])(x, 0.7)
        np.testing.assert_allclose(masked(x, 0.7, np.full(30, own)), part, atol=1e-12)
    with pytest.raises(ValueError, match="needs one of them"):
        masked(x, t)
    with pytest.raises(ValueError, match="needs one of them"):
        masked(x, t, np.full(30, 2))


def test_pixels_stand_for_the_unit_range():
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1), np.uint8)
    x = np.zeros((3, 2, 2, 1))
    expected = empirical_denoiser(images / 127.5 - 1.0)(x, 0.8)
    np.testing.assert_allclose(empirical_denoiser(images)(x, 0.8), expected, atol=1e-12)


def test_the_empirical_flow_of_a_line_goes_to_the_row_of_the_quantile():
    rows = np.array([-0.9, -0.2, 0.1, 0.8])
    t = np.repeat([0.5, 3.0, 80.0], 12)
    x = rows[np.arange(36) % 4] + t * np.random.default_rng(0).standard_normal(36)
    quantile = norm.cdf((x[:, None] - rows) / t[:, None]).mean(axis=1)
    end = exact_consistency(empirical_denoiser(rows[:, None]), x[:, None], t)
    clear = np.abs(4 * quantile - np.rint(4 * quantile)) > 1e-4  # not at the border between two rows
    np.testing.assert_allclose(end[clear, 0], rows[np.floor(4 * quantile[clear]).astype(int)], atol=1e-6)
    assert clear.sum() > 30
    alone = exact_consistency(empirical_denoiser(rows[:1, None]), x[:, None], t)
    np.testing.assert_allclose(alone, np.full((36, 1), -0.9), atol=1e-9)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_exact_function_scores_zero_and_others_do_not(ring, conditional):
    arguments = {"times": LEVELS, "num": 16, "conditional": conditional, "image_shape": (1, 1, 2)}

    def exact(x, t, labels):
        assert x.shape == (80, 1, 1, 2)
        assert (labels is not None) == conditional
        return exact_consistency(ring.posterior_mean, x, t, labels=labels)

    right = consistency_error(exact, ring, **arguments)
    assert max(right["error"]) < 1e-10
    shifted = consistency_error(lambda *given: exact(*given) + np.array([0.3, 0.1]), ring, **arguments)
    np.testing.assert_allclose(shifted["error"], (0.3**2 + 0.1**2) / 2, rtol=1e-4)
    assert shifted["mean"] == pytest.approx(0.05, rel=1e-4)
    one_step = consistency_error(lambda x, t, labels: ring.posterior_mean(x, t, labels), ring, **arguments)
    assert one_step["at_t_max"] == one_step["error"][-1] > (0.001 if conditional else 0.1)


def test_an_unconditional_answer_is_wrong_for_a_conditional_model(ring):
    queries = draw_queries(ring, LEVELS, 16, conditional=True)
    blind = prediction_error(lambda x, t, labels: exact_consistency(ring.posterior_mean, x, t), queries)
    assert blind["error"][0] < 1e-6  # the component shows at small noise
    assert blind["at_t_max"] > 0.1


def test_phases_are_asked_for_the_way_to_their_edge(ring):
    edges = (0.0, 0.5, 4.0, 80.0)

    def exact(x, t, labels):
        s = np.select([t <= 0.5, t <= 4.0], [0.0, 0.5], 4.0)
        end, ratio = exact_consistency(ring.posterior_mean, x, t, s=s), (s / t)[:, None]
        return (end - ratio * x) / (1 - ratio)

    times = [0.3, 0.5, 2.0, 4.0, 80.0]
    assert max(consistency_error(exact, ring, times, 8, edges=edges)["error"]) < 1e-9
    whole = consistency_error(exact, ring, times, 8)["error"]
    assert max(whole[:2]) < 1e-9
    assert min(whole[2:]) > 1e-4


def test_a_denoiser_is_asked_for_the_posterior_mean(ring):
    queries = draw_queries(ring, LEVELS, 16, target="denoiser")
    assert max(prediction_error(lambda x, t, labels: ring.posterior_mean(x, t), queries)["error"]) < 1e-20
    flow = prediction_error(lambda x, t, labels: exact_consistency(ring.posterior_mean, x, t), queries)
    assert flow["at_t_max"] > 0.1
    with pytest.raises(ValueError, match="target must be"):
        draw_queries(ring, target="score")


def test_in_64_dimensions_the_exact_function_scores_zero_too():
    textures = known_data("64d").mixture
    queries = draw_queries(textures, (0.5, 80.0), 8)
    exact = prediction_error(
        lambda x, t, labels: exact_consistency(textures.posterior_mean, x, t).reshape(x.shape), queries, (8, 8, 1)
    )
    assert max(exact["error"]) < 1e-9
    assert prediction_error(lambda x, t, labels: np.zeros_like(x), queries)["at_t_max"] > 0.1


def test_wasserstein_is_that_of_sorted_points_and_of_translations():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 1)), rng.standard_normal((50, 1)) * 2 + 1
    expected = np.sqrt(np.mean((np.sort(a[:, 0]) - np.sort(b[:, 0])) ** 2))
    assert wasserstein(a, b) == pytest.approx(expected, rel=1e-9)
    points = rng.standard_normal((40, 3, 2, 1))
    assert wasserstein(points, rng.permutation(points)) < 1e-12
    assert wasserstein(points + 0.25, points) == pytest.approx(0.25 * 6**0.5, rel=1e-9)
    for bad in (points[:10], np.zeros((1501, 6))):
        with pytest.raises(ValueError, match="1 to 1500 points alike"):
            wasserstein(bad, points if len(bad) == 10 else bad)


def test_the_floor_falls_with_the_number_of_points(ring):
    few, many = wasserstein_floor(ring, 30), wasserstein_floor(ring, 500)
    assert 0.02 < many < 0.6 * few
    labels = np.arange(500) % 8
    assert wasserstein_floor(ring, 500, component=labels) < many  # no chance in how many fall to a component


def test_the_target_of_one_gaussian():
    """One reference, the own sample: ``Tr Cov(x_0 | x_t) = Σ σ²t²/(σ² + t²)``, whatever ``x_t``."""
    std, t = np.array([0.1, 0.5, 1.0]), np.array([0.2, 1.0, 10.0])
    gaussian = GaussianMixture([1.0], np.zeros((1, 3)), std[None] ** 2)
    moments = target_moments(gaussian, t, [1], num_queries=64, num_draws=256)
    expected = (std**2 * t[:, None] ** 2 / (std**2 + t[:, None] ** 2)).sum(axis=1)
    np.testing.assert_allclose(np.squeeze(moments["variance"]), expected, rtol=0.03)


def test_the_own_sample_removes_the_bias_and_references_the_variance(ring):
    t, sizes = [0.3, 1.0, 20.0], [1, 4, 32]
    own = target_moments(ring, t, sizes, num_queries=48, num_draws=96)
    bias, error = np.array(own["bias_squared"]), np.array(own["bias_standard_error"])
    assert (np.abs(bias) < 4 * error).all()
    assert (np.diff(own["variance"], axis=1) < 0).all()
    # Far away every reference weighs the same: the variance of a mean of n samples.
    np.testing.assert_allclose(own["variance"][2], 0.5 / np.array(sizes), rtol=0.1)
    others = target_moments(ring, t, sizes, own_sample=False, num_queries=48, num_draws=96)
    bias, error = np.array(others["bias_squared"]), np.array(others["bias_standard_error"])
    assert (bias[:2, :2] > 4 * error[:2, :2]).all()
    assert bias[0, 0] > 0.1


# Jumps.


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", ["2d", "64d"])
def test_jumps_of_the_exact_flow_join(name, conditional):
    mixture = known_data(name).mixture
    t = np.repeat([0.5, 80.0], 3)
    x, component = noisy(mixture, t)
    component = component if conditional else None
    there = lambda x, t, s: exact_jump(mixture, x, t, s, component)  # noqa: E731
    middle, s = t * np.resize([0.5, 1.0], 6), np.resize([0.01, 0.3, 0.0], 6)
    np.testing.assert_allclose(there(there(x, t, middle), middle, s), there(x, t, s), atol=2e-6)
    np.testing.assert_allclose(there(x, t, t), x, rtol=1e-10)
    with pytest.raises(ValueError, match="0 <= s <= t"):
        there(x, t, t + 0.1)


def test_a_jump_is_the_consistency_function_where_it_ends(ring):
    t = np.repeat(LEVELS, 4)
    x, component = noisy(ring, t)
    end = exact_jump(ring, x.reshape(-1, 1, 2), t, 0.0)
    np.testing.assert_allclose(end.reshape(-1, 2), exact_consistency(ring.posterior_mean, x, t), atol=1e-9)
    np.testing.assert_allclose(exact_jump(ring, x, t, 0.0, component), ring.component_flow(x, t, 0.0, component))


@pytest.mark.parametrize("conditional", [False, True])
def test_the_exact_jumps_score_zero_and_others_do_not(ring, conditional):
    queries = draw_queries(ring, LEVELS, 8, target="jump", conditional=conditional)
    assert len(np.unique(queries.s)) == 4 * len(LEVELS)  # four of each level
    assert ((queries.s >= 0.002 - 1e-9) & (queries.s <= queries.t)).all()
    np.testing.assert_array_equal(queries.x_t, draw_queries(ring, LEVELS, 8, target="denoiser").x_t)

    def exact(x, t, labels, s):
        assert (labels is not None) == conditional
        x, t, s = (np.float64(array) for array in (x, t, s))
        ratio = (s / t)[:, None]
        return np.float32((exact_jump(ring, x, t, s, labels) - ratio * x) / (1 - ratio))

    found = prediction_error(exact, queries)
    assert max(np.array(found["error"]) / LEVELS**2) < 1e-10
    shifted = prediction_error(lambda *given: exact(*given) + 0.2, queries)
    share = ((1 - queries.s / queries.t) ** 2).reshape(len(LEVELS), -1).mean(axis=1)  # of a step that is prediction
    np.testing.assert_allclose(shifted["error"], 0.04 * share, rtol=1e-3)
