"""The small image VAE of the package, trained on emoji scenes of 64 pixels.

    python -m tuna_jax.train --config=experiments/emoji/vae.py --workdir=runs/emoji_vae

Then copy `runs/emoji_vae/emoji_vae.safetensors` to `tuna_jax/assets/`. On a CPU, two devices are faster than one device
with two threads: XLA_FLAGS=--xla_force_host_platform_device_count=2.

The VAE of the package was trained in several phases, since the scenes changed: 6,000 steps on scenes with many sizes
and places of each object (l2 = 2, kl = 1e-3, learning rate 1e-3), 4,700 steps with nine places, the rest on the
current scenes. A further 8,000 steps that include frames of clips started from the result:

    --config.init_from=tuna_jax/assets/emoji_vae.safetensors --config.steps=8000 --config.images.seed=1
    --config.optimizer.learning_rate=8e-4 --config.optimizer.cosine_tail=0.9
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = ConfigDict()
    config.kind = "vae"
    config.preset = "emoji"
    config.encoder_width = 20
    config.decoder_width = 32
    config.blocks = 1
    config.steps = 15_000
    config.batch = 8
    config.seed = 0
    config.init_from = ""

    config.images = ConfigDict()
    config.images.size = 64
    config.images.seed = 0
    config.images.varied = 0.0
    config.images.clips = 0.4

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1.2e-3
    config.optimizer.warmup = 50
    config.optimizer.cosine_tail = 0.35
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema = 0.999

    # Weights of the loss terms.
    config.l1 = 1.0
    config.l2 = 4.0
    config.edge = 1.0
    config.pooled = 1.0
    config.kl = 5e-3

    config.log_every = 20
    config.evaluate_every = 500
    config.checkpoint_every = 500
    config.held_out = 256
    config.export = "emoji_vae.safetensors"
    return config
