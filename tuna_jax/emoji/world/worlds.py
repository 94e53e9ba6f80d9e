"""What training and evaluation need of a world of scenes: the easy one ('scenes'), and the hard one.

A scene is a description; `render` makes its uint8 picture. Whether a model gets the picture itself or latents of a VAE
is decided later (`latent_pool.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tuna_jax.emoji.world import captions as easy_captions
from tuna_jax.emoji.world.captions import Question
from tuna_jax.emoji.world.hard import captions as hard_captions
from tuna_jax.emoji.world.hard.rendering import render_hard
from tuna_jax.emoji.world.hard.scenes import EVERYTHING, Difficulty, HardScene, HardSceneSource
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import SceneSource

WORLDS = ("scenes", "hard")


@dataclasses.dataclass(frozen=True)
class World:
    """A world's scenes and their texts.

    Attributes:
        name: one of WORLDS.
        source: (split, seed, size, length=..., weights=...) -> scenes by index.
        render: the picture of a scene.
        phrasings: captions of a scene; those of the hard world are drawn from the random state.
        questions: all questions about a scene.
        kinds: the kinds of questions; 'ground', 'count' and 'describe' are among every scene's.
        question_weights: default relative frequency of each kind in training.
        sheet_splits: the test splits whose prompts the contact sheets of training show in turn.
    """

    name: str
    source: Callable[..., Any]
    render: Callable[[Any], UInt8[np.ndarray, "size size 3"]]
    phrasings: Callable[[Any, np.random.Generator], Sequence[str]]
    questions: Callable[[Any], list[Question]]
    kinds: tuple[str, ...]
    question_weights: Mapping[str, float]
    sheet_splits: tuple[str, ...]


SCENES = World(
    "scenes",
    SceneSource,
    render,
    lambda scene, random: easy_captions.captions(scene),
    easy_captions.questions,
    easy_captions.KINDS,
    {
        "name": 5.0,
        "ground": 1.0,
        "where": 1.0,
        "count": 1.0,
        "relation": 0.5,
        "list": 1.0,
        "describe": 1.0,
    },
    ("test_single", "test_pairs"),
)


def hard_world(partial: float, difficulty: Difficulty = EVERYTHING) -> World:
    """The hard world; `partial` is the share of captions that leave things open."""
    return World(
        "hard",
        functools.partial(HardSceneSource, difficulty=difficulty),
        render_hard,
        functools.partial(_hard_phrasings, partial=partial),
        hard_captions.hard_questions,
        hard_captions.KINDS,
        hard_captions.DEFAULT_QUESTION_WEIGHTS,
        ("test_single", "test_pairs", "test_bindings", "test_three", "test_counts"),
    )


def _hard_phrasings(
    scene: HardScene, random: np.random.Generator, partial: float
) -> tuple[str, ...]:
    return (hard_captions.caption(scene, random, partial).text,)


def world(name: str, partial: float = 0.5, difficulty: Difficulty = EVERYTHING) -> World:
    """The world of this name.

    Raises:
        ValueError: an unknown name, or a share that is not between 0 and 1.
    """
    if name not in WORLDS:
        raise ValueError(f"config.data.world is {name!r}; the worlds are {', '.join(WORLDS)}")
    if not 0 <= partial <= 1:
        raise ValueError(f"config.data.partial is {partial}; it must be between 0 and 1")
    return SCENES if name == "scenes" else hard_world(partial, difficulty)
