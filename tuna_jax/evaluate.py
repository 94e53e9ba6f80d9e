"""Evaluates a training run: a report on its final model, learning curves, or a sweep over its checkpoints.

Examples:

    # The final model; writes report.html, summary.json and image sheets to the workdir. A run of the emoji demo is
    # measured on scenes that it never saw, by exact judges; a multitask run by its losses on held-out examples:
    tuna-jax evaluate --workdir=runs/demo

    # The same for the model in the package; the report goes to evaluation/:
    tuna-jax evaluate --model=emoji --images=64 --questions=64

    # A quick look with fewer images, and other settings of the sampler:
    tuna-jax evaluate --workdir=runs/demo --output=runs/look --images=64 --questions=64 --guidance=3 --steps=19

    # Scores over training steps, of every checkpoint that was kept, next to those of another run; writes learning.png:
    tuna-jax evaluate --workdir=runs/emoji_all --learning_curve --compare_to=runs/emoji_generation --images=64

    # A sweep: checkpoints x tasks x settings on all devices, as the file says. The same command resumes it after an
    # interruption. Writes results.jsonl and report.html to runs/emoji_all/sweeps/emoji:
    tuna-jax evaluate --sweep=experiments/sweeps/emoji.py --workdir=runs/emoji_all

    # The same for two runs, compared item by item:
    tuna-jax evaluate --sweep=experiments/sweeps/emoji.py --workdir=runs/emoji_all --compare_to=runs/other \\
        --sweep.checkpoints=4000,8000
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tuna_jax.cli import config_flags, parsing, shared_flags
from tuna_jax.utils import malloc, old_names, shipped

EVALUATORS = {
    "emoji": "tuna_jax.emoji.evaluation.run:evaluate",
    "multitask": "tuna_jax.trainers.evaluate_run:evaluate",
}
"""By the kind in the run record: the function `(options) -> exit status` that evaluates a run, as "module:function"."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    given, overrides = config_flags.split_overrides(
        parsing.current_arguments("evaluate", arguments)
    )
    options = parser.parse_args(given)
    if not options.output and "://" not in options.workdir and shipped.is_shipped(options.workdir):
        options.output = "evaluation"
    if options.sweep and options.learning_curve:
        parser.error("give either --sweep=FILE or --learning_curve")
    work = (lambda: _sweep(options, overrides)) if options.sweep else (lambda: _evaluate(options))
    return parsing.run_on_all_processes(lambda: _in_buckets(options, work), options.verbosity)


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("evaluate", __doc__)
    add = parser.add_argument
    add(
        "--workdir",
        "--model",
        required=True,
        type=parsing.model_path,
        metavar="DIR",
        help="folder of a training run, or its model.safetensors; or `emoji`, the model in the package",
    )
    add(
        "--output",
        metavar="DIR",
        help="folder of the report (default: the workdir; of the model in the package: evaluation/)",
    )
    add(
        "--compare_to",
        type=parsing.names,
        default=(),
        metavar="DIR,...",
        help="with --learning_curve and --sweep: workdirs of further runs to compare with",
    )
    config_flags.add_config(parser, "sweep", example="experiments/sweeps/emoji.py")
    add(
        "--learning_curve",
        action="store_true",
        help="evaluate every checkpoint that was kept (each once; learning.jsonl in the workdir keeps the scores) and "
        "plot scores over steps",
    )

    emoji = parser.add_argument_group("runs of the emoji demo")
    add = emoji.add_argument
    add(
        "--images",
        type=parsing.positive_int,
        default=256,
        metavar="N",
        help="generated images per task (default 256)",
    )
    add(
        "--questions",
        type=_at_least_4,
        default=256,
        metavar="N",
        help="questions of the naming task; the others ask a quarter of it (default 256)",
    )
    add(
        "--started",
        type=float,
        metavar="SECONDS",
        help="Unix time at which everything began; the report states the minutes since",
    )

    multitask = parser.add_argument_group("multitask runs")
    multitask.add_argument(
        "--batches",
        type=parsing.positive_int,
        default=8,
        metavar="N",
        help="batches per stream that losses are averaged over (default 8)",
    )
    shared_flags.add_sampling(parser.add_argument_group("sampling"))
    return parser


def _in_buckets(options: argparse.Namespace, work: Callable[[], int]) -> int:
    with shared_flags.in_buckets(options, "workdir", "compare_to", "output"):
        return work()


def _evaluate(options: argparse.Namespace) -> int:
    """Evaluates one run as its record's kind requires."""
    from tuna_jax.conversion import checkpoint_source
    from tuna_jax.inference import run_record
    from tuna_jax.utils import compile_cache

    compile_cache.enable()
    workdir = Path(options.workdir)
    if not workdir.exists():
        raise FileNotFoundError(f"there is no run at {workdir}; `tuna-jax train` writes one")
    state = checkpoint_source.open_parameters(workdir)[1]
    kind = run_record.read(workdir, state).kind
    if kind not in EVALUATORS:
        raise ValueError(
            f"{workdir} is of kind {kind!r}, which has no report of its own; use --sweep=FILE, "
            "`tuna-jax evaluate-benchmarks` or `tuna-jax evaluate-vqa`"
        )
    module, _, function = EVALUATORS[kind].partition(":")
    return getattr(importlib.import_module(module), function)(options)


def _sweep(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs a sweep; the exit status is 1 if a cell of it failed."""
    values = old_names.sweep(config_flags.read(options.sweep, overrides, "sweep"))

    from absl import logging

    from tuna_jax.sweeps import runner
    from tuna_jax.utils import compile_cache

    compile_cache.enable()
    logging.set_verbosity(logging.ERROR)  # Orbax warns at every checkpoint that is opened.
    runs = [Path(options.workdir), *map(Path, options.compare_to)]
    try:
        failed = runner.command(values, runs, Path(options.output) if options.output else None)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes the sweep")
    return 1 if failed else 0


def _at_least_4(text: str) -> int:
    value = parsing.positive_int(text)
    if value < 4:
        raise argparse.ArgumentTypeError(f"{value} is less than 4")
    return value


if __name__ == "__main__":
    malloc.keep()
    sys.exit(main())
