"""Trains a model that an experiment describes; resumes by itself if the workdir holds a checkpoint.

Examples:

    # The emoji TUNA of the demo (3,200 steps, about 16 minutes on two CPU cores):
    python -m tuna_jax.train --config=experiments/emoji/demo.py --workdir=runs/emoji

    # The same with other numbers. Any key that the config file sets can be overridden:
    python -m tuna_jax.train --config=experiments/emoji/demo.py --workdir=runs/short \\
        --config.steps=500 --config.optimizer.learning_rate=1e-3

    # The small image VAE that ships with the package:
    python -m tuna_jax.train --config=experiments/emoji/vae.py --workdir=runs/emoji_vae

Stop a run with Ctrl-C or SIGTERM: it saves and ends. Start it again with the same command: it goes
on where it was, to the bit. Several processes, hosts and TPU pods: launchers/ starts them with this
same command. The workdir gets metrics.jsonl, tensorboard/, samples/ and
checkpoints/.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from tuna_jax.cli.config_flags import parse_flags
from tuna_jax.parallel import distributed
from tuna_jax.training.checkpoints import DamagedCheckpointError
from tuna_jax.training.nonfinite import NotFiniteError
from tuna_jax.training.workdir import check_folder
from tuna_jax.utils import compile_cache, malloc

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment file, such as experiments/emoji/demo.py; --config.KEY=VALUE overrides a key.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, samples.")
flags.mark_flags_as_required(["config", "workdir"])


def main(arguments: Sequence[str]) -> None:
    """Reads the experiment and hands it to whoever trains its kind."""
    if len(arguments) > 1:
        raise app.UsageError(
            f"unexpected argument {arguments[1]!r}; settings are given as --config.KEY=VALUE"
        )
    if logging.get_verbosity() == logging.INFO:
        logging.set_verbosity(logging.WARNING)  # Orbax tells each file it touches; -v=1 shows that.
    values = _CONFIG.value.to_dict()
    kind = values.get("kind")
    if kind not in _KINDS:
        raise app.UsageError(f"config.kind is {kind!r}; train knows {', '.join(_KINDS)}")
    try:
        check_folder(str(_WORKDIR.value))
        compile_cache.enable()
        distributed.initialize()
        _KINDS[kind](values, str(_WORKDIR.value))
    except (ValueError, FileNotFoundError, DamagedCheckpointError, NotFiniteError) as error:
        logging.debug("where it was raised:", exc_info=True)
        distributed.end(f"error: {error}")
    except Exception:
        if jax.process_count() == 1:
            raise
        distributed.end(traceback.format_exc())


def _train_vae(values: dict[str, Any], workdir: str) -> None:
    from tuna_jax.emoji import vae_trainer
    from tuna_jax.emoji.world.clips import ClipImages
    from tuna_jax.emoji.world.rendering import SceneImages
    from tuna_jax.utils import config_parsing

    if jax.process_count() > 1:
        raise ValueError("a VAE is trained by one process; start this without a launcher")
    chosen = config_parsing.parse(vae_trainer.VAESettings, values)
    shown = chosen.images
    scenes = SceneImages(shown.seed, shown.size, length=10**12, varied=shown.varied)
    images = ClipImages(scenes, shown.clips, shown.seed, shown.size) if shown.clips else scenes
    held_out = SceneImages(shown.seed + 1_000_003, shown.size, varied=0.0)
    exported = vae_trainer.train_vae(chosen, workdir, images, held_out)
    if exported is not None:
        print(exported)


def _train_tuna(values: dict[str, Any], workdir: str) -> None:
    from tuna_jax.emoji import trainer
    from tuna_jax.emoji.config import EmojiExperiment
    from tuna_jax.utils import config_parsing

    trainer.train(values, config_parsing.parse(EmojiExperiment, values), workdir)


def _train_mixture(values: dict[str, Any], workdir: str) -> None:
    from tuna_jax.trainers import multitask
    from tuna_jax.trainers.config import MultitaskExperiment
    from tuna_jax.utils import config_parsing

    multitask.train(values, config_parsing.parse(MultitaskExperiment, values), workdir)


_KINDS = {"emoji": _train_tuna, "vae": _train_vae, "multitask": _train_mixture}


if __name__ == "__main__":
    malloc.keep()
    app.run(main, flags_parser=parse_flags)
