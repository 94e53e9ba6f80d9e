"""From items to scores, and from two runs' items to the difference between them.

A score is the mean of a metric over the items that it applies to, with a 95 % interval: Wilson's where every value is
0 or 1, else the bootstrap's. Two runs are compared item by item (the same question, the same noise), so the interval of
their difference is that of a paired bootstrap.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuna_jax.evaluation.metrics.accuracy import bootstrap, interval
from tuna_jax.sweeps.cell_store import Record
from tuna_jax.utils.atomic_io import atomic_file

FILE = "results.jsonl"

Row = dict[str, Any]
"""A line of results.jsonl: run, step, ema, task, settings, key, and either scores or error."""


def metric_values(records: Mapping[int, Record], metric: str) -> dict[int, float]:
    """A metric of the items that it applies to."""
    values = {item: record["values"].get(metric) for item, record in records.items()}
    return {item: value for item, value in values.items() if value is not None}


def scores(
    records: Mapping[int, Record], chance: Mapping[str, float]
) -> dict[str, dict[str, float | int | list[float]]]:
    """By metric: value, count, ci95 and, if it is known, chance. A metric that applies to no item is left out."""
    found = {}
    for metric in dict.fromkeys(name for record in records.values() for name in record["values"]):
        values = np.array(list(metric_values(records, metric).values()))
        if len(values):
            low, high = interval(values)
            found[metric] = {"value": float(values.mean()), "count": len(values)}
            found[metric]["ci95"] = [low, high]
            if metric in chance:
                found[metric]["chance"] = chance[metric]
    return found


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> dict[str, Any] | None:
    """How far the second is above the first: value, ci95 and count over the items of both; None: there are none."""
    shared = [item for item in first if item in second]
    if not shared:
        return None
    above = np.array([second[item] - first[item] for item in shared], float)
    low, high = bootstrap(above)
    return {"value": float(above.mean()), "ci95": [low, high], "count": len(shared)}


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is about: of two rows about the same, the later counts."""
    settings = json.dumps(row["settings"], sort_keys=True)
    return row["run"], row["step"], row["task"], settings


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in words: "guidance 2.0, not averaged"."""
    words = {True: "averaged", False: "not averaged"}
    return ", ".join(
        words[bool(value)] if name == "ema" else f"{name} {value}"
        for name, value in settings.items()
    )


def label(row: Row, runs: int = 1) -> str:
    """The settings that a row's task uses, in words; with the run's name if there are several runs."""
    parts = [row["run"] if runs > 1 else "", settings_text(row["applied"])]
    return ", ".join(filter(None, parts))


def read(path: Path) -> list[Row]:
    """The rows of a results.jsonl; none if it is not there. A torn line is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes the rows, whole or not at all."""
    with atomic_file(path) as scratch:
        scratch.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def merged(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """Rows of both by run and step, runs of now first; a row of now replaces one about the same."""
    known = {identity(row): row for row in [*before, *now]}
    runs = list(dict.fromkeys(row["run"] for row in [*now, *before]))
    return sorted(known.values(), key=lambda row: (runs.index(row["run"]), row["step"]))


def table(rows: Sequence[Row]) -> str:
    """All results as text for a terminal."""
    lines = []
    for row in rows:
        settings = " ".join(f"{name}={value}" for name, value in row["settings"].items())
        head = f"{row['run']:16} {row['step']:>7} {row['task']:20} {settings:28}"
        if row.get("error"):
            lines.append(f"{head} FAILED: {row['error']}")
            continue
        for metric, score in row["scores"].items():
            low, high = score["ci95"]
            lines.append(
                f"{head} {metric:16} {score['value']:9.4f} [{low:.4f}, {high:.4f}] n={score['count']}"
            )
    return "\n".join(lines)
