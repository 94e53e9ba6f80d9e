"""TUNA 7B, stage 1: pictures and captions; the LLM is frozen.

The 7B sees no video, as in the paper.

The parameters to begin with are those of its parents:

    python -m tuna_jax.convert from_torch Qwen2.5-7B-Instruct/ siglip2-so400m-patch16-384/ Wan2.2_VAE.pth \\
        weights/tuna_7b/ --preset=tuna_7b

    python -m tuna_jax.train --config=experiments/tuna/tuna_7b_stage1.py --workdir=runs/tuna_7b_stage1
"""

from ml_collections import ConfigDict

from tuna_jax.trainers.config import experiment
from tuna_jax.trainers.stream_config import stream


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = experiment()
    config.model = ConfigDict({"preset": "tuna_7b"})
    config.model.attention_backend = "auto"  # The splash kernel on TPUs.
    config.model.remat = "dots_attention"
    config.vae = config.init_from = "weights/tuna_7b"
    config.steps = 150_000  # Not in the paper: Show-o2's stage 1.

    # Which streams: the paper. Their shares: the released code has 50 to draw and 20 to understand.
    config.data.streams = ConfigDict()
    config.data.streams.draw = stream("t2i", "data/captions.jsonl", 50.0)
    config.data.streams.describe = stream(
        "understand", "data/captions.jsonl", 20.0, lengths=(1280,)
    )

    config.optimizer.frozen = ("language",)
    config.optimizer.learning_rate = 1e-4  # The released code and Show-o2.
    config.optimizer.warmup = 2_000  # Show-o2.
    # From here to the average: the released code.
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema = 0.9999

    config.flow_weight, config.text_weight = 1.0, 0.2  # The paper.
    config.vae_dtype = "bfloat16"  # A TPU multiplies in it anyway.
    config.mesh.data, config.mesh.fsdp = -1, 32  # 3,584 / 32 fills whole tiles; / 64 does not.
    config.log_every, config.checkpoint_every = 50, 1_000
    return config
