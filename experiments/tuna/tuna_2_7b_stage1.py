"""Tuna-2 7B, stage 1: all tasks, from pretrained parts (no VAE and no encoder: pixels, one patch embedding).

The initial parameters are converted from the pretrained models:

    python -m tuna_jax.convert from_torch Qwen2.5-7B-Instruct/ \\
        weights/tuna_2_7b/ --preset=tuna_2_7b

    python -m tuna_jax.train --config=experiments/tuna/tuna_2_7b_stage1.py --workdir=runs/tuna_2_7b_stage1
"""

from ml_collections import ConfigDict

from tuna_jax.trainers.config import experiment
from tuna_jax.trainers.stream_config import stream


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = experiment()
    config.model = ConfigDict({"preset": "tuna_2_7b"})
    config.model.attention_backend = "auto"  # Splash attention on TPUs.
    config.model.remat = "dots_attention"
    config.init_from = "weights/tuna_2_7b"
    config.steps = 300_000  # The first stage of Tuna-2.

    # Streams and their weights: the released code.
    config.data.streams = ConfigDict()
    config.data.streams.draw = stream("t2i", "data/captions.jsonl", 50.0)
    config.data.streams.edit = stream("edit", "data/edits.jsonl", 20.0, sizes=("512x512",))
    config.data.streams.answer = stream("understand", "data/image_instructions.jsonl", 20.0)
    config.data.streams.talk = stream("chat", "data/text_instructions.jsonl", 10.0)

    config.optimizer.learning_rate = 1e-4  # The first stage of Tuna-2.
    config.optimizer.warmup = 2_000  # As for TUNA.
    # Adam, weight decay (of all parameters), clipping and EMA: the released code.
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95
    config.optimizer.weight_decay, config.optimizer.decay = 0.01, "all"
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema = 0.9999

    # Times, noise on the images of questions, weights: the released code (model.md section 12).
    config.time.mean, config.time.std, config.time.shift = -0.8, 0.8, False
    config.input_noise.probability, config.input_noise.level = 0.1, 0.1
    config.masking.low, config.masking.high = -0.7, 0.3  # Hidden tokens (section 13).
    config.flow_weight, config.text_weight = 1.0, 1.0
    # Sampling: the released code's launchers.
    config.samples.steps, config.samples.shift = 50, 1.0
    config.samples.guidance, config.samples.edit_guidance = 3.0, 2.0

    # 3,584 / 32 is a multiple of the tile size; 3,584 / 64 is not.
    config.mesh.data, config.mesh.fsdp = -1, 32
    config.log_every, config.checkpoint_every = 50, 1_000
    return config
