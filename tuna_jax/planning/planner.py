"""Plans an experiment on a topology: all of its programs as configured, or a search for the best configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tuna_jax.hardware.chips import chip_of
from tuna_jax.inference import layouts
from tuna_jax.parallel.mesh import AXES
from tuna_jax.planning import abstract_programs, analyze, report, search
from tuna_jax.planning.stage import Experiment, Stream

Result = dict[str, Any]
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetDevices:
    """The `devices` of `slices` slices of `topology`, see `topology.devices`."""

    topology: str
    slices: int
    devices: list[Any]

    def target(self, experiment: Experiment) -> analyze.Target:
        """The experiment's mesh over the devices."""
        return analyze.Target(
            topology=self.topology,
            slices=self.slices,
            chip=chip_of(self.topology),
            mesh=abstract_programs.mesh_of(experiment, self.devices, self.slices),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The result of a search.

    Attributes:
      results: of the compiled candidates, the best one that fits first.
      notes: sentences that name the compiled candidates and the best one.
    """

    results: list[Result]
    notes: list[str]


def all_of(
    experiment: Experiment,
    where: TargetDevices,
    rows: int | None,
    streams: Sequence[str],
    kinds: Sequence[str],
    log: Log,
    profile: bool = False,
) -> Iterator[Result]:
    """Every requested program as configured; arguments as for `abstract_programs.all_of` and `analyze.measure`."""
    target = where.target(experiment)
    for planned in abstract_programs.all_of(experiment, target.mesh, rows, streams, kinds):
        yield analyze.measure(experiment, planned, target, log, profile)


def inference_layouts(experiment: Experiment, where: TargetDevices, log: Log) -> Iterator[Result]:
    """Sampling in each kind of inference layout that fits (`inference/layouts.py`), one image per device.

    The results have a `layout` with its name, the dtype of its parameters and whether it is the one that inference
    chooses.

    Raises:
      ValueError: several slices are planned for, or no layout fits.
    """
    if where.slices > 1:
        raise ValueError("--layouts plans one slice; leave out --slices")
    devices, chip = len(where.devices), chip_of(where.topology)
    memory = int(chip.usable / chip.devices)
    chosen = layouts.choose(experiment.config, devices, memory)
    for layout in layouts.first_of_each_kind(experiment.config, devices, memory):
        sizes = {axis: getattr(layout.mesh, axis) for axis in AXES}
        target = where.target(experiment.with_mesh(**sizes))
        log(layout.describe())
        planned = abstract_programs.sampler(experiment, target.mesh, devices, layout.dtype)
        yield analyze.measure(experiment, planned, target, log) | {
            "layout": {
                "name": layout.name,
                "dtype": layout.dtype or "float32",
                "chosen": layout == chosen,
            }
        }


def search_order(
    experiment: Experiment, where: TargetDevices, stream: str | None
) -> tuple[Stream, list[search.Estimate]]:
    """The stream to search for, by default the one with most batches, and the candidates in the order of their
    estimates.

    Raises:
      ValueError: there is no such stream, or no candidate fits by the formulas.
    """
    streams = {each.name: each for each in experiment.streams()}
    name = stream or max(streams, key=lambda name: streams[name].share)
    if name not in streams:
        raise ValueError(f"--stream={name}: {experiment.name} has the streams {', '.join(streams)}")
    chip = chip_of(where.topology)
    order = search.estimates(experiment, streams[name], chip, len(where.devices) // where.slices)
    if not order:
        raise ValueError(
            f"{experiment.name}, stream {name}: by the formulas nothing fits {where.topology}; choose a larger slice"
        )
    return streams[name], order


def search_best(results: Sequence[Result]) -> list[Result]:
    """Results that leave a tenth of the memory free first, by time per row; then others that fit; then the rest."""

    def key(result: Result) -> tuple[int, float]:
        if not result["memory"]["fits"]:
            return 2, result["memory"]["peak"]
        has_margin = result["memory"]["spare"] >= 1 - search.ROOM
        return int(not has_margin), result["bound"]["step"] / result["rows"]

    return sorted(results, key=key)


def search_notes(results: Sequence[Result], candidates: int) -> list[str]:
    """Sentences that name the compiled candidates and the best one; `results` as from `search_best`."""
    best = results[0]
    verdicts = [
        f"{report.heading(each)}, {each['rows'] // each['devices']} rows per device: {report.verdict(each)}"
        for each in results
    ]
    notes = [f"{candidates} candidates by formulas, {len(results)} compiled", *verdicts]
    if best["memory"]["fits"] and best["memory"]["spare"] >= 1 - search.ROOM:
        notes.append(
            f"Best with a tenth of the memory free: {report.heading(best)}, {best['rows'] // best['devices']} rows per "
            f"device; bound by {best['bound']['binds']}, MFU at most {best['bound']['mfu']:.0%}"
        )
    else:
        notes.append(
            "None of these leaves a tenth of the memory free; a larger --tries compiles more candidates"
        )
    return notes


def run_search(
    experiment: Experiment, where: TargetDevices, stream: str | None, tries: int, log: Log
) -> SearchResult:
    """Compiles the best candidates by the formulas until `tries` of them fit, and at most `2 * tries`."""
    chosen, order = search_order(experiment, where, stream)
    results: list[Result] = []
    for estimate in order[: 2 * tries]:
        candidate = estimate.candidate
        log(
            f"{candidate}: bound by {estimate.binds} by the formulas"
            + (f", {' and '.join(estimate.padded)} padded" if estimate.padded else "")
        )
        changed = candidate.apply(experiment)
        target = where.target(changed)
        rows = candidate.rows * len(where.devices)
        (sized,) = (each for each in changed.streams(rows) if each.name == chosen.name)
        planned = abstract_programs.train_step(changed, sized, target.mesh)
        results.append(analyze.measure(changed, planned, target, log))
        log(report.verdict(results[-1]))
        if sum(each["memory"]["fits"] for each in results) >= tries:
            break
    results = search_best(results)
    return SearchResult(results=results, notes=search_notes(results, len(order)))
