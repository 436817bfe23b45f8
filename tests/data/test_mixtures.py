"""Gaussian mixtures against quadrature, scipy's densities and derivatives; the source that draws from them."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, ortho_group

from sct_jax.data import list_splits, make_pipeline, open_source
from sct_jax.data.mixtures import GaussianMixture, cosine_basis, known_data
from sct_jax.errors import UserError


def tilted(shared: bool, size: int = 4, count: int = 3) -> GaussianMixture:
    """Components of random weights, means and spectra, with axes of their own or shared ones."""
    rng = np.random.default_rng(7)
    weights = rng.uniform(0.5, 1.5, count)
    basis = np.stack([ortho_group.rvs(size, random_state=seed) for seed in range(1 if shared else count)])
    means, variances = 0.7 * rng.standard_normal((count, size)), rng.uniform(0.01, 0.6, (count, size))
    return GaussianMixture(weights / weights.sum(), means, variances, basis)


def covariances(mixture: GaussianMixture) -> list[np.ndarray]:
    count, size = mixture.means.shape
    basis = np.broadcast_to(mixture.basis, (count, size, size))
    return [axes @ np.diag(spread) @ axes.T for axes, spread in zip(basis, mixture.variances, strict=True)]


@pytest.fixture(params=[False, True], ids=["own axes", "shared axes"])
def mixture(request):
    return tilted(request.param)


@pytest.fixture
def states():
    """States at noise levels over the whole range, ``[B, D]`` and ``[B]``."""
    rng = np.random.default_rng(0)
    t = np.geomspace(0.002, 80.0, 24)
    return rng.standard_normal((24, 4)) * np.sqrt(0.5**2 + t[:, None] ** 2), t


@pytest.mark.parametrize("t", [0.0, 0.3, 4.0])
def test_the_density_is_the_sum_of_normal_densities(mixture, states, t):
    x = states[0][:10]
    parts = [
        multivariate_normal(mean, cov + t**2 * np.eye(4)).pdf(x)
        for mean, cov in zip(mixture.means, covariances(mixture), strict=True)
    ]
    expected = mixture.weights @ np.stack(parts)
    np.testing.assert_allclose(mixture.log_density(x, t), np.log(expected), rtol=1e-9)
    own = np.arange(10) % 3
    np.testing.assert_allclose(
        mixture.log_density(x, t, own), np.log(np.stack(parts)[own, np.arange(10)]), rtol=1e-9, atol=1e-9
    )
    share = (mixture.weights[:, None] * np.stack(parts) / expected).T
    np.testing.assert_allclose(mixture.responsibilities(x, t), share, atol=1e-12)


def test_the_score_is_the_gradient_of_the_log_density(mixture):
    x, step = np.random.default_rng(1).standard_normal((6, 4)), 1e-5
    for axis in range(4):
        move = step * np.eye(4)[axis]
        slope = (mixture.log_density(x + move, 0.4) - mixture.log_density(x - move, 0.4)) / (2 * step)
        np.testing.assert_allclose(mixture.score(x, 0.4)[:, axis], slope, rtol=1e-6, atol=1e-7)


def test_the_posterior_mean_against_quadrature():
    """On a line ``∫ x_0 p(x_0) p(x_t|x_0) / ∫ p(x_0) p(x_t|x_0)`` can be summed."""
    mixture = GaussianMixture([0.2, 0.5, 0.3], [[-1.0], [0.2], [1.1]], [[0.04], [0.0025], [0.09]])
    x_0 = np.linspace(-3, 3, 60_001)
    prior = np.exp(mixture.log_density(x_0[:, None], 0.0))
    x_t = np.linspace(-2, 2, 9)
    for t in (0.05, 0.5, 3.0):
        joint = prior * np.exp(-((x_t[:, None] - x_0) ** 2) / (2 * t**2))
        expected = (joint @ x_0) / joint.sum(axis=1)
        np.testing.assert_allclose(mixture.posterior_mean(x_t[:, None], t)[:, 0], expected, atol=1e-9)


def test_tweedie_and_limits(mixture, states):
    x, t = states
    for component in (None, np.arange(24) % 3):
        mean, score = mixture.posterior_mean(x, t, component), mixture.score(x, t, component)
        np.testing.assert_allclose(mean, x + t[:, None] ** 2 * score, atol=1e-9)
    np.testing.assert_allclose(mixture.posterior_mean(x, 1e-7), x, atol=1e-9)
    overall = mixture.weights @ mixture.means
    np.testing.assert_allclose(mixture.posterior_mean(x[:1], 1e6), overall[None], atol=1e-9)


def test_one_time_for_all_is_that_time_for_each_and_images_keep_their_shape(mixture, states):
    x, t = states
    each = mixture.posterior_mean(x, t)
    for row in range(24):
        np.testing.assert_allclose(mixture.posterior_mean(x[row : row + 1], t[row])[0], each[row], atol=1e-12)
    np.testing.assert_array_equal(mixture.posterior_mean(x.reshape(24, 2, 2, 1), t), each.reshape(24, 2, 2, 1))


def test_jax_gives_the_same_in_its_precision(mixture, states):
    x, t = (np.asarray(array, np.float32) for array in states)
    component = np.arange(24) % 3
    for method in (mixture.posterior_mean, mixture.log_density):
        for given in ((x, t), (x, t, component), (x, np.float32(0.7))):
            traced = jax.jit(method)(*map(jnp.asarray, given))
            assert traced.dtype == jnp.float32
            np.testing.assert_allclose(traced, method(*given), rtol=2e-5, atol=2e-5)
    gradient = jax.grad(lambda x: mixture.log_density(x, 0.5).sum())(jnp.asarray(x[:8]))
    np.testing.assert_allclose(gradient, mixture.score(x[:8], 0.5), rtol=1e-3, atol=1e-4)


def test_samples_have_the_moments_of_their_component(mixture):
    x, component = mixture.sample(np.random.default_rng(3), 60_000)
    assert component.dtype == np.int32
    np.testing.assert_allclose(np.bincount(component) / 60_000, mixture.weights, atol=0.01)
    for k, cov in enumerate(covariances(mixture)):
        own = x[component == k]
        np.testing.assert_allclose(own.mean(axis=0), mixture.means[k], atol=0.02)
        np.testing.assert_allclose(np.cov(own.T), cov, atol=0.02)
    np.testing.assert_array_equal(mixture.sample(np.random.default_rng(3), 60_000)[0], x)
    asked = np.array([2, 0, 2, 1])
    np.testing.assert_array_equal(mixture.sample(np.random.default_rng(0), 4, asked)[1], asked)


def test_draws_of_the_posterior_have_its_mean_and_variance(mixture):
    """The mean is the closed form; the variance is ``t² ∂E[x_0|x_t]/∂x`` (Tweedie's second-order formula)."""
    x, t, step = np.array([0.3, -0.5, 0.8, 0.1]), 0.6, 1e-5
    drawn = mixture.sample_posterior(np.random.default_rng(0), x, t, 60_000)
    np.testing.assert_allclose(drawn.mean(axis=0), mixture.posterior_mean(x[None], t)[0], atol=0.01)
    moved = [mixture.posterior_mean(x + sign * step * np.eye(4), t) for sign in (1, -1)]
    np.testing.assert_allclose(np.cov(drawn.T), t**2 * (moved[0] - moved[1]) / (2 * step), atol=0.01)


def test_aligned_is_the_same_mixture_turned(mixture, states):
    x, t = states
    axes, turned = mixture.aligned()
    np.testing.assert_allclose(turned.log_density(x @ axes, t), mixture.log_density(x, t), rtol=1e-9)
    np.testing.assert_allclose(turned.score(x @ axes, t) @ axes.T, mixture.score(x, t), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.6], np.zeros((2, 3)), np.ones((2, 3))), "sum 1"),
        (([0.5, 0.5], np.zeros((2, 3)), -np.ones((2, 3))), "at least 0"),
        (([0.5, 0.5], np.zeros((2, 3)), np.ones((2, 2))), "variances"),
        (([0.5, 0.5], np.zeros((2, 3)), np.ones((2, 3)), np.eye(3)), "basis must be"),
        (([0.5, 0.5], np.zeros((2, 3)), np.ones((2, 3)), 2 * np.eye(3)[None]), "orthonormal"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


def test_the_cosine_basis_is_orthonormal_and_begins_with_the_constant():
    basis = cosine_basis(8)
    np.testing.assert_allclose(basis.T @ basis, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(basis[:, 0], 8**-0.5)


@pytest.mark.parametrize(("path", "shape", "classes"), [("2d", (1, 1, 2), 8), ("64d", (8, 8, 1), 10)])
def test_the_source_draws_floats_from_its_mixture(path, shape, classes):
    source = open_source("gmm", path)
    images, labels = source.read_all()
    spec = source.spec
    assert (spec.image_size, spec.channels, spec.num_classes, spec.dtype) == (*shape[1:], classes, "float32")
    assert (images.shape, images.dtype, spec.num_examples) == ((65_536, *shape), np.float32, 65_536)
    assert images.std() == pytest.approx(0.5, abs=0.005)
    assert np.abs(images).max() > 0.9
    mixture, image_shape = known_data(path)
    assert image_shape == shape
    rows = images.reshape(len(images), -1)
    for k in range(classes):
        own = rows[labels == k]
        np.testing.assert_allclose(own.mean(axis=0), mixture.means[k], atol=5 * rows.std() / len(own) ** 0.5)
    guessed = mixture.responsibilities(rows[:4000], 0.0).argmax(axis=1)
    assert (guessed == labels[:4000]).mean() > 0.98  # kinds that can be told apart
    again = pickle.loads(pickle.dumps(open_source("gmm", path)))
    np.testing.assert_array_equal(again.read_all()[0], images)


def test_the_splits_are_independent_samples():
    train, test = (open_source("gmm", "2d", split=split) for split in list_splits("gmm", "2d"))
    assert len(test) == 8192
    assert not np.isin(test.read_all()[0], train.read_all()[0]).all(axis=-1).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": ""}, "set data.path to one of 2d, 64d"),
        ({"path": "3d"}, "no Gaussian mixture '3d'"),
        ({"path": "2d", "split": "all"}, "choose one of train, test"),
        ({"path": "64d", "image_size": 32}, "not pixels to pad"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        open_source("gmm", **arguments)


def test_floats_take_four_bytes_of_the_resident_limit():
    """64d holds 4 Mi values: 16 MiB."""
    source = open_source("gmm", "64d")
    assert make_pipeline(source, seed=0, batch_size=4, resident_max_mib=16.01).mode == "resident"
    streamed = make_pipeline(source, seed=0, batch_size=4, resident_max_mib=15.99)
    assert streamed.mode == "streamed"
    streamed.close()


def test_both_pipelines_give_the_floats_as_they_are():
    source = open_source("gmm", "64d", split="test")
    found = {}
    for mode in ("resident", "streamed"):
        pipeline = make_pipeline(source, seed=3, batch_size=8, mode=mode)
        item = jax.tree.map(lambda array: array[0], pipeline.next(5, 1))
        found[mode] = pipeline.fetch(pipeline.arrays, item)
        pipeline.close()
    assert found["resident"]["image"].dtype == found["streamed"]["image"].dtype == np.float32
    for name in ("image", "label"):
        np.testing.assert_array_equal(found["resident"][name], found["streamed"][name])
    images, labels = source.read_all()
    place = np.flatnonzero((images == np.asarray(found["streamed"]["image"][0])).all(axis=(1, 2, 3)))
    assert labels[place].tolist() == [found["streamed"]["label"][0]]
