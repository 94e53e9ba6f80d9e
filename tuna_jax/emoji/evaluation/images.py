"""Evaluation of images: generation and understanding of combinations that training never uses.

The model is given as plain functions, so this module depends on neither networks nor tokenizers:

    generate(prompts, seed)    -> uint8 images [n, size, size, 3]
    answer(images, questions)  -> a list of texts
    reconstruct(images)        -> the images after the VAE
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from tuna_jax.emoji.evaluation.judges import (
    JUDGES,
    ObjectJudge,
    judge_ground,
    judge_place,
    pair_cells,
)
from tuna_jax.emoji.world.captions import captions, questions
from tuna_jax.emoji.world.rendering import Art, default_art, render
from tuna_jax.emoji.world.scenes import (
    COUNT_CELLS,
    GROUNDS,
    NAMES,
    PLACE_CELLS,
    PLACES,
    RELATIONS,
    Cell,
    Scene,
    SceneSource,
)
from tuna_jax.evaluation.metrics.accuracy import Score, commonest_share
from tuna_jax.evaluation.metrics.psnr_ssim import capped_psnr

Images = UInt8[np.ndarray, "n size size 3"]
Generate = Callable[[Sequence[str], int], Images]
Answer = Callable[[Images, Sequence[str]], Sequence[str]]
Reconstruct = Callable[[Images], Images]

SEED = 7


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Images for a contact sheet, each with a label and whether it was judged right (None: not judged)."""

    title: str
    images: UInt8[np.ndarray, "n height width 3"]
    labels: tuple[str, ...]
    right: tuple[bool | None, ...]


@dataclasses.dataclass(frozen=True)
class AnsweredQuestion:
    """A question with the model's answer, for the report's table."""

    image: UInt8[np.ndarray, "height width 3"]
    kind: str
    question: str
    expected: str
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer is exact, ignoring surrounding whitespace."""
        return self.answer.strip() == self.expected


@dataclasses.dataclass(frozen=True)
class GeneratedScenes:
    """Scenes of a test split, and what the model generated from their captions."""

    scenes: tuple[Scene, ...]
    prompts: tuple[str, ...]
    images: Images

    @property
    def grounds(self) -> list[str]:
        """The ground colour that each prompt names."""
        return [scene.ground for scene in self.scenes]


def test_scenes(split: str, count: int, seed: int = SEED, size: int = 64) -> tuple[Scene, ...]:
    """The first `count` scenes of a test split."""
    source = SceneSource(split, seed, size)
    return tuple(source[i] for i in range(count))


def generate_split(
    generate: Generate, split: str, count: int, seed: int = SEED, size: int = 64
) -> GeneratedScenes:
    """Generates images of `count` held-out scenes of a split; the prompts cycle through all phrasings.

    Raises:
        ValueError: `generate` returned another dtype or shape than uint8 [count, size, size, 3].
    """
    scenes = test_scenes(split, count, seed, size)
    prompts = tuple(texts[i % len(texts)] for i, texts in enumerate(map(captions, scenes)))
    images = np.asarray(generate(prompts, seed))
    if images.shape != (count, size, size, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"generate returned {images.dtype} of shape {images.shape} for {count} prompts; it must be "
            f"uint8 [{count}, {size}, {size}, 3]"
        )
    return GeneratedScenes(scenes, prompts, images)


def names_in_cells(
    judge: ObjectJudge, generated: GeneratedScenes, cells: Sequence[Sequence[Cell]]
) -> dict[str, list[list[str]]]:
    """The object that each judge sees in each of `cells[i]` of image i.

    All cells go through one call of the judge, which is faster than a call per image.
    """
    rows = [i for i, image_cells in enumerate(cells) for _ in image_cells]
    flat = [cell for image_cells in cells for cell in image_cells]
    seen = judge(generated.images[rows], flat, [generated.scenes[i].ground for i in rows])
    result: dict[str, list[list[str]]] = {key: [[] for _ in cells] for key in JUDGES}
    for key in JUDGES:
        for row, name in zip(rows, seen[key], strict=True):
            result[key][row].append(name)
    return result


def score_of(right: dict[str, np.ndarray], chance: float) -> tuple[Score, np.ndarray]:
    """The score of the images that all judges call right, with each judge's own share; and the verdicts."""
    both = np.logical_and.reduce([right[key] for key in JUDGES])
    parts = {key: right[key].tolist() for key in JUDGES}
    return Score.of(both.tolist(), chance, parts), both


