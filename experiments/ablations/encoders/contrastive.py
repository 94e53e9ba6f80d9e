"""An encoder that learns from captions: SigLIP's sigmoid loss between pictures of the hard world and their captions.

python -m tuna_jax.train --config=experiments/ablations/encoders/contrastive.py --workdir=runs/contrastive

docs/ablations.md says what it has learned, and how a TUNA model starts from it.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    hard = Path(__file__).parents[2] / "emoji" / "hard.py"
    hard_config = runpy.run_path(str(hard))["get_config"](arg)
    config = ConfigDict()
    config.kind = "encoder"
    config.method = "contrastive"
    # The encoder, the VAE and the scenes of the model that starts from it.
    config.model = hard_config.model
    config.vae = hard_config.vae
    config.data = hard_config.data
    config.caption_length = 40

    config.steps = 320
    config.batch = 128
    config.seed = 0

    config.optimizer = ConfigDict()
    config.optimizer.algorithm = "muon"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 30
    config.optimizer.cosine_tail = 0.6
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema = 0.98

    # The text transformer, and SigLIP's initial temperature and bias.
    config.contrastive = ConfigDict()
    config.contrastive.width = 96
    config.contrastive.layers = 1
    config.contrastive.heads = 3
    config.contrastive.mlp = 256
    config.contrastive.embedding = 96
    config.contrastive.temperature = 10.0
    config.contrastive.bias = -10.0

    config.probe = ConfigDict({"train": 2_000, "test": 1_000})
    config.log_every = 20
    config.checkpoint_every = 200
    config.export = "encoder.safetensors"
    return config
