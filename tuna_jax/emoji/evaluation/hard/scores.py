"""Accuracies in the hard world: pictures of held-out combinations from captions, and answers about them.

The model is given as plain functions on uint8 pictures, so any front end is judged by the same code:

    generate(prompts, seeds)   -> uint8 pictures [n, size, size, 3]; picture i depends only on prompt i and seed i
    answer(images, questions)  -> a list of texts

The chance level of a score about pictures is that of a model that ignores its caption and gives a perfect picture of
another scene of the same kind: other scenes' true contents are judged by the same claims.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from tuna_jax.emoji.evaluation.hard.judge import HardJudge, Seen, is_right, seen_in, verdicts
from tuna_jax.emoji.evaluation.images import AnsweredQuestion
from tuna_jax.emoji.world.hard.captions import (
    KINDS,
    NUMBERS,
    Claims,
    HardCaption,
    full_caption,
    hard_questions,
    partial_caption,
    true_relations,
)
from tuna_jax.emoji.world.hard.nouns import NAMES
from tuna_jax.emoji.world.hard.rendering import render_hard
from tuna_jax.emoji.world.hard.scenes import (
    EVERYTHING,
    SPLITS,
    Difficulty,
    HardScene,
    HardSceneSource,
)
from tuna_jax.emoji.world.scenes import hashed_share
from tuna_jax.evaluation.metrics.accuracy import Score, commonest_share

Images = UInt8[np.ndarray, "n size size 3"]
Generate = Callable[[Sequence[str], Sequence[int]], Images]
Answer = Callable[[Images, Sequence[str]], Sequence[str]]

SEED = 7
TEST_SPLITS = tuple(split for split in SPLITS if split != "train")
PROMPTS = ("full", "partial", "relation")
GENERATION_SCORES = (
    "hard_full_accuracy",
    "hard_partial_accuracy",
    "hard_object_accuracy",
    "hard_binding_accuracy",
    "hard_unseen_colour_accuracy",
    "hard_size_accuracy",
    "hard_place_accuracy",
    "hard_relation_accuracy",
    "hard_count_accuracy",
    "hard_ground_accuracy",
)
"""Names of the scores about pictures, in the order of the report; the distributions' are in `distribution.py`."""
ANSWER_SCORES = {f"hard_{kind}_answer_accuracy": kind for kind in KINDS}
"""Name -> kind of question."""
# The splits whose scenes have questions of a kind; the others are asked about all test splits.
_SPLITS_OF_KIND = {
    "colour": ("test_colours", "test_bindings"),
    "where": ("test_single", "test_pairs", "test_bindings", "test_three"),
    "relation": ("test_pairs", "test_three"),
    "which": ("test_bindings", "test_three"),
}
# A scene need not have a question of a kind: two objects that are not in line have no relation.
_TRIED_PER_QUESTION = 8
_SHIFTS = 8


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


def prompts(
    kind: str,
    count: int,
    *,
    seed: int = SEED,
    size: int = 96,
    difficulty: Difficulty = EVERYTHING,
) -> Prompted:
    """`count` prompts about held-out scenes, of all test splits in turn; 'relation' of those that can have one.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in PROMPTS:
        raise ValueError(f"kind is {kind!r}; the kinds of prompts are {', '.join(PROMPTS)}")
    splits = ("test_pairs", "test_bindings", "test_three") if kind == "relation" else TEST_SPLITS
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


def generated(prompted: Prompted, generate: Generate, judge: HardJudge) -> Prompted:
    """The prompts with the model's pictures."""
    return prompted.with_images(generate(prompted.texts, prompted.seeds), judge)


def true_pictures(
    prompted: Prompted, judge: HardJudge, through: Callable[[Images], Images] | None = None
) -> Prompted:
    """The prompts with true renderings of their scenes, or with those after `through` (a VAE, a blur)."""
    images = np.stack([render_hard(scene, judge.art) for scene in prompted.scenes])
    return prompted.with_images(through(images) if through else images, judge)


Verdict = Callable[[Claims, Seen], "bool | None"]


def _score(
    parts: Sequence[Prompted],
    verdict: Verdict,
    *,
    splits: Sequence[str] = TEST_SPLITS,
    by: Callable[[str, Claims], str] | None = None,
) -> Score | None:
    """The score of a verdict over all pictures of some splits that it applies to; None if there are none."""
    right: list[bool] = []
    chance: list[float] = []
    groups: dict[str, list[bool]] = {}
    for part in parts:
        by_split = {s: [i for i, at in enumerate(part.splits) if at == s] for s in splits}
        for rows in by_split.values():
            contents = [seen_in(part.scenes[i]) for i in rows]
            for at, i in enumerate(rows):
                value = verdict(part.claims[i], part.seen[i])
                if value is None:
                    continue
                right.append(value)
                if by:
                    groups.setdefault(by(part.splits[i], part.claims[i]), []).append(value)
                others = range(1, min(_SHIFTS, len(rows) - 1) + 1)
                guesses = [
                    verdict(part.claims[i], contents[(at + shift) % len(rows)]) for shift in others
                ]
                chance.append(float(np.mean([bool(g) for g in guesses])) if guesses else 0.0)
    if not right:
        return None
    return Score.of(right, float(np.mean(chance)), groups)