def single_scores(
    generated: GeneratedScenes, judge: ObjectJudge
) -> tuple[dict[str, Score], np.ndarray]:
    """Scores of one-object images: object (in its place), ground and place; and the verdicts on the object."""
    seen = names_in_cells(
        judge, generated, [[PLACE_CELLS[scene.place]] for scene in generated.scenes]
    )
    right = {
        key: np.array(
            [a == list(s.names) for a, s in zip(seen[key], generated.scenes, strict=True)]
        )
        for key in JUDGES
    }
    score, both = score_of(right, 1 / len(judge.names))
    ground = [
        a == b for a, b in zip(judge_ground(generated.images), generated.grounds, strict=True)
    ]
    places = [scene.place for scene in generated.scenes]
    place = [a == b for a, b in zip(judge_place(generated.images), places, strict=True)]
    scores = {
        "single_object_accuracy": score,
        "ground_colour_accuracy": Score.of(ground, 1 / len(GROUNDS)),
        "place_accuracy": Score.of(place, max(commonest_share(places), 1 / len(PLACES))),
    }
    return scores, both


def pair_scores(
    generated: GeneratedScenes, judge: ObjectJudge
) -> tuple[dict[str, Score], np.ndarray]:
    """Scores of two-object images: both present; both present, each on its side. And the verdicts."""
    choices = len(judge.names) * (len(judge.names) - 1)
    cells = [cell for relation in RELATIONS for cell in pair_cells(relation)]
    seen = names_in_cells(judge, generated, [cells] * len(generated.scenes))
    present: dict[str, np.ndarray] = {}
    positioned: dict[str, np.ndarray] = {}
    for key in JUDGES:
        shape = (len(generated.scenes), len(RELATIONS), 2)
        names = np.array(seen[key]).reshape(shape)
        expected = np.array([scene.names for scene in generated.scenes])[:, None]
        in_order = (names == expected).all(-1)
        present[key] = (in_order | (names[..., ::-1] == expected).all(-1)).any(1)
        which = [RELATIONS.index(scene.relation) for scene in generated.scenes]
        positioned[key] = in_order[np.arange(len(which)), which]
    # A guess is two different names at random, in one of two arrangements.
    position, both = score_of(positioned, 1 / (choices * len(RELATIONS)))
    return {
        "two_object_accuracy": score_of(present, 2 / choices)[0],
        "position_accuracy": position,
    }, both


def count_scores(
    generated: GeneratedScenes, judge: ObjectJudge
) -> tuple[dict[str, Score], np.ndarray]:
    """Score of images with two to four objects of one kind: all of them, each in its cell; and the verdicts."""
    seen = names_in_cells(
        judge, generated, [COUNT_CELLS[scene.counts[0]] for scene in generated.scenes]
    )
    right = {
        key: np.array(
            [
                set(names) == {scene.names[0]}
                for names, scene in zip(seen[key], generated.scenes, strict=True)
            ]
        )
        for key in JUDGES
    }
    score, both = score_of(right, 1 / (len(judge.names) * len(COUNT_CELLS)))
    return {"counted_objects_accuracy": score}, both


