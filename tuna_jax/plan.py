"""Compiles an experiment's programs for a TPU slice that is not at hand: do they fit, and how fast can they be at most?

The real training step of every stream, the sampler and the VAE's decoder go through the TPU compiler, which runs on any
x86 machine with Linux: pip install libtpu. Neither a TPU nor data nor weights are needed.

Examples:

    # Every program of a stage on 64 v5e chips:
    tuna-jax plan --config=experiments/tuna/tuna_1p5b_stage1.py --topology=v5e:8x8

    # One stream's step, with two rows per device and another mesh; the numbers to a file:
    tuna-jax plan --config=experiments/tuna/tuna_7b_stage2.py --topology=v5p:4x4x4 --stream=edit \\
        --rows_per_device=2 --config.mesh.fsdp=32 --config.mesh.tensor=2 --json=plans/7b_stage2.json

    # Which batch, mesh and rematerialisation are best for a stream: formulas first, then the compiler on the best few:
    tuna-jax plan --config=experiments/tuna/tuna_7b_stage2.py --topology=v5p:4x4x4 --stream=edit --search

    # Where the compiler estimates the time of a step to go, operation by operation:
    tuna-jax plan --config=experiments/tuna/tuna_1p5b_stage2.py --topology=v5e:8x8 --stream=draw --profile

    # Two slices, joined by the data centre's network:
    tuna-jax plan --config=experiments/tuna/tuna_7b_stage2.py --topology=v5e:8x8 --slices=2

    # Sampling in the layouts that inference chooses from, one image per device:
    tuna-jax plan --config=experiments/tuna/tuna_1p5b_stage3.py --topology=v5e:8x8 --layouts

    # Memory of attention by backend and length; then the page of all files that --json wrote:
    tuna-jax plan --attention --topology=v5e:2x2 --json=docs/generated/plans/attention.json
    tuna-jax plan --collect=docs/generated/plans --page=docs/generated/scaling.md

A topology is KIND:AxB or KIND:AxBxC with the kinds v5e, v5p, v6e and tpu7x. The batch is the experiment's (`rows` of
each stream, over all devices), unless --rows_per_device says otherwise. Of each stream, its largest batch is planned.
Large steps compile for several minutes; results are printed and written one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuna_jax.cli import config_flags, parsing
from tuna_jax.utils import old_names


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    command_line = parsing.current_arguments("plan", arguments)
    given, overrides = config_flags.split_overrides(command_line)
    options = parser.parse_args(given)
    options.command_line = command_line
    _check_flags(options, parser)
    return parsing.run(lambda: _run(options, overrides), options.verbosity)


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("plan", __doc__)
    config_flags.add_config(parser, example="experiments/tuna/tuna_1p5b_stage1.py")
    add = parser.add_argument
    add("--topology", metavar="KIND:AxB", help="the slice, such as v5e:4x4 or v5p:4x4x4")
    add(
        "--slices",
        type=parsing.positive_int,
        default=1,
        metavar="N",
        help="number of such slices (default 1)",
    )
    add(
        "--stream",
        action="append",
        default=[],
        metavar="NAME",
        help="only this stream's step; may be given several times",
    )
    add(
        "--program",
        action="append",
        default=[],
        choices=("train", "sample", "decode"),
        help="only this kind of program; may be given several times",
    )
    add(
        "--rows_per_device",
        type=parsing.positive_int,
        metavar="N",
        help="rows of a batch on each device (default: the experiment's rows)",
    )
    add("--search", action="store_true", help="search for the best batch, mesh and remat")
    add(
        "--tries",
        type=parsing.positive_int,
        default=3,
        metavar="N",
        help="candidates that --search compiles at most (default 3)",
    )
    add(
        "--profile",
        action="store_true",
        help="also print where the compiler estimates time to go, operation by operation",
    )
    add(
        "--layouts",
        action="store_true",
        help="sample in each layout that inference chooses from: replicated, tensor parallel, FSDP",
    )
    add("--attention", action="store_true", help="measure attention's memory by backend")
    add("--collect", metavar="DIR", help="folder of files of --json to make --page from")
    add("--page", metavar="FILE", help="the page that --collect writes")
    add("--json", metavar="FILE", help="file to write the numbers to")
    return parser


def _check_flags(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exits with a message if flags contradict each other."""
    if (options.collect is None) != (options.page is None):
        parser.error("--collect=DIR and --page=FILE go together")
    needed = [options.topology] if options.attention else [options.topology, options.config]
    if options.collect is None and None in needed:
        parser.error("give --config=EXPERIMENT and --topology=KIND:AxB; --help shows examples")
    others = options.search or options.attention or options.collect or options.layouts
    if options.profile and others:
        parser.error(
            "--profile applies to programs, not to --search, --layouts, --attention or --collect"
        )
    if options.layouts and (options.search or options.stream or options.program):
        parser.error(
            "--layouts plans sampling in every layout; leave out --search, --stream and --program"
        )


