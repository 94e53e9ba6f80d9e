"""Accuracies and their intervals."""

import numpy as np
import pytest

from tuna_jax.evaluation.metrics.accuracy import Score, bootstrap, commonest_share, interval, wilson


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
)
def test_wilson(successes, count, low, high):
    """The first three are textbook values."""
    assert wilson(successes, count) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("count", [2, 12, 60])
def test_bootstrap_resamples_as_reports_before_scipy_did(count):
    """The intervals of earlier reports, which only NumPy computed, from the same seed."""
    values = np.random.default_rng(count).normal(size=count)
    random = np.random.default_rng(0)
    means = [values[random.integers(count, size=count)].mean() for _ in range(2000)]
    expected = np.percentile(means, (2.5, 97.5))
    np.testing.assert_allclose(bootstrap(values), expected, rtol=0, atol=1e-12)
    assert bootstrap(values) == bootstrap(values)


def test_interval_of_one_value_and_of_equal_values():
    assert interval(np.array([0.5])) == (0.5, 0.5)
    assert bootstrap(np.full(7, 0.25)) == (0.25, 0.25)
    assert interval(np.array([1.0])) == wilson(1, 1)


def test_scores():
    score = Score.of([True, True, False, True], 0.25, {"pixels": [True] * 4})
    assert (score.value, score.chance, score.count) == (0.75, 0.25, 4)
    assert score.by == {"pixels": 1.0}
    entry = score.as_json()
    assert entry["value"] == 0.75
    assert entry["ci95"][0] < 0.75 < entry["ci95"][1]


def test_commonest_share():
    assert commonest_share(["a", "b", "a", "c"]) == 0.5
    assert commonest_share([]) == 0.0