# Name of the score -> (kind of question, splits, chance level; None: the share of the commonest answer).
ANSWER_TASKS: dict[str, tuple[str, tuple[str, ...], float | None]] = {
    "naming_accuracy": ("name", ("test_single",), 1 / len(NAMES)),
    "ground_answer_accuracy": ("ground", ("test_single", "test_pairs"), 1 / len(GROUNDS)),
    "where_answer_accuracy": ("where", ("test_single", "test_pairs"), None),
    "count_answer_accuracy": ("count", ("test_single", "test_pairs", "test_counts"), None),
    "relation_answer_accuracy": ("relation", ("test_pairs",), 1 / len(NAMES)),
    "list_answer_accuracy": ("list", ("test_pairs",), 1 / len(NAMES) / (len(NAMES) - 1)),
    "caption_accuracy": ("describe", ("test_single", "test_pairs"), None),
}


def ask(
    answer: Answer,
    task: str,
    count: int,
    *,
    seed: int = SEED,
    art: Art | None = None,
    size: int = 64,
) -> tuple[Score, list[AnsweredQuestion]]:
    """Asks one kind of question about renderings of held-out scenes; only exact answers are right.

    Args:
        answer: the model.
        task: a key of ANSWER_TASKS.
        count: number of questions, divided evenly between the task's splits.
        seed: of the scenes.
        art: the sprites; None takes the demo's.
        size: side of the images in pixels.

    Raises:
        KeyError: an unknown task.
        ValueError: the number of answers differs from the number of questions.
    """
    if task not in ANSWER_TASKS:
        raise KeyError(
            f"{task!r} is not a task with answers; the tasks are {', '.join(ANSWER_TASKS)}"
        )
    kind, splits, chance = ANSWER_TASKS[task]
    share = -(-count // len(splits))
    by_split = [test_scenes(split, share, seed, size) for split in splits]
    scenes = [scene for group in zip(*by_split, strict=True) for scene in group][:count]
    chosen = []
    for i, scene in enumerate(scenes):
        fitting = [item for item in questions(scene) if item.kind == kind]
        chosen.append(fitting[i // len(splits) % len(fitting)])
    images = np.stack([render(scene, art or default_art()) for scene in scenes])
    texts = list(answer(images, [item.question for item in chosen]))
    if len(texts) != len(chosen):
        raise ValueError(f"answer returned {len(texts)} texts for {len(chosen)} questions")
    answered = [
        AnsweredQuestion(image, kind, item.question, item.answer, text)
        for image, item, text in zip(images, chosen, texts, strict=True)
    ]
    if chance is None:
        chance = commonest_share([item.answer for item in chosen])
    return Score.of([item.right for item in answered], chance), answered


def reconstruction(
    reconstruct: Reconstruct, count: int, *, seed: int = SEED, size: int = 64
) -> tuple[float, Images, Images]:
    """(PSNR in dB over all pixels, the renderings, the reconstructions) of held-out scenes of all splits."""
    splits = ("test_single", "test_pairs", "test_counts")
    scenes = [test_scenes(split, -(-count // 3), seed, size) for split in splits]
    mixed = [scene for group in zip(*scenes, strict=True) for scene in group][:count]
    rendered = np.stack([render(scene) for scene in mixed])
    reconstructed = np.asarray(reconstruct(rendered))
    return capped_psnr(reconstructed, rendered), rendered, reconstructed


def ceilings(
    judge: ObjectJudge, through: Reconstruct | None = None, *, count: int = 200, seed: int = SEED
) -> dict[str, Score]:
    """The scores of true renderings, or of renderings after `through` (a VAE, a blur): the judges' ceiling."""

    def rendered(split: str) -> GeneratedScenes:
        scenes = test_scenes(split, count, seed)
        images = np.stack([render(scene, judge.art) for scene in scenes])
        return GeneratedScenes(
            scenes, tuple("" for _ in scenes), through(images) if through else images
        )

    return {
        **single_scores(rendered("test_single"), judge)[0],
        **pair_scores(rendered("test_pairs"), judge)[0],
        **count_scores(rendered("test_counts"), judge)[0],
    }
