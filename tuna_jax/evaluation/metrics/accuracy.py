"""Accuracies and means with what belongs to them: chance level, number of cases, and a 95 % interval (SciPy)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

_CONFIDENCE = 0.95
_RESAMPLES = 2000
_RESAMPLED_VALUES = 4_000_000  # held in memory at once


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; (0, 1) if `count` is 0."""
    if count == 0:
        return 0.0, 1.0
    from scipy import stats  # Its import takes a second, which every training run would wait for.

    test = stats.binomtest(successes, count)
    bounds = test.proportion_ci(confidence_level=_CONFIDENCE, method="wilson")
    return float(bounds.low), float(bounds.high)


def bootstrap(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Deterministic: the resampling always starts from seed 0. The interval of a single value is that value.
    """
    if len(values) < 2:
        return float(values[0]), float(values[0])
    from scipy import stats

    bounds = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _RESAMPLED_VALUES // len(values)),
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(bounds.low), float(bounds.high)


def interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The 95 % interval of the mean of at least one value: Wilson's if all are 0 or 1, else the bootstrap's."""
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(int(values.sum()), len(values))
    return bootstrap(values)


@dataclasses.dataclass(frozen=True)
class Score:
    """An accuracy.

    Attributes:
        value: the share of correct cases.
        chance: the expected share of guesses made without the input.
        count: the number of cases.
        ci95: Wilson's 95 % interval of the value.
        by: the share by part, for example by judge.
    """

    value: float
    chance: float
    count: int
    ci95: tuple[float, float]
    by: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        right: Sequence[bool],
        chance: float,
        by: Mapping[str, Sequence[bool]] | None = None,
    ) -> Score:
        """The score of a list of verdicts."""
        count, successes = len(right), sum(map(bool, right))
        parts = {
            name: sum(map(bool, part)) / max(len(part), 1) for name, part in (by or {}).items()
        }
        return cls(successes / max(count, 1), chance, count, wilson(successes, count), parts)

    def as_json(self) -> dict[str, object]:
        """Plain values for summary.json."""
        entry: dict[str, object] = {
            "value": round(self.value, 4),
            "chance": round(self.chance, 6),
            "count": self.count,
            "ci95": [round(bound, 4) for bound in self.ci95],
        }
        if self.by:
            entry["by"] = {name: round(value, 4) for name, value in self.by.items()}
        return entry


def commonest_share(answers: Sequence[str]) -> float:
    """The accuracy of always giving the most common answer: the chance level of a question."""
    return Counter(answers).most_common(1)[0][1] / len(answers) if answers else 0.0
