"""What the hard world's evaluation measures a model on: prompts and questions about held-out scenes of test splits.

Item i depends only on the seed, the world and the splits, not on how many items there are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from tuna_jax.emoji.evaluation.hard.judge import HardJudge, Seen, is_right
from tuna_jax.emoji.world.captions import Question
from tuna_jax.emoji.world.hard.captions import (
    KINDS,
    Claims,
    HardCaption,
    full_caption,
    hard_questions,
    partial_caption,
    true_relations,
)
from tuna_jax.emoji.world.hard.held_out import available_splits
from tuna_jax.emoji.world.hard.scenes import (
    EVERYTHING,
    SPLITS,
    Difficulty,
    HardScene,
    HardSceneSource,
)
from tuna_jax.emoji.world.scenes import hashed_share

Images = UInt8[np.ndarray, "n size size 3"]
SEED = 7
TEST_SPLITS = tuple(split for split in SPLITS if split != "train")
MAX_NEW_TOKENS = 40
"""Enough for every answer: full captions, the longest, have up to 32 tokens in the vocabulary `emoji_hard`."""
PROMPTS = ("full", "partial", "relation")
# The splits whose scenes have prompts or questions of a kind; the other kinds are about all test splits. A prompt and
# a question of the kind 'relation' are about the same scenes but those of `test_bindings`.
_SPLITS_OF_PROMPT = {"relation": ("test_pairs", "test_bindings", "test_three")}
_SPLITS_OF_KIND = {
    "colour": ("test_colours", "test_bindings"),
    "where": ("test_single", "test_pairs", "test_bindings", "test_three"),
    "relation": ("test_pairs", "test_three"),
    "which": ("test_bindings", "test_three"),
}
# A scene need not have a question of a kind: two objects that are not in line have no relation.
_TRIED_PER_QUESTION = 8


@dataclasses.dataclass(frozen=True)
class Prompted:
    """Held-out scenes with captions, by kind of prompt; pictures are added by `generated`.

    Attributes:
        kind: one of PROMPTS.
        splits: the split of each scene.
        scenes: what the captions were made from.
        captions: texts with their claims.
        seeds: of the noise.
        images: what the model gave; None before.
        seen: what the judge sees in the images; None before.
    """

    kind: str
    splits: tuple[str, ...]
    scenes: tuple[HardScene, ...]
    captions: tuple[HardCaption, ...]
    seeds: tuple[int, ...]
    images: Images | None = None
    seen: tuple[Seen, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts."""
        return tuple(caption.text for caption in self.captions)

    @property
    def claims(self) -> tuple[Claims, ...]:
        """What each prompt claims."""
        return tuple(caption.claims for caption in self.captions)

    @property
    def right(self) -> list[bool]:
        """Whether each picture is as its caption says."""
        return [is_right(c, s) for c, s in zip(self.claims, self.seen, strict=True)]

    def take(self, rows: Sequence[int]) -> Prompted:
        """These prompts only, without pictures; a row may repeat."""
        return Prompted(
            kind=self.kind,
            splits=tuple(self.splits[i] for i in rows),
            scenes=tuple(self.scenes[i] for i in rows),
            captions=tuple(self.captions[i] for i in rows),
            seeds=tuple(self.seeds[i] for i in rows),
        )

    def with_images(self, images: Images, judge: HardJudge) -> Prompted:
        """The prompts with pictures and what the judge sees in them.

        Raises:
            ValueError: the pictures are not uint8 of the scenes' number and size.
        """
        images = np.asarray(images)
        size = self.scenes[0].size
        expected = (len(self.scenes), size, size, 3)
        if images.shape != expected or images.dtype != np.uint8:
            raise ValueError(
                f"generate returned {images.dtype} of shape {images.shape} for {len(self.scenes)} prompts; it must be "
                f"uint8 {list(expected)}"
            )
        return dataclasses.replace(self, images=images, seen=tuple(judge(images)))


def chosen_splits(splits: Sequence[str], difficulty: Difficulty = EVERYTHING) -> tuple[str, ...]:
    """The test splits that are named, or all that the world has if none is named.

    Raises:
        ValueError: a name that is no test split, or a split that the world has no scenes of.
    """
    for split in splits:
        if split not in TEST_SPLITS:
            raise ValueError(f"splits has {split!r}; the test splits are {', '.join(TEST_SPLITS)}")
    for split in splits:
        HardSceneSource(split, difficulty=difficulty)  # An error if there is no such scene.
    return tuple(splits) or available_splits(difficulty)


