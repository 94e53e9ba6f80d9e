"""Generates for a published benchmark into the folder that its official scorer reads, and checks such folders.

Examples:

    # GenEval: 553 prompts, four images each; the command prints what to run next. Repeated, it resumes:
    tuna-jax evaluate-benchmarks --benchmark=geneval --prompts=benchmarks/ --model=runs/mine \\
        --output=generated/geneval

    # Check any folder before scorer time is spent on it: missing, surplus, unreadable or wrongly sized files and wrong
    # metadata are named; the exit status is 1 if there are any. No model is loaded:
    tuna-jax evaluate-benchmarks --benchmark=geneval --prompts=benchmarks/ --output=generated/geneval --check

    # A trial with the first ten prompts; DPG-Bench at 512 pixels, guidance 4, 49 solver steps:
    tuna-jax evaluate-benchmarks --benchmark=dpg_bench --prompts=ELLA/dpg_bench --model=model/ \\
        --output=generated/dpg_bench --size=512 --guidance=4 --steps=49 --limit=10

    # VBench, with the prompts of the package vbench; the second of four processes that share the work:
    tuna-jax evaluate-benchmarks --benchmark=vbench --model=model/ --output=generated/vbench --size=320x512 \\
        --frames=49 --shard=1/4

    # Edits; each takes the size whose aspect ratio is nearest to its source's:
    tuna-jax evaluate-benchmarks --benchmark=gedit --prompts=GEdit-Bench/ --model=model/ --name=mine \\
        --output=generated/gedit --size=512x512,448x576,576x448,384x672,672x384
    tuna-jax evaluate-benchmarks --benchmark=imgedit --prompts=basic_edit.json --images=singleturn/ \\
        --model=model/ --output=generated/imgedit

FOLDER.json next to the folder records how it was generated, and FOLDER.png is a contact sheet. A sample depends only on
the seed, its prompt and its number. Started by a launcher as several processes, all of them compute each
batch together; `--shard` divides the work over runs that know nothing of each other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuna_jax.cli import parsing, shared_flags
from tuna_jax.evaluation.benchmarks.registry import NAMES

if TYPE_CHECKING:
    from tuna_jax.evaluation.benchmarks.spec import Benchmark


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(parsing.current_arguments("evaluate_benchmarks", arguments))
    _check_flags(options, parser)
    return parsing.run_on_all_processes(
        lambda: _check(options) if options.check else _generate(options), options.verbosity
    )


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("evaluate-benchmarks", __doc__)
    add = parser.add_argument
    add("--benchmark", required=True, choices=NAMES, help="the benchmark")
    add(
        "--prompts",
        metavar="PATH",
        help="its prompt file, its folder, or a folder with one for each benchmark; VBench's may come from its package",
    )
    add("--output", required=True, metavar="DIR", help="the folder that the scorer reads")
    add("--check", action="store_true", help="only report what is wrong with the folder")
    add(
        "--limit",
        type=parsing.positive_int,
        metavar="N",
        help="only the first N prompts, for a trial",
    )
    add(
        "--name",
        default="tuna",
        help="name of the model in the folders of oneig and gedit (default tuna)",
    )
    add(
        "--language",
        default="en",
        choices=("en", "zh"),
        help="language of oneig's prompts (default en)",
    )
    add(
        "--images",
        metavar="DIR",
        help="imgedit's original images (default: next to its prompts)",
    )
    add(
        "--dimensions",
        type=parsing.names,
        default=(),
        metavar="A,B",
        help="dimensions of vbench (default: all)",
    )
    add(
        "--size",
        type=parsing.image_sizes,
        default=(),
        metavar="HxW[,HxW]",
        help="height x width of a sample in pixels, multiples of 16, or one side; several for edits "
        "(default: the model's)",
    )
    add(
        "--frames",
        type=parsing.positive_int,
        metavar="N",
        help="frames of a clip, 1 + 4k (default 17)",
    )

    generation = parser.add_argument_group("generation")
    shared_flags.add_model(generation, required=False)
    add = generation.add_argument
    add("--seed", type=parsing.seed, default=0, help="seed of all samples (default 0)")
    add("--negative", metavar="PROMPT", type=parsing.text, help="negative prompt")
    shared_flags.add_sampling(generation)
    add(
        "--fps",
        type=parsing.positive,
        default=8.0,
        help="frames per second of a clip's file (default 8)",
    )
    add("--batch_size", type=parsing.positive_int, metavar="N", help="largest batch")
    add("--shard", type=parsing.shard, metavar="I/N", help="the I-th of N processes, from 0")
    return parser


def _check_flags(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exits with a message if flags contradict each other."""
    if options.check and options.model:
        parser.error("--check reads only files; drop --model, or drop --check to generate")
    if not options.check and not options.model:
        parser.error("give --model=PATH to generate, or --check to check what is there")
    only = {"images": "imgedit", "dimensions": "vbench", "frames": "vbench"}
    for flag, benchmark in only.items():
        if getattr(options, flag) and options.benchmark != benchmark:
            parser.error(f"--{flag} has no effect with --benchmark={options.benchmark}")


