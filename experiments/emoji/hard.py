"""A model of the hard world: pictures of up to five objects with sizes and colours, and questions about them.

python -m tuna_jax.train --config=experiments/emoji/hard.py --workdir=runs/emoji_hard

docs/hard_world.md says what is in the world, what is measured, and how this file was calibrated.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    easy = Path(__file__).with_name("demo.py")
    config = runpy.run_path(str(easy))["get_config"](arg)
    config.steps = 1_500
    config.vae = (
        "emoji_hard_vae"  # Of the package: the demo's, trained further on this world's pictures.
    )
    config.model.representation = ConfigDict({"grid": 6})

    config.data.world = "hard"
    config.data.partial = 0.5
    config.data.nouns = 12
    config.data.colours = 4
    config.data.scenes = 10_000
    config.data.size = 96
    config.data.length = 80
    config.data.layouts = ConfigDict(
        {"single": 0.3, "pair": 0.3, "three": 0.15, "count": 0.15, "groups": 0.1}
    )
    config.data.vocabulary = "emoji_hard"

    config.samples.count = 25
    config.sample_every = 0
    config.checkpoint_every = 500
    return config