def splits_of_prompt(kind: str, splits: Sequence[str]) -> tuple[str, ...]:
    """Those of `splits` whose scenes can have a prompt of this kind of PROMPTS; may be empty."""
    return tuple(s for s in splits if s in _SPLITS_OF_PROMPT.get(kind, TEST_SPLITS))


def splits_of_question(kind: str, splits: Sequence[str]) -> tuple[str, ...]:
    """Those of `splits` whose scenes have questions of this kind of `captions.KINDS`, in their usual order; may be
    empty."""
    return tuple(s for s in _SPLITS_OF_KIND.get(kind, TEST_SPLITS) if s in splits)


def _check_any(
    splits: Sequence[str], named: Sequence[str], what: str, required: Sequence[str]
) -> None:
    """Raises ValueError if none of the splits that are named has scenes for `what`."""
    if not splits:
        raise ValueError(
            f"splits is {', '.join(named)}; {what} require one of {', '.join(required)}"
        )


def prompts(
    kind: str,
    count: int,
    *,
    seed: int = SEED,
    size: int = 96,
    difficulty: Difficulty = EVERYTHING,
    splits: Sequence[str] = (),
) -> Prompted:
    """`count` prompts about held-out scenes, of the test splits in turn; 'relation' of those that can have one.

    Prompt i depends on the other arguments only, not on `count`. `splits` are as in `chosen_splits`.

    Raises:
        ValueError: no prompts, an unknown kind, or splits without prompts of this kind.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    if kind not in PROMPTS:
        raise ValueError(f"kind is {kind!r}; the kinds of prompts are {', '.join(PROMPTS)}")
    named = chosen_splits(splits, difficulty)
    splits = splits_of_prompt(kind, named)
    _check_any(splits, named, f"prompts of the kind {kind!r}", _SPLITS_OF_PROMPT.get(kind, ()))
    sources = {split: HardSceneSource(split, seed, size, difficulty=difficulty) for split in splits}
    taken: list[tuple[str, HardScene, HardCaption]] = []
    for index in itertools.count():
        for split in splits:
            if len(taken) == count:
                names, scenes, captions = zip(*taken, strict=True)
                seeds = tuple(
                    seed * 1_000_003 + PROMPTS.index(kind) * 100_003 + i for i in range(count)
                )
                return Prompted(kind, names, scenes, captions, seeds)
            scene = sources[split][index]
            number = int(hashed_share("hard caption", kind, seed, split, index) * 2**53)
            random = np.random.default_rng(number)
            if kind == "relation" and not true_relations(scene):
                continue
            if kind == "full":
                caption = full_caption(scene, random)
            else:
                caption = partial_caption(
                    scene, random, {"relation": 1.0} if kind == "relation" else None
                )
            taken.append((split, scene, caption))
    raise AssertionError("unreachable: the sources are endless")


def questions_of_kind(
    kind: str,
    count: int,
    *,
    seed: int = SEED,
    size: int = 96,
    difficulty: Difficulty = EVERYTHING,
    splits: Sequence[str] = (),
) -> list[tuple[HardScene, Question]]:
    """The first questions of a kind about held-out scenes, at most `count`, of the splits that have them in turn.

    Question i depends on the other arguments only, not on `count`. `splits` are as in `chosen_splits`.

    Raises:
        KeyError: an unknown kind.
        ValueError: no questions, or splits without questions of this kind.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    if kind not in KINDS:
        raise KeyError(f"{kind!r} is not a kind of question; the kinds are {', '.join(KINDS)}")
    named = chosen_splits(splits, difficulty)
    splits = splits_of_question(kind, named)
    _check_any(splits, named, f"questions of the kind {kind!r}", _SPLITS_OF_KIND.get(kind, ()))
    sources = [HardSceneSource(split, seed, size, difficulty=difficulty) for split in splits]
    chosen: list[tuple[HardScene, Question]] = []
    for index in range(_TRIED_PER_QUESTION * count):
        scene = sources[index % len(sources)][index // len(sources)]
        fitting = [item for item in hard_questions(scene) if item.kind == kind]
        if fitting and len(chosen) < count:
            chosen.append((scene, fitting[index // len(sources) % len(fitting)]))
    return chosen
