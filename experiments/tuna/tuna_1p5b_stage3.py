"""TUNA 1.5B, stage 3: instructions, editing, video and images of high quality, at a low learning rate.

python -m tuna_jax.train --config=experiments/tuna/tuna_1p5b_stage3.py --workdir=runs/tuna_1p5b_stage3
"""

from ml_collections import ConfigDict

from tuna_jax.trainers.config import experiment
from tuna_jax.trainers.stream_config import stream


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = experiment()
    config.model = ConfigDict({"preset": "tuna_1p5b"})
    config.model.attention_backend = "auto"  # Splash attention on TPUs.
    config.model.remat = "full"
    config.vae = "weights/tuna_1p5b"
    config.init_from = "runs/tuna_1p5b_stage2"
    config.steps = 50_000  # Not in the paper; taken from the second stage of Tuna-2.

    # Streams: the paper. Weights 50, 20, 20 and 10: the released code; those of video are ours.
    config.data.streams = ConfigDict()
    config.data.streams.draw = stream("t2i", "data/fine_captions.jsonl", 50.0)
    config.data.streams.edit = stream("edit", "data/edits.jsonl", 20.0)
    config.data.streams.answer = stream("understand", "data/image_instructions.jsonl", 20.0)
    config.data.streams.talk = stream("chat", "data/text_instructions.jsonl", 10.0)
    config.data.streams.answer_video = stream(
        "video_understand", "data/video_instructions.jsonl", 5.0
    )
    config.data.streams.draw_video = stream("t2v", "data/fine_video_captions.jsonl", 5.0)

    config.optimizer.learning_rate = 2e-5  # The paper.
    config.optimizer.warmup = 1_000  # The released code.
    # Adam, weight decay, clipping and EMA: the released code.
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema = 0.9999

    config.flow_weight, config.text_weight = 1.0, 0.2  # The paper.
    config.vae_dtype = "bfloat16"  # TPUs multiply in bfloat16 anyway.
    config.mesh.data, config.mesh.fsdp = -1, 16
    config.log_every, config.checkpoint_every = 50, 1_000
    return config
