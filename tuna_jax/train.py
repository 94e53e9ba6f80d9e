"""Trains the model that an experiment file describes; resumes by itself if the workdir holds a checkpoint.

Examples:

    # The emoji demo (3,200 steps, about 16 minutes on two CPU cores):
    tuna-jax train --config=experiments/emoji/demo.py --workdir=runs/emoji

    # The same with other numbers. Any key that the file sets can be overridden:
    tuna-jax train --config=experiments/emoji/demo.py --workdir=runs/short \\
        --config.steps=500 --config.optimizer.learning_rate=1e-3

    # The first of the paper's three stages, on your own manifest:
    tuna-jax train --config=experiments/tuna/tuna_1p5b_stage1.py --workdir=runs/stage1 \\
        --config.data.streams.draw.manifest=data/captions.jsonl

    # The small image VAE that ships with the package:
    tuna-jax train --config=experiments/emoji/vae.py --workdir=runs/emoji_vae

Ctrl-C or SIGTERM stops a run: it saves a checkpoint and exits. The same command resumes it, to the bit. The scripts in
launchers/ start this command on several processes, hosts and TPU pods. The workdir holds metrics.jsonl, tensorboard/,
samples/, checkpoints/ and, at the end, model.safetensors.

The exit status is 0 when the run has ended or was stopped, 2 after an error that the same command would meet again
(configuration, data, a loss that is not finite), and 1 after any other, such as an error of input and output.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from tuna_jax.cli import config_flags, parsing
from tuna_jax.utils import malloc, old_names

TRAINERS = {
    "emoji": "tuna_jax.emoji.trainer:run",
    "vae": "tuna_jax.emoji.vae_trainer:run",
    "encoder": "tuna_jax.emoji.encoder_trainer:run",
    "multitask": "tuna_jax.trainers.multitask:run",
}
"""By `config.kind`: the function `(values, workdir)` that trains, as "module:function"."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = parsing.make_parser("train", __doc__)
    config_flags.add_config(parser, required=True)
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="folder of the run: checkpoints, metrics, samples, model.safetensors; or gs://BUCKET/FOLDER",
    )
    parser.add_argument(
        "--profile_steps",
        metavar="FIRST:LAST",
        help="write a profile of these steps to DIR/profile, for tensorboard; the same as --config.profile_steps",
    )
    parser.add_argument(
        "--profiler_port",
        type=parsing.positive_int,
        metavar="PORT",
        help="port on which tensorboard can take profiles of the running process",
    )
    given, overrides = config_flags.split_overrides(parsing.current_arguments("train", arguments))
    options = parser.parse_args(given)
    return parsing.run(lambda: _train(options, overrides), options.verbosity, _status)


def _train(options: Any, overrides: Sequence[str]) -> None:
    values = old_names.experiment(config_flags.read(options.config, overrides))
    if options.profile_steps:
        values["profile_steps"] = _steps(options.profile_steps)
    if options.profiler_port:
        values["profiler_port"] = options.profiler_port
    kind = values.get("kind")
    if kind not in TRAINERS:
        raise ValueError(f"config.kind is {kind!r}; train knows {', '.join(TRAINERS)}")

    import jax

    from tuna_jax.parallel import distributed
    from tuna_jax.training import staging
    from tuna_jax.training.checkpoints import DamagedCheckpointError
    from tuna_jax.training.nonfinite import NotFiniteError
    from tuna_jax.utils import compile_cache

    module, _, function = TRAINERS[kind].partition(":")
    try:
        compile_cache.enable()
        distributed.initialize()
        with staging.staged(options.workdir) as workdir:
            getattr(importlib.import_module(module), function)(values, workdir)
    except Exception as error:
        known = isinstance(error, (DamagedCheckpointError, NotFiniteError))
        message = str(error) if known else parsing.message_of(error)
        if message is not None:
            if options.verbosity:
                traceback.print_exc()
            distributed.end(f"error: {message}", _status(error, known))
        if jax.process_count() == 1:
            raise
        distributed.end(traceback.format_exc())


def _status(error: Exception, known: bool = False) -> int:
    """The exit status after an error: 2 if the same command would fail again, so that launchers do not repeat it."""
    of_files = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    return 2 if known or isinstance(error, (ValueError, ImportError, *of_files)) else 1


def _steps(text: str) -> tuple[int, int]:
    """'100:105' -> (100, 105)."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise ValueError(
            f"--profile_steps={text} is not FIRST:LAST; give two steps, such as 100:105"
        )
    return int(first), int(last)


if __name__ == "__main__":
    malloc.keep()
    sys.exit(main())
