"""Scores from items, and the difference between two runs' items.

A score is the mean of a metric over the items that it applies to, with a 95 % interval: Wilson's if every value is 0 or
1, else the bootstrap's. Two runs are compared item by item (same question, same noise), so the interval of their
difference is that of a paired bootstrap.
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
from tuna_jax.utils.text_files import json_line, read_log

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
    """By metric: value, count, ci95 and chance, if known. A metric that applies to no item is left out."""
    by_metric = {}
    for metric in dict.fromkeys(name for record in records.values() for name in record["values"]):
        values = np.array(list(metric_values(records, metric).values()))
        if len(values):
            low, high = interval(values)
            by_metric[metric] = {"value": float(values.mean()), "count": len(values)}
            by_metric[metric]["ci95"] = [low, high]
            if metric in chance:
                by_metric[metric]["chance"] = chance[metric]
    return by_metric


def outcome(records: Mapping[int, Record], chance: Mapping[str, float]) -> dict[str, Any]:
    """The entries of a row that a finished cell gives: `scores`, with `failed_items` if some failed, or `error`.

    `failed_items` has their number, and the reason of the first as `error`. Without any score the row has `error`: a
    score that is not finite is absent.
    """
    reasons = [record["error"] for record in records.values() if record.get("error")]
    by_metric = scores(records, chance)
    if not by_metric:
        return {"error": reasons[0] if reasons else "no item has a score that is finite"}
    failed = {"count": len(reasons), "error": reasons[0]} if reasons else None
    return {"scores": by_metric} | ({"failed_items": failed} if failed else {})


def failures(rows: Iterable[Mapping[str, Any]]) -> int:
    """The number of rows that failed, or of which some items failed."""
    return sum("error" in row or "failed_items" in row for row in rows)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> dict[str, Any] | None:
    """The mean of second - first over their common items: value, ci95 and count; None without common items."""
    shared = [item for item in first if item in second]
    if not shared:
        return None
    differences = np.array([second[item] - first[item] for item in shared], float)
    low, high = bootstrap(differences)
    return {"value": float(differences.mean()), "ci95": [low, high], "count": len(shared)}


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is about; of two rows with the same identity, the later one counts."""
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
    """The rows of a results.jsonl; empty if it does not exist. A truncated line is skipped."""
    return read_log(path) if path.is_file() else []


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes the rows atomically."""
    with atomic_file(path) as scratch:
        scratch.write_text("".join(json_line(row) for row in rows), encoding="utf-8")


def merged(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """Rows of both by run and step, the runs of `now` first; its rows replace earlier ones of the same identity."""
    by_identity = {identity(row): row for row in [*before, *now]}
    runs = list(dict.fromkeys(row["run"] for row in [*now, *before]))
    return sorted(by_identity.values(), key=lambda row: (runs.index(row["run"]), row["step"]))


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
        if failed := row.get("failed_items"):
            lines.append(f"{head} {failed['count']} items FAILED: {failed['error']}")
    return "\n".join(lines)
