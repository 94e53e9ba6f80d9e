"""CKNNA against the published code's numbers, the unbiased CKA, and what it must not depend on."""

import numpy as np
import pytest

from tuna_jax.evaluation.metrics.cknna import cknna, prepare


def _vectors():
    """Two representations of 40 items, the second partly a function of the first."""
    i = np.arange(40)[:, None]
    a = np.sin(0.7 * i * (1 + np.arange(6))) + 0.3 * np.cos(i**2 * (1 + np.arange(6)))
    mixed = np.tanh(a @ np.cos(np.arange(30).reshape(6, 5)))
    return a, mixed + 0.5 * np.sin(3.1 * i * (1 + np.arange(5)))


# What metrics.py of minyoungg/platonic-rep at dcd76ba gives for `_vectors` in float64: unchanged, and clipped
# (remove_outliers, q=0.95, exact=True) and normalised as in measure_alignment.py.
PUBLISHED = {
    2: (0.4518174726935064, 0.07889905935463255),
    5: (0.5014427386233274, 0.33987164996779506),
    10: (0.5645399760171023, 0.48124679221070527),
    39: (0.5881331631723219, 0.460512709159872),
}


@pytest.mark.parametrize("neighbours", PUBLISHED)
def test_it_matches_the_published_code(neighbours):
    a, b = _vectors()
    plain, prepared = PUBLISHED[neighbours]
    np.testing.assert_allclose(cknna(a, b, neighbours), plain, rtol=1e-9)
    np.testing.assert_allclose(cknna(prepare(a), prepare(b), neighbours), prepared, rtol=1e-9)


def test_with_all_neighbours_it_is_the_unbiased_cka():
    """By the estimator's definition: means over distinct i, j, q, r (Song et al., equation 4)."""
    a, b = (x[:7] for x in _vectors())
    k, m, n = a @ a.T, b @ b.T, 7

    def hsic(k, m):
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        total = 0.0
        for i, j in pairs:
            others = [x for x in range(n) if x not in (i, j)]
            pair_sum = sum(m[q, r] for q in others for r in others if q != r)
            row_sum = sum(m[i, q] for q in others)
            total += k[i, j] * (m[i, j] + pair_sum / ((n - 2) * (n - 3)) - 2 * row_sum / (n - 2))
        return total / (n * (n - 1))

    expected = hsic(k, m) / (np.sqrt(hsic(k, k) * hsic(m, m)) + 1e-6)
    np.testing.assert_allclose(cknna(a, b, 6), expected, rtol=1e-9)


def test_equal_representations_are_aligned_and_rotation_changes_nothing():
    a, b = (prepare(x) for x in _vectors())
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    assert cknna(a, a, 5) > 0.9999
    assert cknna(a, a @ rotation, 5) > 0.9999
    np.testing.assert_allclose(cknna(a @ rotation, b, 5), cknna(a, b, 5), rtol=1e-9)


def test_unrelated_representations_are_not_aligned():
    random = np.random.default_rng(0)
    first, second = (prepare(random.normal(size=(300, 16))) for _ in range(2))
    assert abs(cknna(first, second, 10)) < 0.05


def test_rows_have_length_one_and_outliers_are_clipped():
    x = np.array([[3.0, 4.0], [-100.0, 1.0]])
    np.testing.assert_allclose(prepare(x, None), [[0.6, 0.8], [-0.99995, 0.0099995]], atol=1e-6)
    # Of four magnitudes, the one at three quarters is 100, at half 4.
    clipped = np.array([[3.0, 4.0], [-4.0, 1.0]])
    expected = clipped / np.linalg.norm(clipped, axis=1, keepdims=True)
    np.testing.assert_allclose(prepare(x, 0.5), expected)


@pytest.mark.parametrize(
    ("rows", "others", "neighbours", "words"),
    [
        (5, 6, 2, "5 and 6 rows"),
        (5, 5, 5, "5 neighbours of 5 rows"),
        (5, 5, 1, "1 neighbours of 5 rows"),
        (3, 3, 2, "at least 4 rows"),
    ],
)
def test_what_does_not_fit_is_named(rows, others, neighbours, words):
    with pytest.raises(ValueError, match=words):
        cknna(np.eye(rows, 8), np.eye(others, 8), neighbours)
    with pytest.raises(ValueError, match="not finite"):
        prepare(np.full((4, 2), np.inf))