def _run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from tuna_jax.planning import topology

    topology.prepare_environment()  # Before anything imports JAX.
    import jax

    # Programs for a topology cannot be read back from the cache; they would only fill it.
    jax.config.update("jax_enable_compilation_cache", False)
    if options.collect:
        _write_page(Path(options.collect), Path(options.page))
    elif options.attention:
        _measure_attention(options)
    else:
        values = old_names.experiment(config_flags.read(options.config, overrides))
        _plan(options, values)


def _plan(options: argparse.Namespace, values: Mapping[str, Any]) -> None:
    from tuna_jax.planning import planner, report, stage, topology

    read = stage.read(Path(options.config.partition(":")[0]).stem, values)
    name = options.topology
    devices = topology.devices(name, options.slices)
    target_devices = planner.TargetDevices(topology=name, slices=options.slices, devices=devices)
    if options.layouts:
        _plan_layouts(options, read, target_devices)
        return
    if options.search:
        (stream,) = options.stream if len(options.stream) == 1 else [None]
        search = planner.run_search(read, target_devices, stream, options.tries, _log)
        results, notes = search.results, search.notes
        _write(options, {"kind": "plan", "results": results, "search": notes})
    else:
        results, notes = [], []
        rows = options.rows_per_device and options.rows_per_device * len(devices)
        wanted = options.stream, options.program, _log, options.profile
        for result in planner.all_of(read, target_devices, rows, *wanted):
            results.append(result)
            _log(report.verdict(result))
            _write(options, {"kind": "plan", "results": results})
    for result in results[:1] if not options.search else results:
        print(f"\n{report.heading(result)}")
    print(f"\n{report.table(results)}\n")
    for line in filter(None, [*notes, report.stage_cost(results)]):
        print(f"{line}\n")
    print(report.LEGEND)
    for result in results:
        if "profile" in result:
            print(f"\n{report.profile(result)}")


def _plan_layouts(options: argparse.Namespace, read: Any, target_devices: Any) -> None:
    from tuna_jax.planning import planner, report

    results = []
    for result in planner.inference_layouts(read, target_devices, _log):
        results.append(result)
        _log(report.verdict(result))
        _write(options, {"kind": "layouts", "results": results})
    print(f"\n{report.layout_heading(results[0])}\n\n{report.layout_table(results)}\n")
    print(report.LEGEND)


def _measure_attention(options: argparse.Namespace) -> None:
    from tuna_jax.planning import attention_memory, topology

    rows = attention_memory.measure(topology.devices(options.topology)[0], log=_log)
    _write(options, {"kind": "attention", "topology": options.topology, "results": rows})
    print(attention_memory.table(rows))


def _write_page(folder: Path, page: Path) -> None:
    from tuna_jax.planning.markdown_page import collect

    page.write_text(collect(folder, page))
    print(page)


def _write(options: argparse.Namespace, plan: dict[str, Any]) -> None:
    if options.json:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"command": options.command_line, **plan}, indent=1) + "\n")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
