"""A run of the tiny emoji model as training leaves it: checkpoints with parameters and their average."""

import runpy
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from tuna_jax.config import from_dict, preset
from tuna_jax.models import tuna, vae
from tuna_jax.training import image_vae
from tuna_jax.training.checkpoints import Checkpoints

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "emoji.py"


def experiment(folder):
    """The demo's experiment with the tiny model and a VAE of random weights, as a mapping."""
    config = preset("tiny").vae
    params = vae.init(config, jax.random.key(0), image_only=True)
    statistics = np.zeros(config.latent_channels, np.float32), np.ones(8, np.float32)
    path = image_vae.export(folder / "vae.safetensors", config, params, statistics)
    values = runpy.run_path(str(EXPERIMENT))["get_config"]().to_dict()
    values |= {"vae": str(path), "model": {"preset": "tiny", "language": {"vocabulary": 640}}}
    values["samples"] |= {"points": 3, "count": 4}
    return values


def parameters(values, seed):
    """Random weights; AdaLN-Zero and other zeros would hide what depends on what."""
    random = np.random.default_rng(seed)
    made = tuna.init(from_dict(values["model"]), jax.random.key(seed))
    return jax.tree.map(
        lambda leaf: (
            np.asarray(leaf) + 0.05 * random.standard_normal(leaf.shape).astype(np.float32)
        ),
        made,
    )


def save(workdir, values, steps):
    """Checkpoints of these steps; the parameters of a step are those of its number, the average's of the next."""
    saved = Checkpoints(workdir / "checkpoints", keep=99)
    for step in steps:
        state = {"params": parameters(values, step), "ema": parameters(values, step + 1)}
        saved.save(step, state, config=values)
    saved.close()


@pytest.fixture(scope="session")
def tiny_run():
    """The functions above."""
    return types.SimpleNamespace(experiment=experiment, parameters=parameters, save=save)
