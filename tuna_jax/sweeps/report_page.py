"""A sweep's report.html: what failed, scores, curves over steps, two runs compared, and what was drawn and said."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuna_jax.evaluation.html import inline, whole_page
from tuna_jax.sweeps import plots, results
from tuna_jax.sweeps.cell_store import Cell
from tuna_jax.sweeps.results import Row
from tuna_jax.utils.atomic_io import atomic_file

_ITEMS = 8
_COLUMNS = 8


def write(path: Path, title: str, rows: Sequence[Row], cells: Path, note: str = "") -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the page.
        title: its heading.
        rows: all results; see `results.read`.
        cells: the folder of the cells that they name.
        note: below everything.
    """
    good = unique([row for row in rows if "error" not in row])
    tasks = list(dict.fromkeys(row["task"] for row in good))
    runs = list(dict.fromkeys(row["run"] for row in rows))
    steps = sorted({row["step"] for row in rows})
    told = (
        f"{_count(len(rows), 'result')} of {_count(len(steps), 'checkpoint step')} of "
        f"{' and '.join(runs)}. An interval is at 95 %: Wilson's for shares, the bootstrap's for other means."
    )
    parts = [f"<h1>{html.escape(title)}</h1><p class='soft'>{html.escape(told)}</p>"]
    parts.append(_failures([row for row in rows if "error" in row]))
    for task in tasks:
        of_task = [row for row in good if row["task"] == task]
        parts.append(f"<h2>{html.escape(task)}</h2>{_scores(of_task)}")
        drawn = plots.over_steps(of_task)
        if drawn is not None:
            parts.append(f'<img class="curves" alt="{html.escape(task)}" src="{inline(drawn)}">')
        parts.append(_beside(of_task, cells))
    if len(runs) > 1:
        parts.insert(2, _comparison(good, runs[0], runs[1], cells))
    if note:
        parts.append(f"<footer>{html.escape(note)}</footer>")
    with atomic_file(path) as scratch:
        scratch.write_text(whole_page(title, "".join(parts)), encoding="utf-8")


def unique(rows: Sequence[Row]) -> list[Row]:
    """Without rows that tell of a cell again, because the setting in which they differ does not bear on their task."""
    known = {(row["run"], row["step"], row["task"], row["key"]): row for row in reversed(rows)}
    return [row for row in rows if row in known.values()]


def number(metric: str, value: float) -> str:
    """A value for people: a share in per cent, decibels as such."""
    if metric.endswith("_db"):
        return f"{value:.2f} dB"
    return f"{100 * value:.1f} %" if -1 <= value <= 1 else f"{value:.4g}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def _failures(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td>{html.escape(row['run'])}</td><td class='number'>{row['step']}</td>"
        f"<td>{html.escape(row['task'])}</td><td>{html.escape(str(row['settings']))}</td>"
        f"<td class='no'>{html.escape(row['error'])}</td></tr>"
        for row in rows
    )
    head = "<tr><th>run</th><th>step</th><th>task</th><th>settings</th><th>reason</th></tr>"
    return f"<h2>{_count(len(rows), 'result')} failed</h2><div class='scroll'><table>{head}{lines}</table></div>"


def _scores(rows: Sequence[Row]) -> str:
    """A metric and a choice of settings a row, a step a column."""
    steps = sorted({row["step"] for row in rows})
    runs = len({row["run"] for row in rows})
    metrics = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    lines = []
    for metric in metrics:
        by_label: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if metric in row["scores"]:
                by_label.setdefault(results.label(row, runs), {})[row["step"]] = row["scores"][
                    metric
                ]
        for name, at in by_label.items():
            some = next(iter(at.values()))
            chance = number(metric, some["chance"]) if "chance" in some else ""
            values = "".join(
                f"<td class='number'>{_told(metric, at.get(step))}</td>" for step in steps
            )
            lines.append(
                f"<tr><td><b>{html.escape(metric)}</b></td><td>{html.escape(name)}</td>{values}"
                f"<td class='number'>{chance}</td><td class='number'>{some['count']}</td></tr>"
            )
    columns = "".join(f"<th>step {step}</th>" for step in steps)
    head = f"<tr><th>metric</th><th>settings</th>{columns}<th>chance</th><th>cases</th></tr>"
    return f"<div class='scroll'><table>{head}{''.join(lines)}</table></div>"


def _told(metric: str, score: Mapping[str, Any] | None) -> str:
    if score is None:
        return ""
    low, high = (number(metric, bound) for bound in score["ci95"])
    return f"<b>{number(metric, score['value'])}</b><br><span class='soft'>{low} to {high}</span>"