def _read(options: argparse.Namespace) -> Benchmark:
    """The whole benchmark, with a note if it is not the published one."""
    from tuna_jax.evaluation.benchmarks import registry

    benchmark = registry.read(
        options.benchmark,
        options.prompts,
        model=options.name,
        language=options.language,
        images=options.images,
        dimensions=options.dimensions,
    )
    if benchmark.prompts != benchmark.published:
        print(
            f"note: {benchmark.prompts} prompts; the published {benchmark.name} has {benchmark.published}, so "
            f"scores are not comparable with published ones",
            file=sys.stderr,
        )
    return benchmark


def _check(options: argparse.Namespace) -> int:
    from tuna_jax.evaluation.benchmarks import validate

    benchmark = _read(options)
    whole = benchmark if options.limit is None else benchmark.first(options.limit)
    problems = validate.check(whole, options.output, options.size or None, options.frames)
    print(validate.report(problems, options.output))
    if not problems:
        print(f"{len(whole.pieces)} files of {whole.prompts} prompts")
    return 1 if problems else 0


def _generate(options: argparse.Namespace) -> int:
    benchmark = _read(options)  # A wrong prompt file is reported before JAX starts.

    from tuna_jax.evaluation.benchmarks import run, validate

    shard = options.shard or (0, 1)
    sampling: dict[str, Any] = shared_flags.sampling_options(options)
    model = shared_flags.load_model(options)
    if options.negative is not None:
        sampling["negative"] = options.negative
    sizes = options.size or run.default_sizes(model, benchmark)
    failures: list[str] = []
    frames = options.frames or 17
    generated, kept = run.run(
        model,
        benchmark,
        options.output,
        sizes=sizes,
        seed=options.seed,
        frames=frames,
        fps=options.fps,
        batch_size=options.batch_size,
        shard=shard,
        first=options.limit,
        on_failure=lambda path, error: failures.append(f"{path}: {' '.join(str(error).split())}"),
        **sampling,
    )
    print(f"{options.output}: {generated} files generated, {kept} kept")
    for failure in failures[:10]:
        print(f"failed: {failure}", file=sys.stderr)
    if failures:
        print(f"error: {len(failures)} files failed", file=sys.stderr)
    whole = benchmark if options.limit is None else benchmark.first(options.limit)
    if shard[1] > 1:
        print(f"when all {shard[1]} shards are done, check the folder with --check")
        return 1 if failures else 0
    problems = validate.check(whole, options.output, sizes, frames if whole.clips else None)
    print(validate.report(problems, options.output))
    print("next:", benchmark.scorer.format(folder=options.output, side=sizes[0][0]))
    return 1 if problems or failures else 0


if __name__ == "__main__":
    sys.exit(main())
