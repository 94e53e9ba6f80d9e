"""What the command does with an experiment and a place: all programs as they are configured, or a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tuna_jax.hardware.chips import chip_of
from tuna_jax.planning import abstract_programs, analyze, report, search
from tuna_jax.planning.stage import Experiment, Stream

Result = dict[str, Any]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """`devices` of `slices` slices of `topology`, see `topology.devices`."""

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
class Found:
    """What a search found.

    Attributes:
      results: of the candidates that were compiled, the best that fits first.
      notes: sentences: what was tried, and what is best.
    """

    results: list[Result]
    notes: list[str]


def all_of(
    experiment: Experiment,
    place: Place,
    rows: int | None,
    streams: Sequence[str],
    kinds: Sequence[str],
    say: Say,
    profile: bool = False,
) -> Iterator[Result]:
    """Every wanted program as the experiment configures it; arguments as of `programs.all_of` and `measure.measure`."""
    target = place.target(experiment)
    for planned in abstract_programs.all_of(experiment, target.mesh, rows, streams, kinds):
        yield analyze.measure(experiment, planned, target, say, profile)


def search_order(
    experiment: Experiment, place: Place, stream: str | None
) -> tuple[Stream, list[search.Estimate]]:
    """The stream that is searched for, by default that of most batches, and the candidates in the formulas' order.

    Raises:
      ValueError: no such stream, or the formulas let nothing fit.
    """
    found = {one.name: one for one in experiment.streams()}
    name = stream or max(found, key=lambda name: found[name].share)
    if name not in found:
        raise ValueError(f"--stream={name}: {experiment.name} has the streams {', '.join(found)}")
    chip = chip_of(place.topology)
    order = search.estimates(experiment, found[name], chip, len(place.devices) // place.slices)
    if not order:
        raise ValueError(
            f"{experiment.name}, stream {name}: by the formulas nothing fits {place.topology}; take a larger slice"
        )
    return found[name], order


def search_best(results: Sequence[Result]) -> list[Result]:
    """Those that fit with a tenth to spare first, by the time of a row; then those that fit; then the others."""

    def key(result: Result) -> tuple[int, float]:
        if not result["memory"]["fits"]:
            return 2, result["memory"]["peak"]
        roomy = result["memory"]["spare"] >= 1 - search.ROOM
        return int(not roomy), result["bound"]["step"] / result["rows"]

    return sorted(results, key=key)


def search_notes(results: Sequence[Result], candidates: int) -> list[str]:
    """What was tried and what is best, in sentences; `results` as from `search_best`."""
    best = results[0]
    tried = [
        f"{report.heading(one)}, {one['rows'] // one['devices']} rows a device: {report.verdict(one)}"
        for one in results
    ]
    notes = [f"{candidates} candidates by formulas, {len(results)} compiled", *tried]
    if best["memory"]["fits"] and best["memory"]["spare"] >= 1 - search.ROOM:
        notes.append(
            f"Best that fits with a tenth to spare: {report.heading(best)}, {best['rows'] // best['devices']} rows a "
            f"device; {best['bound']['binds']} binds, MFU at most {best['bound']['mfu']:.0%}"
        )
    else:
        notes.append("None of these fits with a tenth to spare; more --tries look further")
    return notes


def run_search(
    experiment: Experiment, place: Place, stream: str | None, tries: int, say: Say
) -> Found:
    """Compiles the candidates that the formulas like best, until `tries` of them fit or were tried twice over."""
    chosen, order = search_order(experiment, place, stream)
    results: list[Result] = []
    for estimate in order[: 2 * tries]:
        candidate = estimate.candidate
        say(
            f"{candidate}: by formulas {estimate.binds} binds"
            + (f", {' and '.join(estimate.padded)} padded" if estimate.padded else "")
        )
        changed = candidate.apply(experiment)
        target = place.target(changed)
        rows = candidate.rows * len(place.devices)
        (sized,) = (one for one in changed.streams(rows) if one.name == chosen.name)
        planned = abstract_programs.train_step(changed, sized, target.mesh)
        results.append(analyze.measure(changed, planned, target, say))
        say(report.verdict(results[-1]))
        if sum(one["memory"]["fits"] for one in results) >= tries:
            break
    results = search_best(results)
    return Found(results=results, notes=search_notes(results, len(order)))
