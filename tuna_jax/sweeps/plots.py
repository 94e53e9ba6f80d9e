"""Scores of a sweep over steps, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from tuna_jax.sweeps import results

_COLOURS = ("#2f5fd0", "#d0642f", "#2f9e62", "#8a4fc4", "#6a6f7a", "#b03a6f", "#0f8f9c", "#9c7a0f")


def over_steps(rows: Sequence[results.Row]) -> bytes | None:
    """PNG of a task's results: a panel a metric, a line a run and choice of settings with its 95 % band, chance dotted.

    None where there is one step alone.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if len({row["step"] for row in rows}) < 2:
        return None
    runs = len({row["run"] for row in rows})
    metrics = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    columns = min(4, len(metrics))
    lines = -(-len(metrics) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(3.1 * columns, 2.3 * lines + 0.4), squeeze=False
    )
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    labels = list(dict.fromkeys(results.label(row, runs) for row in rows))
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for i, name in enumerate(labels):
            points = sorted(
                (row["step"], row["scores"][metric])
                for row in rows
                if results.label(row, runs) == name and metric in row["scores"]
            )
            colour, steps = _COLOURS[i % len(_COLOURS)], [step for step, _ in points]
            low, high = ([score["ci95"][side] for _, score in points] for side in (0, 1))
            axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            values = [score["value"] for _, score in points]
            axis.plot(steps, values, color=colour, marker="o", markersize=3, label=name)
            if points and "chance" in points[-1][1]:
                axis.axhline(points[-1][1]["chance"], color="#c43030", linestyle=":", linewidth=1)
        axis.set_title(metric, fontsize=9, loc="left", color="#30343c")
        axis.tick_params(labelsize=7, colors="#6a6f7a")
        axis.grid(True, color="#eceef2", linewidth=0.8)
    if len(labels) > 1:
        handles, names = axes.flat[0].get_legend_handles_labels()
        place = {"loc": "lower center", "ncols": min(4, len(labels)), "fontsize": 8}
        figure.legend(handles, names, frameon=False, **place)
    figure.tight_layout(rect=(0, 0.3 / figure.get_figheight() if len(labels) > 1 else 0, 1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()
