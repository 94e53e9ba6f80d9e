"""A LoRA of TUNA 7B on your own captioned images.

    python -m tuna_jax.train --config=experiments/tuna/tuna_7b_lora.py --workdir=runs/lora

docs/finetuning.md has the steps before and after, and what fits where.
"""

from ml_collections import ConfigDict

from tuna_jax.trainers.config import experiment
from tuna_jax.trainers.stream_config import stream


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = experiment()
    config.model = ConfigDict({"preset": "tuna_7b"})
    config.model.attention_backend = "auto"  # Splash attention on TPUs.
    config.model.remat = "full"
    config.init_from = "weights/tuna_7b"  # The frozen model, as `convert from_torch` wrote it.
    config.vae = "weights/tuna_7b"
    config.steps = 2_000

    # 63.6 million of 13.07 billion parameters are trained.
    config.lora.targets = (
        "language.attention",
        "language.mlp",
        "flow_head.attention",
        "flow_head.mlp",
    )
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.lora.dropout = 0.0
    config.lora.trained = ()
    config.lora.base_dtype = "bfloat16"

    config.data.streams = ConfigDict()
    config.data.streams.draw = stream("t2i", "data/captions.jsonl", 1.0, rows=16)

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 100
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema = 0.99

    config.vae_dtype = "bfloat16"  # TPUs multiply in bfloat16 anyway.
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.log_every, config.checkpoint_every = 20, 500
    return config
