"""Trains the arms of a study over several seeds, measures them, and compares them.

Examples:

    # Which design is best? One process per run, two at a time, each on half of the cores:
    tuna-jax ablate --study=experiments/ablations/design.py --workdir=runs/ablations/design --jobs=2

    # Studies with a common folder of runs train equal runs once:
    tuna-jax ablate --study=experiments/ablations/one_sided.py --workdir=runs/ablations/one_sided \\
        --runs=runs/ablations/runs --jobs=2

    # A short try of two arms and two seeds, in a workdir of its own:
    tuna-jax ablate --study=experiments/ablations/design.py --workdir=runs/ablations/try \\
        --arms=cascade,decoupled --study.seeds='(0, 1)' --study.experiment.steps=100 --study.every=50

    # The table and the page again, from results that lie there:
    tuna-jax ablate --study=experiments/ablations/design.py --workdir=docs/generated/ablations/design --report

A study file (experiments/ablations/) names the experiment, the arms as changes of it, the seeds, the tasks, and the
claims that it tests. Ctrl-C stops a study; the same command resumes it, and a run that failed is tried again. The
workdir holds results.jsonl, report.html, curves, and study.json, which says what was studied: a study that changed
since its first run is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuna_jax.cli import config_flags, parsing
from tuna_jax.utils import malloc


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = parsing.make_parser("ablate", __doc__)
    config_flags.add_config(
        parser, "study", example="experiments/ablations/design.py", required=True
    )
    add = parser.add_argument
    add("--workdir", required=True, metavar="DIR", help="folder of the study's results")
    add("--runs", metavar="DIR", help="folder of the runs (default: WORKDIR/runs)")
    add(
        "--arms",
        type=parsing.names,
        default=(),
        metavar="ARM,...",
        help="train only these arms now (default: all)",
    )
    add(
        "--jobs",
        type=parsing.positive_int,
        default=1,
        metavar="N",
        help="runs to train at the same time; on CPUs each has its share of the cores (default 1)",
    )
    add(
        "--devices",
        type=parsing.positive_int,
        default=0,
        metavar="N",
        help="number of this host's accelerators, to divide between the jobs (default: every job sees all)",
    )
    add("--report", action="store_true", help="train nothing; write the table and the page again")
    given, overrides = config_flags.split_overrides(parsing.current_arguments("ablate", arguments))
    options = parser.parse_args(given)
    return parsing.run(lambda: _ablate(options, overrides), options.verbosity)


def _ablate(options: Any, overrides: Sequence[str]) -> int:
    """Trains and reports; the exit status is 1 if a run failed."""
    from tuna_jax.ablations import command, study

    parsed = study.parse(config_flags.read(options.study, overrides, "study"))
    workdir = Path(options.workdir)
    try:
        failed = command.ablate(
            parsed,
            workdir,
            runs_folder=Path(options.runs) if options.runs else workdir / "runs",
            arms=options.arms,
            jobs=options.jobs,
            devices=options.devices,
            train=not options.report,
        )
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes the study")
    return 1 if failed else 0


if __name__ == "__main__":
    malloc.keep()
    sys.exit(main())
