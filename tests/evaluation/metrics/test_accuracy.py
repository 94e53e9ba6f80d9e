"""Shares and their intervals."""

import pytest

from tuna_jax.evaluation.metrics.accuracy import Score, commonest_share, wilson


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
)
def test_wilson(successes, count, low, high):
    """The first three are textbook values."""
    found = wilson(successes, count)
    assert found[0] == pytest.approx(low, abs=1e-4)
    assert found[1] == pytest.approx(high, abs=1e-4)


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
