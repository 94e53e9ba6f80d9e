"""Draws a published benchmark's pictures, clips or edits into the folder that its scorer reads, and checks folders.

Examples:

    # GenEval: 553 prompts, four pictures each; then what to run next is printed. The same command again goes on:
    python -m tuna_jax.evaluate_benchmarks --benchmark=geneval --prompts=benchmarks/ --model=runs/mine \\
        --output=drawn/geneval

    # A folder of anybody's, before scorer time is spent on it: missing, surplus, unreadable or wrongly sized files,
    # wrong metadata, each by name; exit status 1 if there is any. No model is loaded:
    python -m tuna_jax.evaluate_benchmarks --benchmark=geneval --prompts=benchmarks/ --output=drawn/geneval --check

    # A trial with the first ten prompts; DPG-Bench at 512 pixels, guidance 4, 50 steps:
    python -m tuna_jax.evaluate_benchmarks --benchmark=dpg_bench --prompts=ELLA/dpg_bench --model=model/ \\
        --output=drawn/dpg_bench --size=512 --guidance=4 --steps=49 --limit=10

    # VBench, its prompts from the package vbench; the second of four processes that share the work:
    python -m tuna_jax.evaluate_benchmarks --benchmark=vbench --model=model/ --output=drawn/vbench --size=320x512 \\
        --frames=49 --shard=1/4

    # Edits; each takes the size whose shape is nearest to its source's:
    python -m tuna_jax.evaluate_benchmarks --benchmark=gedit --prompts=GEdit-Bench/ --model=model/ --name=mine \\
        --output=drawn/gedit --size=512x512,448x576,576x448,384x672,672x384
    python -m tuna_jax.evaluate_benchmarks --benchmark=imgedit --prompts=basic_edit.json --images=singleturn/ \\
        --model=model/ --output=drawn/imgedit

Beside the folder FOLDER lie FOLDER.json, how it was drawn, and FOLDER.png, a contact sheet. A sample depends on the
seed, its prompt and its number alone. Started by a launcher as several processes, each takes its part.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuna_jax.evaluation.benchmarks.registry import NAMES

if TYPE_CHECKING:
    from tuna_jax.evaluation.benchmarks.spec import Benchmark

_SAMPLING = ("guidance", "steps", "shift", "solver", "negative")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    _check_flags(chosen, parser)
    try:
        return _check(chosen) if chosen.check else _draw(chosen)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.evaluate_benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--benchmark", required=True, choices=NAMES, help="what to draw")
    add(
        "--prompts",
        metavar="PATH",
        help="its prompt file, its folder, or a folder with one for each benchmark; VBench's may come from its package",
    )
    add("--output", required=True, metavar="FOLDER", help="what the scorer will read")
    add("--check", action="store_true", help="only say what is wrong with the folder")
    add("--limit", type=_count, metavar="N", help="the first N prompts alone, for a trial")
    add("--name", default="tuna", help="of the model, in folders of oneig and gedit (default tuna)")
    add("--language", default="en", choices=("en", "zh"), help="of oneig's prompts (default en)")
    add("--images", metavar="FOLDER", help="imgedit's originals; by default beside its prompts")
    add("--dimensions", type=_names, default=(), metavar="A,B", help="of vbench; by default all")
    add(
        "--size",
        type=_sizes,
        default=(),
        metavar="HxW[,HxW]",
        help="height x width of a sample, multiples of 16, or one side; several for edits (by default the model's)",
    )
    add("--frames", type=_count, metavar="N", help="1 + 4k, of a clip (default 17)")

    drawn = parser.add_argument_group("drawing")
    add = drawn.add_argument
    add(
        "--model",
        metavar="PATH",
        help="workdir of a run, its model.safetensors, or a converted model",
    )
    add("--vae", metavar="PATH", help="the VAE, if the model has none in it")
    add("--tokenizer", metavar="PATH", help="folder of a Hugging Face tokenizer, or a vocabulary")
    add("--seed", type=int, default=0, help="of all samples (default 0)")
    add("--negative", metavar="PROMPT", help="what not to draw")
    add("--guidance", type=float, metavar="SCALE", help="by default the model's own")
    add("--steps", type=_count, metavar="N", help="solver steps")
    add("--shift", type=float, help="of the time grid toward noise")
    add("--solver", choices=("euler", "heun"), help="how the flow is followed")
    add("--fps", type=float, default=8.0, help="frames a second of a clip's file (default 8)")
    add("--batch_size", type=_count, metavar="N", help="most samples at once")
    add("--shard", type=_shard, metavar="I/N", help="the I-th of N processes, from 0")
    return parser


def _check_flags(chosen: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Ends the program with a message if flags do not fit together."""
    if chosen.check and chosen.model:
        parser.error("--check looks at files alone; drop --model, or drop --check to draw")
    if not chosen.check and not chosen.model:
        parser.error("give --model=PATH to draw, or --check to check what is there")
    only = {"images": "imgedit", "dimensions": "vbench", "frames": "vbench"}
    for flag, benchmark in only.items():
        if getattr(chosen, flag) and chosen.benchmark != benchmark:
            parser.error(f"--{flag} has no effect with --benchmark={chosen.benchmark}")


