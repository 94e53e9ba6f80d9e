"""A sweep's report.html: failures, scores, curves over steps, two runs compared, and results item by item."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuna_jax.evaluation import html
from tuna_jax.sweeps import plots, results
from tuna_jax.sweeps.cell_store import Cell, Record
from tuna_jax.sweeps.results import Row
from tuna_jax.utils.atomic_io import atomic_file

_MAX_ITEMS = 8
_MAX_COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class _ScoreLine:
    """A metric with one choice of settings, over steps."""

    metric: str
    label: str
    by_step: Mapping[int, Mapping[str, Any]]
    chance: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class _Result:
    """What one column holds of an item: an image, or a text."""

    verdict: str
    image: bytes | None
    text: str


@dataclasses.dataclass(frozen=True)
class _Item:
    """A row of the table of items; `image` is the input of a question."""

    prompt: str
    expected: str
    image: bytes | None
    results: list[_Result | None]


@dataclasses.dataclass(frozen=True)
class _TaskSection:
    """A task's part of the page."""

    name: str
    steps: list[int]
    scores: list[_ScoreLine]
    curves: bytes | None
    columns: list[tuple[int, str]]
    items: list[_Item]
    has_answers: bool


def write(path: Path, title: str, rows: Sequence[Row], cells: Path, note: str = "") -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the page.
        title: its heading.
        rows: all results; see `results.read`.
        cells: the folder of the cells that they name.
        note: the footer.
    """
    succeeded = unique([row for row in rows if "error" not in row])
    runs = list(dict.fromkeys(row["run"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in succeeded))
    page = html.render(
        "sweeps/report_page.html.j2",
        title=title,
        rows=rows,
        runs=runs,
        steps=sorted({row["step"] for row in rows}),
        failures=[
            row if "error" in row else {**row, "error": _some_failed(row["failed_items"])}
            for row in rows
            if "error" in row or "failed_items" in row
        ],
        differences=comparison(succeeded, runs[0], runs[1], cells) if len(runs) > 1 else [],
        tasks=[
            _section(task, [row for row in succeeded if row["task"] == task], cells)
            for task in tasks
        ],
        number=number,
        settings_text=results.settings_text,
        note=note,
    )
    with atomic_file(path) as scratch:
        scratch.write_text(page, encoding="utf-8")


def _some_failed(failed: Mapping[str, Any]) -> str:
    return f"{failed['count']} items of it, the first: {failed['error']}"


def unique(rows: Sequence[Row]) -> list[Row]:
    """The rows without repetitions of a cell: rows that differ only in a setting that their task does not use."""
    first = {(row["run"], row["step"], row["task"], row["key"]): row for row in reversed(rows)}
    return [row for row in rows if row in first.values()]


def number(metric: str, value: float) -> str:
    """A value as text: proportions in per cent, decibels in dB."""
    if metric.endswith("_db"):
        return f"{value:.2f} dB"
    return f"{100 * value:.1f} %" if -1 <= value <= 1 else f"{value:.4g}"


def _section(name: str, rows: Sequence[Row], cells: Path) -> _TaskSection:
    columns, items, has_answers = _items(rows, cells)
    steps = sorted({row["step"] for row in rows})
    curves = plots.over_steps(rows)
    return _TaskSection(name, steps, _scores(rows), curves, columns, items, has_answers)


def _scores(rows: Sequence[Row]) -> list[_ScoreLine]:
    runs = len({row["run"] for row in rows})
    lines = []
    for metric in dict.fromkeys(name for row in rows for name in row["scores"]):
        by_label: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if metric in row["scores"]:
                by_step = by_label.setdefault(results.label(row, runs), {})
                by_step[row["step"]] = row["scores"][metric]
        for label, by_step in by_label.items():
            score = next(iter(by_step.values()))
            lines.append(_ScoreLine(metric, label, by_step, score.get("chance"), score["count"]))
    return lines


def _items(rows: Sequence[Row], cells: Path) -> tuple[list[tuple[int, str]], list[_Item], bool]:
    """The first items' results side by side: the columns (step, label), the items, and whether they are answers."""
    runs = len({row["run"] for row in rows})
    ordered = sorted(rows, key=lambda row: (row["step"], results.label(row, runs)))
    if len(ordered) > _MAX_COLUMNS:  # Evenly spaced, the last included.
        spacing = (len(ordered) - 1) / (_MAX_COLUMNS - 1)
        ordered = [ordered[round(i * spacing)] for i in range(_MAX_COLUMNS)]
    columns = [(row["step"], results.label(row, runs)) for row in ordered]
    opened = [Cell(cells / row["key"]) for row in ordered]
    records = [cell.records() for cell in opened]
    files = [cell.files() for cell in opened]
    has_answers = any("text" in record for column in records for record in column.values())
    items = []
    for item in sorted(set().union(*map(set, files)))[:_MAX_ITEMS]:
        first = next(column[item] for column in records if item in column)
        image = next(column[item] for column in files if item in column) if has_answers else None
        cell_results = [
            _result(row, column.get(item), None if has_answers else images.get(item))
            for row, column, images in zip(ordered, records, files, strict=True)
        ]
        items.append(
            _Item(
                first["prompt"],
                first.get("expected", "") if has_answers else "",
                image.read_bytes() if image else None,
                cell_results,
            )
        )
    return columns, items, has_answers


def _result(row: Row, record: Record | None, image: Path | None) -> _Result | None:
    if record is None:
        return None
    verdict = record["values"].get(row["verdict"])
    word = "" if verdict is None else "right" if verdict == 1 else "wrong"
    return _Result(word, image.read_bytes() if image else None, record.get("text", ""))


def comparison(
    rows: Sequence[Row], first: str, second: str, cells: Path
) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(task, settings and steps, metric, difference) of two runs, at the last step for which both have a result.

    Runs that share no step are compared at their own last steps.
    """
    by_choice: dict[tuple[str, str], dict[str, dict[int, Row]]] = {}
    for row in rows:
        by_run = by_choice.setdefault((row["task"], results.label(row)), {})
        by_run.setdefault(row["run"], {})[row["step"]] = row
    differences = []
    for (task, settings), by_run in by_choice.items():
        if first not in by_run or second not in by_run:
            continue
        shared = set(by_run[first]) & set(by_run[second])
        at = [max(shared or by_run[run]) for run in (first, second)]
        pair = [by_run[run][step] for run, step in zip((first, second), at, strict=True)]
        records = [Cell(cells / row["key"]).records() for row in pair]
        where = f"step {at[0]}" if at[0] == at[1] else f"steps {at[0]} and {at[1]}"
        for metric in pair[0]["scores"]:
            values = [results.metric_values(column, metric) for column in records]
            gap = results.difference(*values)
            if gap is not None:
                gap |= {"values": [row["scores"][metric]["value"] for row in pair]}
                differences.append(
                    (task, f"{settings} ({where})" if settings else where, metric, gap)
                )
    return differences
