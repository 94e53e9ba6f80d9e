"""What a run could do at each of its checkpoints, kept in a file and drawn over steps, one run beside others.

A line of the file is `{"step": 2000, "scores": {name: {"value", "chance", "count", "ci95"}}}`.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuna_jax.emoji.evaluation.report import GOALS, MEANING
from tuna_jax.evaluation.metrics.accuracy import Score

FILE = "learning.jsonl"
_COLOURS = ("#2f5fd0", "#d0642f", "#2f9e62", "#8a4fc4", "#6a6f7a")

Curve = dict[int, dict[str, dict[str, Any]]]
"""Step -> name of a score -> what summary.json says of it."""


def read(folder: str | os.PathLike[str]) -> Curve:
    """What was measured of the run in this folder so far; a torn last line is left out."""
    path, found = Path(folder) / FILE, {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[int(entry["step"])] = entry["scores"]
    return dict(sorted(found.items()))


def append(folder: str | os.PathLike[str], step: int, scores: Mapping[str, Score]) -> None:
    """Adds a checkpoint's scores."""
    entry = {"step": step, "scores": {name: score.as_json() for name, score in scores.items()}}
    with (Path(folder) / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def table(runs: Mapping[str, Curve], names: Sequence[str] = tuple(MEANING)) -> str:
    """Runs beside each other, as Markdown: a score a row, a run a column.

    At the last step that all of them have, so that the budget is the same; where no step is in all, each run's last.
    """
    shared = set.intersection(*map(set, runs.values()))
    steps = {run: max(shared or curve) for run, curve in runs.items()}
    lines = [
        f"| score (chance) | {' | '.join(f'{run}, step {step}' for run, step in steps.items())} |",
        "|---" * (1 + len(runs)) + "|",
    ]
    for name in names:
        found = [curve[steps[run]].get(name) for run, curve in runs.items()]
        told = [_told(score) if score else "" for score in found]
        if any(told):
            chance = next(score["chance"] for score in found if score)
            title = MEANING.get(name, (name,))[0]
            lines.append(f"| {title} ({100 * chance:.1f} %) | {' | '.join(told)} |")
    return "\n".join(lines)


def _told(score: Mapping[str, Any]) -> str:
    low, high = score["ci95"]
    return f"{100 * score['value']:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def plot(
    runs: Mapping[str, Curve],
    names: Sequence[str] = tuple(MEANING),
    goals: Mapping[str, float] = GOALS,
) -> bytes:
    """PNG of the scores over steps: a panel a score, a line a run with its 95 % band; goal dashed, chance dotted."""
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
        shown = [axis.get_legend_handles_labels() for axis in axes.flat]
        lines = {label: line for pair in shown for line, label in zip(*pair, strict=True)}
        place = {"loc": "lower center", "ncols": max(1, len(lines)), "fontsize": 8}
        figure.legend(lines.values(), lines.keys(), frameon=False, **place)
    figure.tight_layout(rect=(0, 0.04 if len(runs) > 1 else 0, 1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()
