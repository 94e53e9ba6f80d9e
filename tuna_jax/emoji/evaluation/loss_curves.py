"""Plots a run's metrics.jsonl as one image with a panel per metric."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from tuna_jax.training import metrics

# Clocks and constants are not informative as curves.
_SKIPPED = ("step", "time", "minutes", "seconds", "eta", "tokens", "epoch")


def read_metrics(path: str | os.PathLike[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (steps, values) of every number in a metrics.jsonl; an incomplete last line is ignored."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in metrics.read(path):
        for name, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and "step" in row:
                series[name].append((float(row["step"]), float(value)))
    return {name: tuple(np.array(points).T) for name, points in series.items()}  # type: ignore[misc]


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """A moving average whose window is shorter at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def plot(path: str | os.PathLike[str], panels: int = 9) -> bytes | None:
    """PNG of up to `panels` curves, raw in grey and smoothed in colour; None if there is nothing to plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not Path(path).is_file():
        return None
    series = {
        name: points
        for name, points in read_metrics(path).items()
        if len(points[0]) > 1 and not any(word in name.lower() for word in _SKIPPED)
    }
    # Training losses come first, then evaluation metrics.
    order = ("loss", "flow", "text", "accuracy", "psnr")
    rank = {name: next((i for i, w in enumerate(order) if w in name.lower()), 9) for name in series}
    names = sorted(series, key=lambda name: (rank[name], name))[:panels]
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.6 * columns, 2.2 * rows), squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        steps, values = series[name]
        keep = np.isfinite(values)
        steps, values = steps[keep], values[keep]
        axis.plot(steps, values, color="#c9cdd6", linewidth=0.8)
        axis.plot(steps, _smooth(values, max(1, len(values) // 40)), color="#2f5fd0", linewidth=1.6)
        positive = len(values) > 0 and values.min() > 0
        if rank[name] == 0 and positive and values.max() > 8 * values.min():
            axis.set_yscale("log")
        axis.set_title(name, fontsize=9, loc="left", color="#30343c")
        axis.tick_params(which="both", labelsize=7, colors="#6a6f7a")
        axis.grid(True, color="#eceef2", linewidth=0.8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color("#d5d8df")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    pyplot.close(figure)
    return buffer.getvalue()
