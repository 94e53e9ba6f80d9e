"""FID and CMMD against closed forms of normal distributions, SciPy, and published code."""

import numpy as np
import pytest
from scipy import linalg

from tuna_jax.evaluation.metrics import fid_cmmd


def _normal(seed: int, width: int):
    random = np.random.default_rng(seed)
    root = random.normal(size=(width, width)) / np.sqrt(width)
    return random.normal(size=width), root @ root.T + 0.1 * np.eye(width)


def test_frechet_of_commuting_normals_is_the_closed_form():
    """For diagonal covariances it is |m - n|^2 + sum (sqrt(a) - sqrt(b))^2."""
    m, n = np.array([1.0, 0, 2]), np.array([0.0, 0, 5])
    a, b = np.array([1.0, 4, 0]), np.array([9.0, 4, 1])  # the first is singular
    result = fid_cmmd.frechet_distance_of(m, np.diag(a), n, np.diag(b))
    np.testing.assert_allclose(result, 1 + 9 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_frechet_matches_scipys_square_root():
    (m, a), (n, b) = _normal(0, 12), _normal(1, 12)
    root = linalg.sqrtm(a @ b).real
    expected = ((m - n) ** 2).sum() + np.trace(a + b - 2 * root)
    np.testing.assert_allclose(fid_cmmd.frechet_distance_of(m, a, n, b), expected, rtol=1e-10)


def test_frechet_of_samples_approaches_that_of_their_distributions():
    (m, a), (n, b) = _normal(2, 4), _normal(3, 4)
    random = np.random.default_rng(0)
    first, second = (
        random.multivariate_normal(m, a, 50_000),
        random.multivariate_normal(n, b, 50_000),
    )
    expected = fid_cmmd.frechet_distance_of(m, a, n, b)
    assert abs(fid_cmmd.frechet_distance(first, second) / expected - 1) < 0.02
    assert abs(fid_cmmd.frechet_distance(first, first)) < 1e-9


def test_frechet_with_fewer_rows_than_numbers_is_finite_and_symmetric():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(5, 40)), random.normal(size=(7, 40)) + 1
    result = fid_cmmd.frechet_distance(first, second)
    assert np.isfinite(result)
    assert result > 0
    np.testing.assert_allclose(result, fid_cmmd.frechet_distance(second, first))


def test_cmmd_is_the_closed_form_of_normals():
    """E k(x, y) of N(m, s I), N(n, t I) is (v / (v + s + t))^(d/2) exp(-|m - n|^2 / (2 (v + s + t))), v = sigma^2."""
    m, n, s, t, sigma, rows = np.zeros(3), np.array([2.0, 1, 0]), 1.0, 2.0, 1.5, 4000

    def similar(distance, spread):
        v = sigma**2
        return (v / (v + spread)) ** 1.5 * np.exp(-distance / (2 * (v + spread)))

    # The similarity of a row with itself counts, and is 1.
    own = [(1 + (rows - 1) * similar(0, 2 * variance)) / rows for variance in (s, t)]
    expected = 1000 * (sum(own) - 2 * similar(((m - n) ** 2).sum(), s + t))
    random = np.random.default_rng(0)
    first = random.normal(size=(rows, 3)) * np.sqrt(s) + m
    second = random.normal(size=(rows, 3)) * np.sqrt(t) + n
    result = fid_cmmd.cmmd(first, second, sigma=sigma)
    assert abs(result / expected - 1) < 0.03
    assert abs(fid_cmmd.cmmd(first, first, sigma=sigma)) < 1e-9


def test_cmmd_matches_the_published_code():
    """41.0033 is what distance.py of sayakpaul/cmmd-pytorch at f7673a9 (a port of Google's) gives for these."""
    i = np.arange(40)[:, None]
    a = np.sin(0.7 * i * (1 + np.arange(6))) + 0.3 * np.cos(i**2 * (1 + np.arange(6)))
    b = np.tanh(a @ np.cos(np.arange(30).reshape(6, 5))) + 0.5 * np.sin(
        3.1 * i * (1 + np.arange(5))
    )
    assert abs(fid_cmmd.cmmd(5 * a[:, :5], 5 * b) - 41.0033) < 1e-4


def test_rows_in_blocks_give_the_same(monkeypatch):
    random = np.random.default_rng(0)
    first, second = random.normal(size=(9, 3)), random.normal(size=(6, 3))
    whole = fid_cmmd.cmmd(first, second, sigma=1.0)
    monkeypatch.setattr(fid_cmmd, "_BLOCK", 4)
    np.testing.assert_allclose(fid_cmmd.cmmd(first, second, sigma=1.0), whole)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.ones((3, 2)), np.ones((3, 4)), "2 and 4 wide"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), "the second features have numbers"),
        (np.ones((1, 2)), np.ones((3, 2)), "there are 1 and 3"),
    ],
)
def test_features_that_do_not_fit_are_named(a, b, words):
    with pytest.raises(ValueError, match=words):
        fid_cmmd.frechet_distance(a, b)
