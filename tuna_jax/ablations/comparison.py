"""Means over seeds, paired differences between arms, and what they say about a study's claims."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy import stats

from tuna_jax.ablations.study import Claim, Study
from tuna_jax.utils.text_files import json_line

_CONFIDENCE = 0.95

Row = dict[str, Any]
"""A line of a study's results.jsonl: arm, seed, step, task, metric, value, count, chance (or None), run."""
Verdict = Literal["holds", "does not hold", "undecided"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the seeds.
        low, high: its 95 % interval by Student's t; infinite for one seed.
        count: number of seeds.
    """

    mean: float
    low: float
    high: float
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one number per seed with its 95 % interval (Student's t with n - 1 degrees of freedom).

    Raises:
        ValueError: there are no values.
    """
    numbers = np.asarray(values, float)
    if not len(numbers):
        raise ValueError("there are no values to average")
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Estimate(mean, -np.inf, np.inf, 1)
    error = float(stats.sem(numbers))
    half = float(stats.t.ppf(0.5 + _CONFIDENCE / 2, len(numbers) - 1)) * error
    return Estimate(mean, mean - half, mean + half, len(numbers))


def rows_of(arm: str, seed: int, run: str, results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A study's rows of one run's results."""
    return [
        {
            "arm": arm,
            "seed": seed,
            "step": row["step"],
            "task": row["task"],
            "metric": metric,
            "value": score["value"],
            "count": score["count"],
            "chance": score.get("chance"),
            "run": run,
        }
        for row in results
        for metric, score in row.get("scores", {}).items()
    ]


def metrics(rows: Sequence[Row]) -> list[str]:
    """'TASK/METRIC' of all rows, each once."""
    return list(dict.fromkeys(name(row) for row in rows))


def name(row: Mapping[str, Any]) -> str:
    """'TASK/METRIC' of a row."""
    return f"{row['task']}/{row['metric']}"


def by_seed(rows: Sequence[Row], arm: str, metric: str, step: int) -> dict[int, float]:
    """One metric of one arm at one step, by seed."""
    return {
        row["seed"]: row["value"]
        for row in rows
        if row["arm"] == arm and row["step"] == step and name(row) == metric
    }


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """The mean of first - second over the seeds that both have; None if they share none."""
    shared = [seed for seed in first if seed in second]
    return estimate([first[seed] - second[seed] for seed in shared]) if shared else None


@dataclasses.dataclass(frozen=True)
class Tested:
    """What a study's runs say about a claim.

    Attributes:
        name, claim: the claim.
        better, worse: the two arms' means.
        difference: better - worse in pairs; None without seeds that both arms have.
        verdict: 'holds' if the interval of the difference lies on the predicted side of zero, 'does not hold' if it
            lies on the other, 'undecided' if it contains zero.
    """

    name: str
    claim: Claim
    better: Estimate | None
    worse: Estimate | None
    difference: Estimate | None
    verdict: Verdict


def test_claims(study: Study, rows: Sequence[Row]) -> list[Tested]:
    """Every claim of the study against the results of the last step."""
    return [_tested(study, label, claim, rows) for label, claim in study.claims.items()]


def _tested(study: Study, label: str, claim: Claim, rows: Sequence[Row]) -> Tested:
    better, worse = (
        by_seed(rows, arm, claim.metric, study.steps(arm)) for arm in (claim.better, claim.worse)
    )
    difference = paired(better, worse)
    means = [estimate(list(values.values())) if values else None for values in (better, worse)]
    return Tested(label, claim, means[0], means[1], difference, verdict(difference, claim.lower))


def verdict(difference: Estimate | None, lower: bool = False) -> Verdict:
    """See `Tested`."""
    if difference is None or difference.low <= 0 <= difference.high:
        return "undecided"
    return "holds" if (difference.low > 0) != lower else "does not hold"


def lines(rows: Sequence[Row]) -> str:
    """The rows as JSON lines."""
    return "".join(json_line(row) for row in rows)
