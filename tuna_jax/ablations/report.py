"""A study's results as a table of text, as a page with curves, and as an image of the curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuna_jax.ablations import comparison
from tuna_jax.ablations.comparison import Estimate, Row, Tested
from tuna_jax.ablations.study import Study
from tuna_jax.evaluation import html
from tuna_jax.sweeps import plots
from tuna_jax.utils.atomic_io import atomic_file


@dataclasses.dataclass(frozen=True)
class Line:
    """One metric over all arms at their last steps.

    Attributes:
        metric: 'TASK/METRIC'.
        chance: of guesses; None if it is not known.
        means: by arm; an arm without results has none.
        differences: by arm, to the study's reference, in pairs.
    """

    metric: str
    chance: float | None
    means: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


def lines(study: Study, rows: Sequence[Row]) -> list[Line]:
    """One `Line` per metric."""
    result = []
    for metric in comparison.metrics(rows):
        values = {
            arm: comparison.by_seed(rows, arm, metric, study.steps(arm)) for arm in study.arms
        }
        present = {arm: scores for arm, scores in values.items() if scores}
        differences = {
            arm: comparison.paired(scores, values[study.reference])
            for arm, scores in present.items()
            if arm != study.reference
        }
        chances = [row["chance"] for row in rows if comparison.name(row) == metric]
        result.append(
            Line(
                metric,
                chances[-1],
                {
                    arm: comparison.estimate(list(scores.values()))
                    for arm, scores in present.items()
                },
                {arm: gap for arm, gap in differences.items() if gap is not None},
            )
        )
    return result


def number(metric: str, value: float, signed: bool = False) -> str:
    """A value of a metric: a share in per cent, a distance (`.../distance`) or decibels as they are."""
    sign = "+" if signed else ""
    if metric.endswith(("distance", "_db")):
        return f"{value:{sign}.2f}"
    return f"{100 * value:{sign}.1f} %"


def interval(metric: str, value: Estimate, signed: bool = False) -> str:
    """A mean with its interval, if there are several seeds: '61.2 % (55.0 % to 67.4 %)'."""
    if value.count == 1:
        return f"{number(metric, value.mean, signed)} (one seed)"
    low, high = number(metric, value.low, signed), number(metric, value.high, signed)
    return f"{number(metric, value.mean, signed)} ({low} to {high})"


def table(study: Study, rows: Sequence[Row]) -> str:
    """Means, differences to the reference, and claims, as a Markdown table that also reads well in a terminal."""
    text = [f"| score | arm | mean over seeds (95 % interval) | seeds | minus {study.reference} |"]
    text.append("|---|---|---|---|---|")
    for line in lines(study, rows):
        for arm, mean in line.means.items():
            gap = line.differences.get(arm)
            text.append(
                f"| {line.metric} | {arm} | {interval(line.metric, mean)} | {mean.count} | "
                f"{interval(line.metric, gap, signed=True) if gap else ''} |"
            )
    tested = comparison.test_claims(study, rows)
    if tested:
        text += ["", "| claim | score | difference (95 % interval) | result | paper |"]
        text.append("|---|---|---|---|---|")
        text += [f"| {' | '.join(_claim_columns(entry))} |" for entry in tested]
    return "\n".join(text)


def _claim_columns(entry: Tested) -> list[str]:
    claim = entry.claim
    order = "<" if claim.lower else ">"
    gap = entry.difference
    return [
        f"{entry.name}: {claim.better} {order} {claim.worse}",
        claim.metric,
        interval(claim.metric, gap, signed=True) if gap else "no runs yet",
        entry.verdict,
        claim.paper,
    ]


def curves(study: Study, rows: Sequence[Row]) -> dict[str, bytes]:
    """By task, learning curves as a PNG: the mean over seeds of each arm with its interval."""
    images = {}
    for task in study.tasks:
        points = []
        for arm in study.arms:
            own = [row for row in rows if row["arm"] == arm and row["task"] == task]
            for step in sorted({row["step"] for row in own}):
                scores = {}
                for row in own:
                    metric = comparison.name(row)
                    values = comparison.by_seed(rows, arm, metric, step)
                    mean = comparison.estimate(list(values.values()))
                    bounds = [mean.low, mean.high] if mean.count > 1 else [mean.mean] * 2
                    score = {"value": mean.mean, "ci95": bounds}
                    if row["chance"] is not None:
                        score["chance"] = row["chance"]
                    scores[row["metric"]] = score
                points.append({"run": arm, "step": step, "applied": {}, "scores": scores})
        image = plots.over_steps(points)
        if image:
            images[task] = image
    return images


def write(path: Path, study: Study, rows: Sequence[Row], failed: Mapping[str, str]) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the page; the curves are written next to it as `curves_TASK.png`.
        study: the study.
        rows: its results.
        failed: by the name of each failed run, why.
    """
    images = curves(study, rows)
    page = html.render(
        "ablations/report.html.j2",
        title=study.name,
        study=study,
        lines=lines(study, rows),
        tested=[(entry, _claim_columns(entry)) for entry in comparison.test_claims(study, rows)],
        images=images,
        failed=failed,
        runs=len({row["run"] for row in rows}),
        interval=interval,
        number=number,
    )
    with atomic_file(path) as scratch:
        scratch.write_text(page, encoding="utf-8")
    for task, image in images.items():
        with atomic_file(path.with_name(f"curves_{task}.png")) as scratch:
            scratch.write_bytes(image)