def _beside(rows: Sequence[Row], cells: Path) -> str:
    """What was drawn or said for the first items, a checkpoint and choice of settings a column."""
    runs = len({row["run"] for row in rows})
    ordered = sorted(rows, key=lambda row: (row["step"], results.label(row, runs)))
    if len(ordered) > _COLUMNS:  # Evenly spaced ones, the last among them.
        wanted = [round(i * (len(ordered) - 1) / (_COLUMNS - 1)) for i in range(_COLUMNS)]
        ordered = [ordered[i] for i in wanted]
    opened = [Cell(cells / row["key"]) for row in ordered]
    records = [cell.records() for cell in opened]
    pictures = [cell.files() for cell in opened]
    items = sorted(set().union(*map(set, pictures)))[:_ITEMS]
    if not items:
        return ""
    said = any("text" in record for some in records for record in some.values())
    lines = []
    for item in items:
        first = next(some[item] for some in records if item in some)
        asked = html.escape(first["asked"])
        if said:
            shown = next(some[item] for some in pictures if item in some)
            asked = f"<img alt='' src='{inline(shown.read_bytes())}'>{asked}"
            asked += f"<br><b>{html.escape(first.get('expected', ''))}</b>"
        columns = "".join(
            _item(row, some.get(item), None if said else seen.get(item))
            for row, some, seen in zip(ordered, records, pictures, strict=True)
        )
        lines.append(f"<tr><td class='asked'>{asked}</td>{columns}</tr>")
    names = "".join(
        f"<th>step {r['step']}<br>{html.escape(results.label(r, runs))}</th>" for r in ordered
    )
    return f"<div class='scroll'><table class='beside'><tr><th>asked</th>{names}</tr>{''.join(lines)}</table></div>"


def _item(row: Row, record: Mapping[str, Any] | None, picture: Path | None) -> str:
    if record is None:
        return "<td></td>"
    right = record["values"].get(row["verdict"])
    word = "" if right is None else "right" if right == 1 else "wrong"
    if picture is not None:
        alt = html.escape(record["asked"])
        return f"<td><figure class='{word}'><img alt='{alt}' src='{inline(picture.read_bytes())}'></figure></td>"
    kind = {"right": "yes", "wrong": "no", "": ""}[word]
    return f"<td class='{kind}'>{html.escape(record.get('text', ''))}</td>"


def comparison(
    rows: Sequence[Row], first: str, second: str, cells: Path
) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(task, settings and steps, metric, difference) of two runs, at the last step that both have a result of.

    Where they share no step, at each one's last.
    """
    by_choice: dict[tuple[str, str], dict[str, dict[int, Row]]] = {}
    for row in rows:
        place = by_choice.setdefault((row["task"], results.label(row)), {})
        place.setdefault(row["run"], {})[row["step"]] = row
    found = []
    for (task, settings), by_run in by_choice.items():
        if first not in by_run or second not in by_run:
            continue
        shared = set(by_run[first]) & set(by_run[second])
        at = [max(shared or by_run[run]) for run in (first, second)]
        pair = [by_run[run][step] for run, step in zip((first, second), at, strict=True)]
        records = [Cell(cells / row["key"]).records() for row in pair]
        where = f"step {at[0]}" if at[0] == at[1] else f"steps {at[0]} and {at[1]}"
        for metric in pair[0]["scores"]:
            values = [results.metric_values(some, metric) for some in records]
            gap = results.difference(*values)
            if gap is not None:
                gap |= {"values": [row["scores"][metric]["value"] for row in pair]}
                found.append((task, f"{settings} ({where})" if settings else where, metric, gap))
    return found


def _comparison(rows: Sequence[Row], first: str, second: str, cells: Path) -> str:
    lines = []
    for task, settings, metric, gap in comparison(rows, first, second, cells):
        low, high = gap["ci95"]
        kind = "yes" if low > 0 else "no" if high < 0 else ""
        values = "".join(f"<td class='number'>{number(metric, v)}</td>" for v in gap["values"])
        lines.append(
            f"<tr><td><b>{html.escape(task)}</b></td><td>{html.escape(settings)}</td><td>{html.escape(metric)}</td>"
            f"{values}<td class='number {kind}'>{number(metric, gap['value'])}</td>"
            f"<td class='number'>{number(metric, low)} to {number(metric, high)}</td>"
            f"<td class='number'>{gap['count']}</td></tr>"
        )
    names = (html.escape(name) for name in (first, second))
    head = "<th>task</th><th>settings</th><th>metric</th>" + "".join(f"<th>{n}</th>" for n in names)
    head += "<th>difference</th><th>95 % interval, paired bootstrap</th><th>cases</th>"
    return (
        f"<h2>{html.escape(second)} against {html.escape(first)}</h2><p class='soft'>Item by item: the same questions, "
        "prompts and noise. A difference is coloured where its interval leaves out zero.</p>"
        f"<div class='scroll'><table><tr>{head}</tr>{''.join(lines)}</table></div>"
    )
