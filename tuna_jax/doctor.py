"""Checks a device, a host or a slice before the first run on it: one command for the first ten minutes on new hardware.

Examples:

    # One host, with the demo's tiny model; the folder of the run to come is tested:
    tuna-jax doctor --workdir=runs/emoji

    # A slice: the same command on all hosts, by a launcher of docs/pods.md; here two processes of this machine:
    python launchers/local.py --processes=2 --devices=4 -- \\
        python -m tuna_jax.doctor --workdir=runs/emoji --mesh=data=2,fsdp=4

    # With the step and the data of an experiment, on its mesh:
    tuna-jax doctor --config=experiments/tuna/tuna_1p5b_stage1.py --workdir=runs/stage1

    # Only some checks, or all but some; another name for the file:
    tuna-jax doctor --checks=devices,collectives --output=slice.json
    tuna-jax doctor --skip=storage

It prints a row as each check ends: what was measured, whether that is a pass, slow or a fail, and what to do. `slow`
works, but worse than it should. The same, with all numbers, is in a JSON file that can be sent to somebody who was not
there. The exit status is 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuna_jax import train
from tuna_jax.cli import config_flags, parsing, shared_flags
from tuna_jax.utils import malloc, old_names

CHECKS = {
    "versions": "libraries and code: as required, and the same on all hosts",
    "storage": "a folder or bucket: write, rename, list, read elsewhere; rates",
    "resume": "a short training run, killed and resumed: losses equal to the bit",
    "devices": "kinds, counts, memory, topology; a product on every device",
    "goldens": "a tiny model's numbers, in float32 and bfloat16",
    "attention": "each attention backend against the dense one, with gradients",
    "collectives": "values and bandwidth over each mesh axis",
    "step": "time and memory of the experiment's step, next to the prediction",
    "data": "the experiment's input pipeline, next to its step",
}
"""In their order; `diagnostics/registry.py` has the functions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    listed = "\n".join(f"    {name:12} {text}" for name, text in CHECKS.items())
    parser = parsing.make_parser("doctor", f"{__doc__}\nThe checks:\n\n{listed}\n")
    config_flags.add_config(parser)
    add = parser.add_argument
    add("--checks", type=_checks, metavar="NAME,...", help="only these checks")
    add("--skip", type=_checks, default=(), metavar="NAME,...", help="not these checks")
    add(
        "--workdir",
        metavar="DIR",
        help="folder of the run to come, shared by all hosts; what is written is removed again",
    )
    add(
        "--folder",
        metavar="DIR",
        help="folder or bucket to test (default: --workdir, or temporary)",
    )
    add(
        "--output",
        metavar="FILE",
        help="the JSON file (default: doctor.json in --workdir, or here)",
    )
    add(
        "--mesh",
        type=shared_flags.mesh_sizes,
        metavar="AXIS=N,...",
        help="the mesh of all devices, such as data=2,fsdp=4 (default: the experiment's)",
    )
    add(
        "--megabytes",
        type=parsing.positive_int,
        default=128,
        metavar="N",
        help="size of the file per process with which rates of storage are measured (default 128)",
    )
    add(
        "--limit",
        type=parsing.positive_int,
        default=900,
        metavar="SECONDS",
        help="seconds of one check, after which the command ends with what it has (default 900)",
    )
    command_line = parsing.current_arguments("doctor", arguments)
    given, overrides = config_flags.split_overrides(command_line)
    options = parser.parse_args(given)
    options.command_line = command_line
    return parsing.run(lambda: _examine(options, overrides), options.verbosity)


def _examine(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    chosen = [name for name in options.checks or CHECKS if name not in options.skip]
    values: dict[str, Any] = {}
    if options.config:
        values = old_names.experiment(config_flags.read(options.config, overrides))
    elif overrides:
        raise ValueError(f"{overrides[0]} without --config=FILE")
    output = Path(options.output or f"{options.workdir or '.'}/doctor.json")

    from tuna_jax.parallel import environment

    if launched := environment.arguments(os.environ):
        where = launched.get("coordinator_address", "the cluster")
        print(f"joining the other processes ({where})", file=sys.stderr, flush=True)

    from tuna_jax.diagnostics import runner
    from tuna_jax.diagnostics.context import Context
    from tuna_jax.diagnostics.processes import Processes
    from tuna_jax.diagnostics.registry import CHECKS as functions
    from tuna_jax.parallel import distributed
    from tuna_jax.utils import compile_cache

    compile_cache.enable()
    _join(distributed)
    processes = Processes()
    first = processes.index == 0
    # A folder of this examination, in the one that the user has named or in a temporary one.
    named, name = options.folder or options.workdir, f"doctor-{uuid.uuid4().hex[:8]}"
    temporary = tempfile.mkdtemp(prefix="tuna_jax_") if first else ""
    folder = f"{named.rstrip('/')}/{name}" if named else f"{temporary}/{name}"
    if "://" not in folder:
        folder = str(Path(folder).absolute())
    folder, scratch = processes.gather([folder, f"{temporary}/{name}"])[0]
    context = Context(
        processes=processes,
        folder=folder,
        is_shared=bool(named),
        scratch=scratch if "://" in folder else folder,
        trainers=train.TRAINERS,
        values=values,
        is_default=not options.config,
        mesh=options.mesh,
        megabytes=options.megabytes,
    )
    checks = [check for check in functions if check.name in chosen]
    report = runner.Report(output, runner.details(options.command_line, processes), first)
    try:
        good = runner.run(checks, context, report, options.limit)
        if first:
            print(f"\n{_summary(report.results)}; all numbers are in {output}", flush=True)
        processes.begin("end")
        processes.gather(None)  # A launcher stops the others as soon as one has ended.
    finally:
        # Hosts that do not share the folder have one each.
        for used in {temporary, folder} - {""}:
            if "://" not in used:
                shutil.rmtree(used, ignore_errors=True)
    return 0 if good else 1


def _join(distributed: Any) -> None:
    """Joins the other processes, or says that they did not come."""
    try:
        distributed.initialize()
    except RuntimeError as error:
        raise OSError(
            f"the processes did not find each other: {' '.join(str(error).split())[:200]}. Start the command on all "
            f"hosts at the same time, and check that they reach the coordinator (TUNA_JAX_COORDINATOR)"
        ) from error


def _summary(results: Sequence[str]) -> str:
    counts = [f"{results.count(kind)} {kind}" for kind in ("pass", "slow", "fail")]
    return f"{len(results)} checks: {', '.join(counts)}"


def _checks(text: str) -> tuple[str, ...]:
    """Names of checks, separated by commas."""
    names = parsing.names(text)
    for name in names:
        if name not in CHECKS:
            raise argparse.ArgumentTypeError(f"{name!r} is no check; they are {', '.join(CHECKS)}")
    return names


if __name__ == "__main__":
    malloc.keep()
    sys.exit(main())
