"""What a model of the emoji world is measured on, all on combinations that training never shows.

The model comes as plain functions, so this module knows nothing of networks or tokenizers:

    draw(prompts, seed)        -> uint8 images [n, size, size, 3]
    answer(images, questions)  -> a list of texts
    reconstruct(images)        -> the same pictures through the VAE
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
Draw = Callable[[Sequence[str], int], Images]
Answer = Callable[[Images, Sequence[str]], Sequence[str]]
Reconstruct = Callable[[Images], Images]

SEED = 7


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Pictures to show, each with a label and whether it was judged right (None: not judged)."""

    title: str
    images: UInt8[np.ndarray, "n height width 3"]
    labels: tuple[str, ...]
    right: tuple[bool | None, ...]


@dataclasses.dataclass(frozen=True)
class Answered:
    """One question with the model's answer, for the report's table."""

    image: UInt8[np.ndarray, "height width 3"]
    kind: str
    question: str
    expected: str
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer is exact, apart from spaces around it."""
        return self.answer.strip() == self.expected


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Scenes of a test split and what the model drew from their captions."""

    scenes: tuple[Scene, ...]
    prompts: tuple[str, ...]
    images: Images

    @property
    def grounds(self) -> list[str]:
        """The asked ground of each."""
        return [scene.ground for scene in self.scenes]


def test_scenes(split: str, count: int, seed: int = SEED, size: int = 64) -> tuple[Scene, ...]:
    """The first `count` scenes of a test split."""
    source = SceneSource(split, seed, size)
    return tuple(source[i] for i in range(count))


def draw_split(draw: Draw, split: str, count: int, seed: int = SEED, size: int = 64) -> Drawn:
    """Draws `count` held-out scenes of a split; the prompts take turns through all phrasings."""
    scenes = test_scenes(split, count, seed, size)
    prompts = tuple(known[i % len(known)] for i, known in enumerate(map(captions, scenes)))
    images = np.asarray(draw(prompts, seed))
    if images.shape != (count, size, size, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"draw returned {images.dtype} of shape {images.shape} for {count} prompts; it must be "
            f"uint8 [{count}, {size}, {size}, 3]"
        )
    return Drawn(scenes, prompts, images)


def named(
    judge: ObjectJudge, drawn: Drawn, cells: Sequence[Sequence[Cell]]
) -> dict[str, list[list[str]]]:
    """By judge, the names seen in each of `cells[i]` of picture i. One call, since calls have a price."""
    rows = [i for i, some in enumerate(cells) for _ in some]
    flat = [cell for some in cells for cell in some]
    seen = judge(drawn.images[rows], flat, [drawn.scenes[i].ground for i in rows])
    result: dict[str, list[list[str]]] = {key: [[] for _ in cells] for key in JUDGES}
    for key in JUDGES:
        for row, name in zip(rows, seen[key], strict=True):
            result[key][row].append(name)
    return result


def score_of(right: dict[str, np.ndarray], chance: float) -> tuple[Score, np.ndarray]:
    """The score of what every judge calls right, with each judge's own share; and the verdicts."""
    both = np.logical_and.reduce([right[key] for key in JUDGES])
    parts = {key: right[key].tolist() for key in JUDGES}
    return Score.of(both.tolist(), chance, parts), both


def single_scores(drawn: Drawn, judge: ObjectJudge) -> tuple[dict[str, Score], np.ndarray]:
    """Scores of single objects: object (in its place), ground and place; and the object's verdicts."""
    seen = named(judge, drawn, [[PLACE_CELLS[scene.place]] for scene in drawn.scenes])
    right = {
        key: np.array([a == list(s.names) for a, s in zip(seen[key], drawn.scenes, strict=True)])
        for key in JUDGES
    }
    score, both = score_of(right, 1 / len(judge.names))
    ground = [a == b for a, b in zip(judge_ground(drawn.images), drawn.grounds, strict=True)]
    places = [scene.place for scene in drawn.scenes]
    place = [a == b for a, b in zip(judge_place(drawn.images), places, strict=True)]
    scores = {
        "single_object_accuracy": score,
        "ground_colour_accuracy": Score.of(ground, 1 / len(GROUNDS)),
        "place_accuracy": Score.of(place, max(commonest_share(places), 1 / len(PLACES))),
    }
    return scores, both


