"""TUNA 7B, stage 2: all parameters except the VAE are trained; instructions and editing are added.

The 7B model is trained without video, as in the paper.

    python -m tuna_jax.train --config=experiments/tuna/tuna_7b_stage2.py --workdir=runs/tuna_7b_stage2
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
    config.vae = "weights/tuna_7b"
    config.init_from = "runs/tuna_7b_stage1"
    config.steps = 300_000  # Not in the paper; taken from the first stage of Tuna-2.

    # Streams: the paper. Weights 50, 20, 20 and 10: the released code.
    config.data.streams = ConfigDict()
    config.data.streams.draw = stream("t2i", "data/captions.jsonl", 50.0)
    config.data.streams.edit = stream("edit", "data/edits.jsonl", 20.0)
    config.data.streams.describe = stream(
        "understand", "data/captions.jsonl", 10.0, lengths=(1280,)
    )
    config.data.streams.answer = stream("understand", "data/image_instructions.jsonl", 10.0)
    config.data.streams.talk = stream("chat", "data/text_instructions.jsonl", 10.0)

    config.optimizer.learning_rate = 1e-4  # The released code.
    config.optimizer.warmup = 2_000  # The paper.
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
