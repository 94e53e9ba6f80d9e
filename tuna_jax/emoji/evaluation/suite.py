"""Everything at once: draws, asks, judges, and keeps examples for the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from tuna_jax.emoji.evaluation import images
from tuna_jax.emoji.evaluation.images import Answer, Answered, Draw, Drawn, Reconstruct, Sheet
from tuna_jax.emoji.evaluation.judges import ObjectJudge
from tuna_jax.evaluation.metrics.accuracy import Score

# Prompts that a person might try first; they are shown, not scored.
SHOWCASE = (
    "a red apple on a blue background",
    "an owl on a yellow background",
    "a rocket on a purple background",
    "a dog to the left of a cat, on a green background",
    "two red apples to the left of a dog, on a blue background",
    "three penguins on a teal background",
    "a whale below a sailboat, on a pink background",
    "a sunflower in the top right of a grey background",
)


@dataclasses.dataclass(frozen=True)
class ClipSheet:
    """Clips to show moving, each with a label and whether it was judged right."""

    title: str
    frames: UInt8[np.ndarray, "n frames size size 3"]
    labels: tuple[str, ...]
    right: tuple[bool | None, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of `measure`: scores by name, sheets and answers to show, the VAE's PSNR.

    `emoji/evaluation/suite_tasks.py` adds `decibels` (PSNRs by name) and `clips`.
    """

    scores: dict[str, Score]
    ceilings: dict[str, Score]
    sheets: list[Sheet]
    answered: list[Answered]
    vae_psnr_db: float | None
    decibels: dict[str, float] = dataclasses.field(default_factory=dict)
    clips: list[ClipSheet] = dataclasses.field(default_factory=list)


def _verdict_sheet(title: str, drawn: Drawn, right: np.ndarray, shown: int) -> Sheet:
    verdicts = tuple(bool(value) for value in right[:shown])
    return Sheet(title, drawn.images[:shown], drawn.prompts[:shown], verdicts)


def _draw_all(
    draw: Draw,
    judge: ObjectJudge,
    scores: dict[str, Score],
    drawings: int,
    shown: int,
    seed: int,
    say: Callable[[str], None],
) -> list[Sheet]:
    """Draws and judges every split; adds to the scores."""
    say("drawing what a person might ask for")
    pictures = np.asarray(draw(SHOWCASE, seed))
    sheets = [Sheet("From prompts", pictures, SHOWCASE, (None,) * len(SHOWCASE))]
    parts = (
        ("test_single", "One object", drawings, images.single_scores),
        ("test_pairs", "Two objects", drawings, images.pair_scores),
        ("test_counts", "Two to four of a kind", drawings // 4, images.count_scores),
    )
    for split, title, count, judged in parts:
        if count == 0:
            continue
        say(f"drawing {count} held-out prompts of {split}")
        drawn = images.draw_split(draw, split, count, seed)
        found, right = judged(drawn, judge)
        scores.update(found)
        sheets.append(_verdict_sheet(f"{title}, combinations never trained", drawn, right, shown))
    return sheets


def measure(
    draw: Draw | None,
    answer: Answer | None,
    *,
    reconstruct: Reconstruct | None = None,
    judge: ObjectJudge | None = None,
    drawings: int = 256,
    answers: int = 256,
    shown: int = 40,
    seed: int = images.SEED,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Measures a model on every task.

    Args:
        draw: prompts and a seed -> pictures; None: the model was not trained to draw.
        answer: pictures and questions -> texts; None: nor to answer.
        reconstruct: pictures through the VAE, if there is one.
        judge: a judge to use again; building its galleries takes seconds.
        drawings: pictures a split that are drawn.
        answers: questions a task; naming gets them all, the others a quarter of it.
        shown: pictures a sheet.
        seed: chooses scenes and noise.
        say: told what is being done.
    """
    judge = judge or ObjectJudge()
    scores: dict[str, Score] = {}
    sheets = [] if draw is None else _draw_all(draw, judge, scores, drawings, shown, seed, say)
    answered: list[Answered] = []
    for task in images.ANSWER_TASKS if answer is not None else ():
        assert answer is not None
        count = answers if task == "naming_accuracy" else max(1, answers // 4)
        say(f"asking {count} questions for {task}")
        scores[task], given = images.ask(answer, task, count, seed=seed)
        answered += given
    psnr = None
    ceiling = {}
    if reconstruct is not None:
        say("passing renderings through the VAE")
        psnr, real, again = images.reconstruction(reconstruct, 96, seed=seed)
        half = 8
        strip = np.concatenate([real[:half], again[:half]])
        labels = ("rendered",) * half + ("through the VAE",) * half
        sheets.append(Sheet("The VAE's share of the softness", strip, labels, (None,) * 2 * half))
        ceiling = images.ceilings(judge, reconstruct, count=96, seed=seed)
    return Evaluation(scores, ceiling, sheets, answered, psnr)