def pair_scores(drawn: Drawn, judge: ObjectJudge) -> tuple[dict[str, Score], np.ndarray]:
    """Scores of two objects: both present in any arrangement; both present and rightly placed."""
    choices = len(judge.names) * (len(judge.names) - 1)
    cells = [cell for relation in RELATIONS for cell in pair_cells(relation)]
    seen = named(judge, drawn, [cells] * len(drawn.scenes))
    present: dict[str, np.ndarray] = {}
    placed: dict[str, np.ndarray] = {}
    for key in JUDGES:
        shape = (len(drawn.scenes), len(RELATIONS), 2)
        found = np.array(seen[key]).reshape(shape)
        asked = np.array([scene.names for scene in drawn.scenes])[:, None]
        in_order = (found == asked).all(-1)
        present[key] = (in_order | (found[..., ::-1] == asked).all(-1)).any(1)
        which = [RELATIONS.index(scene.relation) for scene in drawn.scenes]
        placed[key] = in_order[np.arange(len(which)), which]
    # A guess is two different names at random, in one of two arrangements.
    position, both = score_of(placed, 1 / (choices * len(RELATIONS)))
    return {
        "two_object_accuracy": score_of(present, 2 / choices)[0],
        "position_accuracy": position,
    }, both


def count_scores(drawn: Drawn, judge: ObjectJudge) -> tuple[dict[str, Score], np.ndarray]:
    """Score of two to four objects of one kind: all of them, each in its cell."""
    seen = named(judge, drawn, [COUNT_CELLS[scene.counts[0]] for scene in drawn.scenes])
    right = {
        key: np.array(
            [
                set(names) == {scene.names[0]}
                for names, scene in zip(seen[key], drawn.scenes, strict=True)
            ]
        )
        for key in JUDGES
    }
    score, both = score_of(right, 1 / (len(judge.names) * len(COUNT_CELLS)))
    return {"counted_objects_accuracy": score}, both


# name of the score -> (kind of question, splits, chance; None: the commonest answer's share)
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
) -> tuple[Score, list[Answered]]:
    """Asks one kind of question about renderings of held-out scenes; exact answers count.

    Args:
        answer: the model.
        task: a key of ANSWER_TASKS.
        count: how many questions, shared evenly between the task's splits.
        seed: chooses the scenes and, where a scene has several such questions, the question.
        art: the sprites; None takes the demo's.
        size: the pictures' side in pixels.
    """
    if task not in ANSWER_TASKS:
        raise KeyError(f"{task!r} is no task with answers; they are {', '.join(ANSWER_TASKS)}")
    kind, splits, chance = ANSWER_TASKS[task]
    share = -(-count // len(splits))
    by_split = [test_scenes(split, share, seed, size) for split in splits]
    scenes = [scene for group in zip(*by_split, strict=True) for scene in group][:count]
    asked = []
    for i, scene in enumerate(scenes):
        fitting = [item for item in questions(scene) if item.kind == kind]
        asked.append(fitting[i // len(splits) % len(fitting)])
    images = np.stack([render(scene, art or default_art()) for scene in scenes])
    texts = list(answer(images, [item.question for item in asked]))
    if len(texts) != len(asked):
        raise ValueError(f"answer returned {len(texts)} texts for {len(asked)} questions")
    given = [
        Answered(image, kind, item.question, item.answer, text)
        for image, item, text in zip(images, asked, texts, strict=True)
    ]
    if chance is None:
        chance = commonest_share([item.answer for item in asked])
    return Score.of([item.right for item in given], chance), given


def reconstruction(
    reconstruct: Reconstruct, count: int, *, seed: int = SEED, size: int = 64
) -> tuple[float, Images, Images]:
    """(PSNR in dB over all pixels, the renderings, the same through the VAE) of mixed held-out scenes."""
    splits = ("test_single", "test_pairs", "test_counts")
    scenes = [test_scenes(split, -(-count // 3), seed, size) for split in splits]
    mixed = [scene for group in zip(*scenes, strict=True) for scene in group][:count]
    real = np.stack([render(scene) for scene in mixed])
    again = np.asarray(reconstruct(real))
    return capped_psnr(again, real), real, again


def ceilings(
    judge: ObjectJudge, through: Reconstruct | None = None, *, count: int = 200, seed: int = SEED
) -> dict[str, Score]:
    """What the judges say of true renderings, or of those after `through` (a VAE, a blur): their ceiling."""

    def drawn(split: str) -> Drawn:
        scenes = test_scenes(split, count, seed)
        images = np.stack([render(scene, judge.art) for scene in scenes])
        return Drawn(scenes, tuple("" for _ in scenes), through(images) if through else images)

    return {
        **single_scores(drawn("test_single"), judge)[0],
        **pair_scores(drawn("test_pairs"), judge)[0],
        **count_scores(drawn("test_counts"), judge)[0],
    }
