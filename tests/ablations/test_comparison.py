"""Means, intervals and verdicts over seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from tests.ablations import studies
from tuna_jax.ablations import comparison, study
from tuna_jax.ablations.comparison import Estimate


def test_the_interval_is_student_s() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 5)
    result = comparison.estimate(list(values))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert result.mean == pytest.approx(values.mean()) and result.count == 5
    one = comparison.estimate([0.25])
    assert one.mean == 0.25 and math.isinf(one.low) and math.isinf(one.high)


def test_differences_are_paired_by_seed() -> None:
    random = np.random.default_rng(1)
    noise = random.normal(0, 1, 6)
    first = {seed: noise[seed] + 0.1 for seed in range(6)}
    second = {9: 100.0} | {seed: noise[seed] for seed in reversed(range(6))}
    gap = comparison.paired(first, second)
    assert gap is not None and gap.count == 6
    assert gap.mean == pytest.approx(0.1) and gap.high - gap.low < 1e-9
    assert comparison.paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("low", "high", "lower", "verdict"),
    [
        (0.1, 0.2, False, "holds"),
        (-0.2, -0.1, False, "does not hold"),
        (-0.1, 0.2, False, "undecided"),
        (0.1, 0.2, True, "does not hold"),
        (-0.2, -0.1, True, "holds"),
        (-math.inf, math.inf, False, "undecided"),
    ],
)
def test_verdicts(low: float, high: float, lower: bool, verdict: str) -> None:
    middle = 0.0 if math.isinf(low) else (low + high) / 2
    assert comparison.verdict(Estimate(middle, low, high, 5), lower) == verdict


def test_a_claim_compares_last_steps() -> None:
    parsed = study.parse(studies.values(arms=studies.VALUES["arms"] | {"blue": {"steps": 6}}))
    rows = [
        {"arm": arm, "seed": seed, "step": step, "task": "name", "metric": "exact", "value": value}
        for arm, step, value in (
            ("red", 4, 0.1),
            ("red", 2, 0.9),  # After the last step, as rows of several workdirs may lie.
            ("blue", 4, 0.0),
            ("blue", 6, 0.3),
        )
        for seed, value in ((0, value), (1, value + 0.01))
    ]
    (tested,) = comparison.test_claims(parsed, rows)
    assert tested.difference is not None
    assert tested.difference.mean == pytest.approx(0.2) and tested.verdict == "holds"
