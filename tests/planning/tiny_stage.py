"""A stage of the tiny TUNA, to plan for in tests."""

from ml_collections import ConfigDict

from tuna_jax.trainers.config import experiment
from tuna_jax.trainers.stream_config import stream


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = experiment()
    config.model = ConfigDict({"preset": "tiny", "compute_dtype": "bfloat16", "remat": "none"})
    config.steps = 3_000
    sizes = {"sizes": ("64x64",), "lengths": (64,), "rows": 16}
    config.data.streams = ConfigDict()
    # Latents that were computed in advance: no VAE has to be compiled.
    config.data.streams.draw = stream("t2i", "", 3.0, latents="nowhere", **sizes)
    config.data.streams.describe = stream("understand", "", 1.0, latents="nowhere", **sizes)
    config.samples.size = "64x64"
    config.mesh.data, config.mesh.fsdp = 2, -1
    return config
