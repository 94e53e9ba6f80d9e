"""The demo on pixels: Tuna-2, which has neither VAE nor representation encoder, learns the emoji world.

python -m tuna_jax.train --config=experiments/emoji/tuna_2.py --workdir=runs/emoji_tuna_2
python -m tuna_jax.train --config=experiments/emoji/tuna_2.py:raster --workdir=runs/emoji_tuna_2_raster

The argument `raster` takes the released models' order of pixels: the prediction at a token is a strip of consecutive
pixels instead of the token's own patch.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    demo = Path(__file__).with_name("demo.py")
    config = runpy.run_path(str(demo))["get_config"]("")
    config.model = ConfigDict({"preset": "tuna_2_emoji", "pixels": {"order": arg or "patch"}})

    # The released model's distribution of times.
    config.time.mean = -0.8
    config.time.std = 0.8
    # One half of the released range. With 16 tokens an image, the model must see most of them to know a picture.
    config.masking = ConfigDict({"low": -0.7, "high": 0.15})

    config.steps = 6_000
    config.samples.steps = 25
    config.samples.shift = 1.0
    return config
