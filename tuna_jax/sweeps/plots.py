"""Scores of a sweep over training steps, as an image."""

from __future__ import annotations

import io
from collections.abc import Sequence

from tuna_jax.sweeps import results

_COLOURS = ("#2f5fd0", "#d0642f", "#2f9e62", "#8a4fc4", "#6a6f7a", "#b03a6f", "#0f8f9c", "#9c7a0f")
_LINE_STYLES = ("-", "--", "-.", ":")  # The next one each time the colours are used up.
_PANEL_WIDTH, _PANEL_HEIGHT, _LEGEND_LINE = 3.1, 2.3, 0.2  # inches
_LEGEND_SIZE = 8  # points


def over_steps(rows: Sequence[results.Row]) -> bytes | None:
    """A task's results as a PNG file; None if they are of one step only.

    One panel per metric; one line per run and choice of settings, with its 95 % band; chance level dotted in red.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if len({row["step"] for row in rows}) < 2:
        return None
    runs = len({row["run"] for row in rows})
    metrics = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    labels = list(dict.fromkeys(results.label(row, runs) for row in rows))
    columns = min(4, len(metrics))
    lines = -(-len(metrics) // columns)
    width = max(2, columns) * _PANEL_WIDTH
    legend_columns = _legend_columns(labels, width)
    legend_lines = -(-len(labels) // legend_columns) if len(labels) > 1 else 0
    height = lines * _PANEL_HEIGHT + legend_lines * _LEGEND_LINE + 0.2
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(width, height), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for i, label in enumerate(labels):
            scores = sorted(
                (row["step"], row["scores"][metric])
                for row in rows
                if results.label(row, runs) == label and metric in row["scores"]
            )
            colour = _COLOURS[i % len(_COLOURS)]
            style = _LINE_STYLES[i // len(_COLOURS) % len(_LINE_STYLES)]
            steps = [step for step, _ in scores]
            low, high = ([score["ci95"][bound] for _, score in scores] for bound in (0, 1))
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            values = [score["value"] for _, score in scores]
            axis.plot(steps, values, style, color=colour, marker="o", markersize=3, label=label)
            if scores and "chance" in scores[-1][1]:
                axis.axhline(scores[-1][1]["chance"], color="#c43030", linestyle=":", linewidth=1)
        axis.set_title(metric, fontsize=9, loc="left", color="#30343c")
        axis.tick_params(labelsize=7, colors="#6a6f7a")
        axis.grid(True, color="#eceef2", linewidth=0.8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color("#d5d8df")
    if legend_lines:
        handles, names = axes.flat[0].get_legend_handles_labels()
        figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=legend_columns,
            fontsize=_LEGEND_SIZE,
            frameon=False,
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """How many labels fit side by side into a figure of this width in inches."""
    character = 0.6 * _LEGEND_SIZE / 72  # On average, in inches.
    widest = max(map(len, labels)) * character + 0.6  # The line sample and the gaps.
    return max(1, min(4, len(labels), int(width / widest)))
