"""TUNA 7B, stage 1: images and captions; the LLM is frozen.

The 7B model is trained without video, as in the paper.

The initial parameters are converted from the pretrained models:

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
    config.model.attention_backend = "auto"  # Splash attention on TPUs.
    config.model.remat = "dots_attention"
    config.vae = config.init_from = "weights/tuna_7b"
    config.steps = 150_000  # Not in the paper; taken from stage 1 of Show-o2.

    # Streams: the paper. Weights 50 (generation) and 20 (understanding): the released code.
    config.data.streams = ConfigDict()
    config.data.streams.draw = stream("t2i", "data/captions.jsonl", 50.0)
    config.data.streams.describe = stream(
        "understand", "data/captions.jsonl", 20.0, lengths=(1280,)
    )

    config.optimizer.frozen = ("language",)
    config.optimizer.learning_rate = 1e-4  # The released code and Show-o2.
    config.optimizer.warmup = 2_000  # Show-o2.
    # Adam, weight decay, clipping and EMA: the released code.
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema = 0.9999

    config.flow_weight, config.text_weight = 1.0, 0.2  # The paper.
    config.vae_dtype = "bfloat16"  # TPUs multiply in bfloat16 anyway.
    config.mesh.data, config.mesh.fsdp = (
        -1,
        32,
    )  # 3,584 / 32 is a multiple of the tile size; 3,584 / 64 is not.
    config.log_every, config.checkpoint_every = 50, 1_000
    return config