def _aspect(name: str) -> Verdict:
    return lambda claims, seen: verdicts(claims, seen)[name]


def _all_aspects(*names: str) -> Verdict:
    def verdict(claims: Claims, seen: Seen) -> bool | None:
        found = verdicts(claims, seen)
        if any(found[name] is None for name in names):
            return None
        return all(found[name] for name in names)

    return verdict


def generation_scores(parts: Sequence[Prompted]) -> dict[str, Score]:
    """Every score of GENERATION_SCORES that the pictures of one or more kinds of prompts allow."""
    of_kind = {part.kind: [part] for part in parts}
    both = [part for part in parts if part.kind in ("full", "partial")]

    def layout(split: str, claims: Claims) -> str:
        del claims
        return split.removeprefix("test_")

    def number(split: str, claims: Claims) -> str:
        del split
        return NUMBERS[claims.count]

    def relation(split: str, claims: Claims) -> str:
        del split
        return " and ".join(sorted(r.relation for r in claims.relations))

    found = {
        "hard_full_accuracy": _score(of_kind.get("full", []), is_right, by=layout),
        "hard_partial_accuracy": _score(of_kind.get("partial", []), is_right, by=layout),
        "hard_object_accuracy": _score(both, _aspect("objects"), by=layout),
        "hard_binding_accuracy": _score(
            of_kind.get("full", []),
            _all_aspects("objects", "colour", "size"),
            splits=("test_bindings",),
        ),
        "hard_unseen_colour_accuracy": _score(
            both, _all_aspects("objects", "colour"), splits=("test_colours",)
        ),
        "hard_size_accuracy": _score(both, _aspect("size")),
        "hard_place_accuracy": _score(both, _aspect("place")),
        "hard_relation_accuracy": _score(
            of_kind.get("relation", []), _all_aspects("relation"), by=relation
        ),
        "hard_count_accuracy": _score(both, _aspect("objects"), splits=("test_counts",), by=number),
        "hard_ground_accuracy": _score(both, _aspect("ground")),
    }
    return {name: score for name, score in found.items() if score is not None}


def ask_hard(
    answer: Answer,
    kind: str,
    count: int,
    *,
    seed: int = SEED,
    size: int = 96,
    through: Callable[[Images], Images] | None = None,
    difficulty: Difficulty = EVERYTHING,
) -> tuple[Score, list[AnsweredQuestion]]:
    """Asks one kind of question about renderings of held-out scenes; only exact answers are right.

    Args:
        answer: the model.
        kind: one of `captions.KINDS`.
        count: number of questions, of all splits that have them in turn.
        seed: of the scenes.
        size: side of the images in pixels.
        through: changes the images before they are shown, for example a VAE.
        difficulty: of the scenes.

    Raises:
        KeyError: an unknown kind.
        ValueError: the number of answers differs from the number of questions.
    """
    if kind not in KINDS:
        raise KeyError(f"{kind!r} is not a kind of question; the kinds are {', '.join(KINDS)}")
    splits = _SPLITS_OF_KIND.get(kind, TEST_SPLITS)
    sources = [HardSceneSource(split, seed, size, difficulty=difficulty) for split in splits]
    scenes, chosen = [], []
    for index in range(_TRIED_PER_QUESTION * count):
        scene = sources[index % len(sources)][index // len(sources)]
        fitting = [item for item in hard_questions(scene) if item.kind == kind]
        if fitting and len(chosen) < count:
            scenes.append(scene)
            chosen.append(fitting[index // len(sources) % len(fitting)])
    images = np.stack([render_hard(scene) for scene in scenes])
    images = through(images) if through else images
    texts = list(answer(images, [item.question for item in chosen]))
    if len(texts) != len(chosen):
        raise ValueError(f"answer returned {len(texts)} texts for {len(chosen)} questions")
    answered = [
        AnsweredQuestion(image, kind, item.question, item.answer, text)
        for image, item, text in zip(images, chosen, texts, strict=True)
    ]
    commonest = commonest_share([item.answer for item in chosen])
    chance = max(commonest, 1 / len(NAMES)) if kind in ("name", "relation") else commonest
    return Score.of([item.right for item in answered], chance), answered
