"""Scores of a run's checkpoints: stored in a file, plotted over steps, and compared with other runs.

A line of the file is `{"step": 2000, "scores": {name: {"value", "chance", "count", "ci95"}}}`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuna_jax.emoji.evaluation.report import GOALS, MEANING
from tuna_jax.evaluation.metrics.accuracy import Score
from tuna_jax.utils.text_files import json_line, read_log

FILE = "learning.jsonl"
_COLOURS = ("#2f5fd0", "#d0642f", "#2f9e62", "#8a4fc4", "#6a6f7a")

Curve = dict[int, dict[str, dict[str, Any]]]
"""Step -> name of a score -> its entry in summary.json."""


def read(folder: str | os.PathLike[str]) -> Curve:
    """The stored scores of the run in this folder; an incomplete last line is ignored."""
    path, curve = Path(folder) / FILE, {}
    for entry in read_log(path) if path.is_file() else ():
        curve[int(entry["step"])] = entry["scores"]
    return dict(sorted(curve.items()))


def append(folder: str | os.PathLike[str], step: int, scores: Mapping[str, Score]) -> None:
    """Appends the scores of a checkpoint."""
    entry = {"step": step, "scores": {name: score.as_json() for name, score in scores.items()}}
    with (Path(folder) / FILE).open("a", encoding="utf-8") as file:
        file.write(json_line(entry))


def table(runs: Mapping[str, Curve], names: Sequence[str] = tuple(MEANING)) -> str:
    """A Markdown table with a row per score and a column per run.

    It compares the last step that all runs have, so that their budgets are equal; if they share no step, the last step
    of each run.
    """
    shared = set.intersection(*map(set, runs.values()))
    steps = {run: max(shared or curve) for run, curve in runs.items()}
    lines = [
        f"| score (chance) | {' | '.join(f'{run}, step {step}' for run, step in steps.items())} |",
        "|---" * (1 + len(runs)) + "|",
    ]
    for name in names:
        scores = [curve[steps[run]].get(name) for run, curve in runs.items()]
        cells = [_format(score) if score else "" for score in scores]
        if any(cells):
            chance = next(score["chance"] for score in scores if score)
            title = MEANING.get(name, (name,))[0]
            lines.append(f"| {title} ({100 * chance:.1f} %) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _format(score: Mapping[str, Any]) -> str:
    low, high = score["ci95"]
    return f"{100 * score['value']:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def plot(
    runs: Mapping[str, Curve],
    names: Sequence[str] = tuple(MEANING),
    goals: Mapping[str, float] = GOALS,
) -> bytes:
    """PNG of the scores over steps: a panel per score, a line per run with its 95 % band.

    Goals are dashed, chance levels dotted.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in names if any(name in at for c in runs.values() for at in c.values())]
    columns = min(4, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.1 * columns, 2.1 * rows), squeeze=False, sharex=True
    )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for colour, (run, curve) in zip(_COLOURS, runs.items(), strict=False):
            points = [(step, at[name]) for step, at in curve.items() if name in at]
            if not points:
                continue
            steps = [step for step, _ in points]
            low, high = ([100 * p["ci95"][side] for _, p in points] for side in (0, 1))
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            values = [100 * p["value"] for _, p in points]
            axis.plot(
                steps, values, color=colour, marker="o", markersize=2.5, linewidth=1.4, label=run
            )
            axis.axhline(100 * points[-1][1]["chance"], color="#c43030", linestyle=":", linewidth=1)
        if name in goals:
            axis.axhline(100 * goals[name], color="#188050", linestyle="--", linewidth=1)
        axis.set_ylim(0, 102)
        axis.set_title(MEANING.get(name, (name,))[0], fontsize=8.5, loc="left", color="#30343c")
        axis.tick_params(labelsize=7, colors="#6a6f7a")
        axis.grid(True, color="#eceef2", linewidth=0.8)
    if len(runs) > 1:
        legends = [axis.get_legend_handles_labels() for axis in axes.flat]
        lines = {label: line for legend in legends for line, label in zip(*legend, strict=True)}
        layout = {"loc": "lower center", "ncols": max(1, len(lines)), "fontsize": 8}
        figure.legend(lines.values(), lines.keys(), frameon=False, **layout)
    figure.tight_layout(rect=(0, 0.04 if len(runs) > 1 else 0, 1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()
