"""An encoder that learns from pictures of the hard world only: it predicts hidden parts of their latents.

python -m tuna_jax.train --config=experiments/ablations/encoders/masked.py --workdir=runs/masked

It is the study's encoder without captions. docs/ablations.md says what it has learned, why it is trained in this way,
and how a TUNA model starts from it.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    contrastive = Path(__file__).with_name("contrastive.py")
    config = runpy.run_path(str(contrastive))["get_config"](arg)
    del config.contrastive
    config.method = "masked"
    config.steps = 320
    config.masked = ConfigDict({"hidden": 0.6})
    return config
