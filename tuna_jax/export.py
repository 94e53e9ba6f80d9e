"""Exports the sampler of a model as files that a server loads instead of tracing it (`jax.export`).

Examples:

    # Images of the model's own size, one and four at a time, prompts of up to 32 and 64 tokens, for all platforms:
    tuna-jax export --model=runs/demo --output=programs --rows=1,4 --prompt=32,64

    # Images of 512x512 and 384x672, 29 solver steps, only for TPUs:
    tuna-jax export --model=model/ --output=programs --size=512,384x672 --steps=29 --platforms=tpu

    # What uses them; in a server, Tuna.load("runs/demo", programs="programs"):
    tuna-jax generate --model=runs/demo --programs=programs --prompt="a red apple"

A program is for one number of rows, one size and one sampling configuration; prompts may be shorter than it says. It
holds no parameters and no machine code: a machine compiles it on the first call, into the compile cache. Requests that
no program fits are traced as usual. Edits and text have no programs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tuna_jax.cli import parsing, shared_flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = _parser().parse_args(parsing.current_arguments("export", arguments))
    return parsing.run(lambda: _export(options), options.verbosity)


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("export", __doc__)
    shared_flags.add_model(parser, mesh=False)
    shared_flags.add_dtype(parser)
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder of the programs")
    add(
        "--size",
        type=parsing.image_sizes,
        metavar="HxW,...",
        help="height x width in pixels (default: the model's)",
    )
    add(
        "--frames",
        type=parsing.positive_ints,
        default=[1],
        metavar="N,...",
        help="frames, 1 + 4k; 1 is an image (default 1)",
    )
    add(
        "--rows",
        type=parsing.positive_ints,
        default=[1],
        metavar="N,...",
        help="prompts per call (default 1)",
    )
    add(
        "--prompt",
        type=parsing.positive_ints,
        default=[64],
        metavar="N,...",
        help="longest prompt in tokens (default 64)",
    )
    shared_flags.add_sampling(parser, names=("steps", "shift", "solver"))
    add(
        "--unguided",
        action="store_true",
        help="without the negative side: for guidance 1",
    )
    add(
        "--platforms",
        type=parsing.names,
        default=("cpu", "tpu", "cuda"),
        metavar="NAME,...",
        help="platforms that the programs run on (default cpu,tpu,cuda)",
    )
    return parser


def _export(options: argparse.Namespace) -> None:
    from tuna_jax.inference import exported_sampler

    model = shared_flags.load_model(options, dtype=options.dtype)
    defaults = model.samples
    specs = [
        exported_sampler.SamplerSpec(
            rows=rows,
            prompt=prompt,
            frames=frames,
            height=height,
            width=width,
            steps=options.steps or defaults.steps,
            shift=defaults.shift if options.shift is None else options.shift,
            solver=options.solver or defaults.solver,
            guided=not options.unguided,
        )
        for height, width in options.size or [model.size]
        for frames in options.frames
        for rows in options.rows
        for prompt in options.prompt
    ]
    parameters = (model.config, model.params, model.vae_params)
    for path in exported_sampler.write(options.output, *parameters, specs, list(options.platforms)):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
