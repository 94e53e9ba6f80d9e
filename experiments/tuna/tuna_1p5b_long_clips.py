"""TUNA 1.5B on long clips, after its third stage: sequences are split over chips (ring attention).

    :480p    81 frames of 480 x 832, 32,761 visual tokens; for v5e:8x8 (default)
    :720p    121 frames of 720 x 1280, 111,601 visual tokens; for v5p:4x4x4

The clips are latents that `tuna-jax encode-latents` wrote, since a clip's pixels do not fit in memory together with the
model. Neither the lengths nor this stage are in the paper.

python -m tuna_jax.train --config=experiments/tuna/tuna_1p5b_long_clips.py --workdir=runs/tuna_1p5b_long_clips
"""

from ml_collections import ConfigDict

from tuna_jax.trainers.config import experiment
from tuna_jax.trainers.stream_config import stream

# Frames, size, length and parts of a sequence. A part is a multiple of 640 tokens, the kernel's largest block.
CLIPS = {
    "480p": (81, "480x832", 33_280, 4),
    "720p": (121, "720x1280", 112_640, 8),
}


def get_config(arg: str = "480p") -> ConfigDict:
    frames, size, length, parts = CLIPS[arg or "480p"]
    config = experiment()
    config.model = ConfigDict({"preset": "tuna_1p5b"})
    config.model.attention_backend = "auto"  # Splash attention on TPUs.
    config.model.remat = "full"
    config.vae = "weights/tuna_1p5b"
    config.init_from = "runs/tuna_1p5b_stage3"
    config.steps = 10_000

    clips = {"latents": f"data/clips_{arg or '480p'}", "frames": frames, "sizes": (size,)}
    config.data.streams = ConfigDict()
    config.data.streams.draw = stream("t2i", "data/fine_captions.jsonl", 50.0, rows=64)
    config.data.streams.draw_clip = stream("t2v", "", 50.0, rows=16, lengths=(length,), **clips)

    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup = 1_000
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.95
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema = 0.9999

    config.flow_weight, config.text_weight = 1.0, 0.2
    config.vae_dtype = "bfloat16"
    # Parameters over 16 chips at 480p and 8 at 720p; every row of a batch is on `context` chips.
    config.mesh.data, config.mesh.fsdp, config.mesh.context = -1, 64 // parts, parts
    config.log_every, config.checkpoint_every = 50, 500
    return config