def _read(chosen: argparse.Namespace) -> Benchmark:
    """The benchmark whole, with a word if it is not the published one."""
    from tuna_jax.evaluation.benchmarks import registry

    benchmark = registry.read(
        chosen.benchmark,
        chosen.prompts,
        model=chosen.name,
        language=chosen.language,
        images=chosen.images,
        dimensions=chosen.dimensions,
    )
    if benchmark.prompts != benchmark.published:
        print(
            f"note: {benchmark.prompts} prompts; the published {benchmark.name} has {benchmark.published}, and scores "
            f"of another number do not compare",
            file=sys.stderr,
        )
    return benchmark


def _check(chosen: argparse.Namespace) -> int:
    from tuna_jax.evaluation.benchmarks import validate

    benchmark = _read(chosen)
    whole = benchmark if chosen.limit is None else benchmark.first(chosen.limit)
    problems = validate.check(whole, chosen.output, chosen.size or None, chosen.frames)
    print(validate.report(problems, chosen.output))
    if not problems:
        print(f"{len(whole.pieces)} files of {whole.prompts} prompts")
    return 1 if problems else 0


def _draw(chosen: argparse.Namespace) -> int:
    benchmark = _read(chosen)  # A wrong prompt file is told before JAX starts.

    import jax
    from absl import logging

    from tuna_jax.evaluation.benchmarks import run, validate
    from tuna_jax.inference.pipeline import Tuna
    from tuna_jax.parallel import distributed

    logging.set_verbosity(logging.WARNING)
    distributed.initialize()
    shard = chosen.shard or (jax.process_index(), jax.process_count())
    model = Tuna.load(chosen.model, vae=chosen.vae, tokenizer=chosen.tokenizer)
    options: dict[str, Any] = {
        name: getattr(chosen, name) for name in _SAMPLING if getattr(chosen, name) is not None
    }
    sizes = chosen.size or (model.size,)
    frames = chosen.frames or 17
    drawn, kept = run.run(
        model,
        benchmark,
        chosen.output,
        sizes=sizes,
        seed=chosen.seed,
        frames=frames,
        fps=chosen.fps,
        batch_size=chosen.batch_size,
        shard=shard,
        first=chosen.limit,
        **options,
    )
    print(f"{chosen.output}: {drawn} files drawn, {kept} kept")
    whole = benchmark if chosen.limit is None else benchmark.first(chosen.limit)
    if shard[1] > 1:
        print(f"when all {shard[1]} shards are done, check the folder with --check")
        return 0
    problems = validate.check(whole, chosen.output, sizes, frames if whole.clips else None)
    print(validate.report(problems, chosen.output))
    print("next:", benchmark.scorer.format(folder=chosen.output, side=sizes[0][0]))
    return 1 if problems else 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    found = []
    for one in text.lower().split(","):
        sides = one.split("x")
        if len(sides) > 2 or not all(side.isdecimal() for side in sides):
            raise argparse.ArgumentTypeError(
                f"{one!r} is no size; give HEIGHTxWIDTH in pixels, such as 320x512, or one side"
            )
        found.append((int(sides[0]), int(sides[-1])))
    return tuple(found)


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard; of two they are 0/2 and 1/2")
    return int(number), int(count)


if __name__ == "__main__":
    sys.exit(main())
