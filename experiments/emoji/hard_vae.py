"""The image VAE of the hard world: the shipped one, trained further on pictures of 96 pixels with all of its objects.

python -m tuna_jax.train --config=experiments/emoji/hard_vae.py --workdir=runs/emoji_hard_vae
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    easy = Path(__file__).with_name("vae.py")
    config = runpy.run_path(str(easy))["get_config"](arg)
    config.init_from = "tuna_jax/assets/emoji_vae.safetensors"
    config.images = ConfigDict({"world": "hard", "size": 96, "seed": 0})
    config.steps = 2_000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 30
    config.optimizer.cosine_tail = 0.7
    config.optimizer.ema = 0.995
    config.held_out = 128
    config.export = "emoji_hard_vae.safetensors"
    return config
