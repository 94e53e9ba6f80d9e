"""Writes the sampler of a model as files that a server loads instead of tracing it (`jax.export`).

Examples:

    # Pictures of the model's own size, one and four at a time, prompts of up to 32 and 64 tokens, for all platforms:
    python -m tuna_jax.export --model=runs/demo --output=programs --rows=1,4 --prompt=32,64

    # Pictures of 512x512 and 384x672, 30 steps, for TPUs alone:
    python -m tuna_jax.export --model=model/ --output=programs --size=512,384x672 --steps=29 --platforms=tpu

    # What uses them; a server says Tuna.load("runs/demo", programs="programs"):
    python -m tuna_jax.generate --model=runs/demo --programs=programs --prompt="a red apple"

A program is for one number of rows, one size and one way to sample; prompts may be shorter than it says. It holds no
parameters and no machine code: a machine compiles it when it is first called, into the compile cache. What no program
is for is traced, as if there were none. Edits and text have none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        _run(chosen)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="PATH", help="as `tuna_jax.generate --model`")
    add("--output", required=True, metavar="DIR", help="folder of the programs")
    add("--vae", metavar="PATH", help="as `tuna_jax.generate --vae`")
    add("--tokenizer", metavar="PATH", help="as `tuna_jax.generate --tokenizer`")
    add(
        "--dtype",
        default="",
        choices=("float32", "bfloat16"),
        help="parameters held in; as `Tuna.load`",
    )
    add("--size", type=_sizes, metavar="HxW,...", help="in pixels; by default the model's")
    add(
        "--frames",
        type=_numbers,
        default=[1],
        metavar="N,...",
        help="1 + 4k; 1 is a picture (default)",
    )
    add("--rows", type=_numbers, default=[1], metavar="N,...", help="prompts at a time (default 1)")
    add("--prompt", type=_numbers, default=[64], metavar="N,...", help="most tokens (default 64)")
    add("--steps", type=int, metavar="N", help="solver steps (default: the model's own)")
    add(
        "--shift", type=float, help="shift of the time grid toward noise (default: the model's own)"
    )
    add("--solver", choices=("euler", "heun"), help="by default the model's own")
    add("--unguided", action="store_true", help="without the negative side: for guidance 1")
    add("--platforms", default="cpu,tpu,cuda", metavar="NAMES", help="default cpu,tpu,cuda")
    return parser


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers, such as 1,4")
    return [int(part) for part in parts]


def _sizes(text: str) -> list[tuple[int, int]]:
    sizes = [part.lower().split("x") for part in text.split(",")]
    if not all(len(size) <= 2 and all(side.isdecimal() for side in size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of sizes, such as 512,384x672")
    return [(int(size[0]), int(size[-1])) for size in sizes]


def _run(chosen: argparse.Namespace) -> None:
    from tuna_jax.inference import exported_sampler
    from tuna_jax.inference.pipeline import Tuna

    model = Tuna.load(chosen.model, vae=chosen.vae, tokenizer=chosen.tokenizer, dtype=chosen.dtype)
    usual = model.samples
    drawings = [
        exported_sampler.SamplerSpec(
            rows=rows,
            prompt=prompt,
            frames=frames,
            height=height,
            width=width,
            steps=chosen.steps or usual.steps,
            shift=usual.shift if chosen.shift is None else chosen.shift,
            solver=chosen.solver or usual.solver,
            guided=not chosen.unguided,
        )
        for height, width in chosen.size or [model.size]
        for frames in chosen.frames
        for rows in chosen.rows
        for prompt in chosen.prompt
    ]
    parameters = (model.config, model.params, model.vae_params)
    platforms = chosen.platforms.split(",")
    for path in exported_sampler.write(chosen.output, *parameters, drawings, platforms):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
