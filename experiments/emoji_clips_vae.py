"""The image VAE that ships for clips as well as pictures: the one of emoji_vae.py, trained on with frames of clips.

    python -m tuna_jax.train --config=experiments/emoji_clips_vae.py --workdir=runs/emoji_clips_vae

Then copy `runs/emoji_clips_vae/emoji_clips_vae.safetensors` to `tuna_jax/assets/`. On a CPU two devices are faster than
two threads of one: XLA_FLAGS=--xla_force_host_platform_device_count=2.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    pictures = Path(__file__).with_name("emoji_vae.py")
    config = runpy.run_path(str(pictures))["get_config"](arg)
    config.start = "tuna_jax/assets/emoji_vae.safetensors"
    config.images.clips = 0.4
    config.images.seed = 1  # Other scenes than those that it has seen.
    config.steps = 8_000
    config.optimizer.learning_rate = 8e-4
    config.optimizer.cosine_tail = 0.9
    config.export = "emoji_clips_vae.safetensors"
    return config
