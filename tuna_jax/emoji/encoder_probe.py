"""What a frozen encoder's features contain: linear classifiers of the object in the middle of a scene and its ground.

The scenes are of the hard world, and different from those that encoders are trained on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from tuna_jax.emoji import latent_pool
from tuna_jax.emoji.config import EmojiData
from tuna_jax.emoji.model_bundle import ModelBundle
from tuna_jax.emoji.world import worlds
from tuna_jax.emoji.world.hard.scenes import HardScene, HardSceneSource, box_of_cell

_MIDDLE = 4
_STEPS, _RATE, _DECAY = 300, 0.03, 1e-3
_FEW = 240
Features = Callable[[Float[np.ndarray, "n t h w c"]], Float[np.ndarray, "n thw d"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """The scenes of the probe.

    Attributes:
      train, test: number of scenes that classifiers are trained and measured on.
    """

    train: int = 2_000
    test: int = 1_000


class MiddleScenes:
    """Scenes with an object in the middle cell: item i is the first one of `source` from index 100 i on."""

    def __init__(self, source: HardSceneSource):
        self._source = source

    def __len__(self) -> int:
        return len(self._source) // 100

    def settings(self) -> dict[str, object]:
        """Everything that the scenes depend on."""
        return {"middle": _MIDDLE, "source": self._source.settings()}

    def __getitem__(self, index: int) -> HardScene:
        """Scene `index`."""
        at = 100 * index
        while _middle_name(self._source[at]) is None:
            at += 1
        return self._source[at]


def _middle_name(scene: HardScene) -> str | None:
    """The name of the object in the middle cell."""
    return next((group.name for group in scene.groups if _MIDDLE in group.cells), None)


@dataclasses.dataclass(frozen=True)
class ProbeData:
    """Latents of scenes, the training scenes first, and their labels.

    Attributes:
      latents: posterior means.
      middle: which tokens, frame-major, then row, then column, are of the middle cell.
      labels: by 'name' and 'ground', the number of each scene's class.
      train: number of training scenes.
    """

    latents: Float[np.ndarray, "n t h w c"]
    middle: Int[np.ndarray, " m"]
    labels: dict[str, Int[np.ndarray, " n"]]
    train: int


def probe_data(
    bundle: ModelBundle, data: EmojiData, settings: ProbeSettings, progress: bool = True
) -> ProbeData:
    """The probe's scenes in the world of `data`; the first call encodes them, and keeps their latents on disk.

    Raises:
      ValueError: the world is not the hard one.
    """
    if data.world != "hard":
        raise ValueError(
            f"config.data.world is {data.world!r}; encoders are trained and probed in the world 'hard'"
        )
    world = worlds.world(data.world, data.partial, data.difficulty)
    scenes = MiddleScenes(world.source("train", data.seed + 1_000_003, data.size))
    count = settings.train + settings.test
    pool = latent_pool.encode_pool(
        scenes, count, bundle.encode, bundle.latents_key, pictures=world.render, progress=progress
    )
    described = [scenes[index] for index in range(count)]
    return ProbeData(
        np.asarray(pool.mean, np.float32),
        middle_tokens(pool.latent_shape[1], data.size),
        {
            "name": _numbers([_middle_name(scene) for scene in described]),
            "ground": _numbers([scene.ground for scene in described]),
        },
        settings.train,
    )


def middle_tokens(grid: int, size: int) -> Int[np.ndarray, " m"]:
    """The tokens of a `grid x grid` image of `size` pixels whose centres are in the middle cell."""
    left, _, side = box_of_cell(_MIDDLE, size)
    centres = (np.arange(grid) + 0.5) * size / grid
    inside = np.flatnonzero((left <= centres) & (centres < left + side))
    return (inside[:, None] * grid + inside).reshape(-1)


def _numbers(values: list[Any]) -> Int[np.ndarray, " n"]:
    """The place of each value among the sorted different ones."""
    return np.unique(np.array(values), return_inverse=True)[1].astype(np.int32)


def measure(data: ProbeData, features: Features) -> dict[str, float]:
    """Accuracies on the test scenes.

    Returns:
      `name`, `name_few`: the object's name from the mean over its own tokens, with all training scenes and with the
      first 240; `name_pooled`: from the mean over all tokens of the image; `ground`: the ground from that mean.
    """
    tokens = np.asarray(features(data.latents), np.float32)
    own, pooled = tokens[:, data.middle].mean(1), tokens.mean(1)
    names, grounds = data.labels["name"], data.labels["ground"]
    return {
        "name": linear_accuracy(own, names, data.train, data.train),
        "name_few": linear_accuracy(own, names, min(_FEW, data.train), data.train),
        "name_pooled": linear_accuracy(pooled, names, data.train, data.train),
        "ground": linear_accuracy(pooled, grounds, data.train, data.train),
    }


def chance(data: ProbeData) -> dict[str, float]:
    """The accuracies of always naming the class that is commonest in the training scenes."""
    values = {}
    for name, labels in data.labels.items():
        commonest = np.bincount(labels[: data.train]).argmax()
        values[name] = float(np.mean(labels[data.train :] == commonest))
    name, ground = values["name"], values["ground"]
    return {"name": name, "name_few": name, "name_pooled": name, "ground": ground}


def linear_accuracy(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], train: int, test: int
) -> float:
    """The accuracy, on the rows from `test` on, of a logistic regression on the first `train` rows.

    Features are brought to mean 0 and variance 1 of the training rows; 300 steps of Adam on all rows at once, with a
    weight decay of 1e-3 in the loss.
    """
    first = features[:train]
    scaled = (features - first.mean(0)) / (first.std(0) + 1e-6)
    classes = int(labels.max()) + 1
    weights = _fit(jnp.asarray(scaled[:train]), jnp.asarray(labels[:train]), classes)
    scores = scaled[test:] @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
    return float(np.mean(scores.argmax(1) == labels[test:]))


@functools.partial(jax.jit, static_argnums=2)
def _fit(features: Float[Array, "n d"], labels: Int[Array, " n"], classes: int) -> dict[str, Array]:
    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, _STEPS))
    weights = {
        "kernel": jnp.zeros((features.shape[1], classes)),
        "bias": jnp.zeros(classes),
    }

    def loss(weights: dict[str, Array]) -> Float[Array, ""]:
        scores = features @ weights["kernel"] + weights["bias"]
        fit = optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()
        return fit + _DECAY * jnp.square(weights["kernel"]).sum()

    def step(_: Any, carry: Any) -> Any:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    return jax.lax.fori_loop(0, _STEPS, step, (weights, optimizer.init(weights)))[0]
