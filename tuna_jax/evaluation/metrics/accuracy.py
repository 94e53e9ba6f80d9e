"""A measured share with what belongs to it: chance, count, and an interval."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share (95 % at z = 1.96); (0, 1) if nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = successes / count, z * z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclasses.dataclass(frozen=True)
class Score:
    """An accuracy.

    Attributes:
        value: the share that was right.
        chance: what a guess without looking would score.
        count: out of how many.
        ci95: Wilson's 95 % interval of the value.
        by: the same share by part, for example by judge.
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
    """What always giving the commonest answer would score: the chance level of a question."""
    return Counter(answers).most_common(1)[0][1] / len(answers) if answers else 0.0


_RESAMPLES = 2000


def interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The 95 % interval of the mean of values, which are not none."""
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(int(values.sum()), len(values))
    return bootstrap(values)


def bootstrap(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean (Efron and Tibshirani 1993, chapter 13); the same every time."""
    random = np.random.default_rng(0)
    means = [
        values[random.integers(len(values), size=len(values))].mean() for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
