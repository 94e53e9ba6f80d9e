"""The whole evaluation of a model of the hard world: pictures, answers, diversity, and distance to the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tuna_jax.emoji.evaluation.hard import distribution, items, scores
from tuna_jax.emoji.evaluation.hard.judge import HardJudge, is_right
from tuna_jax.emoji.evaluation.images import Reconstruct, Sheet
from tuna_jax.emoji.evaluation.suite import Evaluation
from tuna_jax.emoji.world.hard.scenes import EVERYTHING, Difficulty
from tuna_jax.evaluation.metrics.psnr_ssim import capped_psnr

SHOWCASE = (
    "a red heart",
    "a small dog on a yellow background",
    "three blue stars",
    "a small red car and a large green teapot, on a pink background",
    "a panda between a tree and a bus",
    "a key above a moon and to the left of a cat",
    "two large purple hats and three small lions",
    "five black drops on a grey background",
)
TITLES = {
    "full": "Full captions, combinations never trained",
    "partial": "Captions that leave things open",
    "relation": "Relations",
}


def measure_hard(
    generate: scores.Generate | None,
    answer: scores.Answer | None,
    *,
    reconstruct: Reconstruct | None = None,
    judge: HardJudge | None = None,
    generations: int = 256,
    questions: int = 256,
    images_per_sheet: int = 40,
    seed: int = items.SEED,
    size: int = 96,
    difficulty: Difficulty = EVERYTHING,
    splits: Sequence[str] = (),
    log: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Measures a model on both directions, or on the one that it was trained for.

    Args:
        generate: prompts and seeds -> pictures; None: the model does not generate.
        answer: pictures and questions -> texts; None: the model does not answer.
        reconstruct: passes pictures through the VAE; measures its PSNR and the ceilings. None for a model of pixels,
            whose ceilings are those of true renderings.
        judge: a judge to reuse.
        generations: pictures of full captions, as many of partial ones, half as many of relations, and as many for
            diversity, 16 of each caption.
        questions: questions that ask for a name; half as many of every other kind.
        images_per_sheet: pictures on a sheet.
        seed: of scenes and noise.
        size: side of the pictures in pixels.
        difficulty: of the scenes; that of the model's training.
        splits: test splits of the scenes; empty: all that the world has. A model that was trained on some layouts is
            measured on the splits of these (`held_out.available_splits`). Scores without scenes are left out.
        log: receives progress messages.
    """
    judge = judge or HardJudge()
    splits = items.chosen_splits(splits, difficulty)
    result = Evaluation({}, {}, [], [], None, world="hard")
    if generate:
        _measure_generation(
            result,
            generate,
            judge,
            reconstruct,
            generations,
            images_per_sheet,
            seed,
            size,
            difficulty,
            splits,
            log,
        )
    if answer:
        for name, kind in scores.ANSWER_SCORES.items():
            if not items.splits_of_question(kind, splits):
                continue
            count = questions if kind == "name" else max(1, questions // 2)
            log(f"asking {count} questions for {name}")
            result.scores[name], answered = scores.ask_hard(
                answer, kind, count, seed=seed, size=size, difficulty=difficulty, splits=splits
            )
            result.answered.extend(answered)
    if reconstruct is not None:
        log("reconstructing renderings with the VAE")
        rendered = np.stack(
            [
                distribution.render_hard(s)
                for s in distribution.world_scenes(
                    96, size=size, difficulty=difficulty, splits=splits
                )
            ]
        )
        again = np.asarray(reconstruct(rendered))
        half = 8
        strip = np.concatenate([rendered[:half], again[:half]])
        labels = ("rendered",) * half + ("after the VAE",) * half
        result.sheets.append(
            Sheet("The VAE's share of the softness", strip, labels, (None,) * 2 * half)
        )
        result = dataclasses.replace(result, vae_psnr_db=capped_psnr(again, rendered))
    return result


def _measure_generation(
    result: Evaluation,
    generate: scores.Generate,
    judge: HardJudge,
    reconstruct: Reconstruct | None,
    count: int,
    sheet_size: int,
    seed: int,
    size: int,
    difficulty: Difficulty,
    splits: tuple[str, ...],
    log: Callable[[str], None],
) -> None:
    log("generating images of the showcase prompts")
    showcase = np.asarray(generate(SHOWCASE, [seed + i for i in range(len(SHOWCASE))]))
    result.sheets.append(Sheet("From prompts", showcase, SHOWCASE, (None,) * len(SHOWCASE)))
    parts, ceilings = [], []
    for kind in items.PROMPTS:
        if not items.splits_of_prompt(kind, splits):
            continue
        number = max(1, count // 2) if kind == "relation" else count
        log(f"generating images of {number} prompts: {kind}")
        prompted = items.prompts(
            kind, number, seed=seed, size=size, difficulty=difficulty, splits=splits
        )
        part = scores.generated(prompted, generate, judge)
        parts.append(part)
        ceilings.append(scores.true_pictures(prompted, judge, reconstruct))
        assert part.images is not None
        first = slice(sheet_size)
        result.sheets.append(
            Sheet(TITLES[kind], part.images[first], part.texts[first], tuple(part.right[first]))
        )
    result.scores.update(scores.generation_scores(parts))
    result.ceilings.update(scores.generation_scores(ceilings))
    log("measuring diversity")
    captions = max(1, count // 16)
    found, images, rows = distribution.sampled_diversity(
        generate, judge, captions=captions, seed=seed, size=size, difficulty=difficulty
    )
    result.scores.update(found)
    result.ceilings.update(
        distribution.true_diversity(captions=captions, seed=seed, difficulty=difficulty)
    )
    first = slice(48)
    right = tuple(
        is_right(row.claims, seen)
        for row, seen in zip(rows[first], judge(images[first]), strict=True)
    )
    result.sheets.append(
        Sheet(
            "Pictures of one caption each that leaves all but the name open",
            images[first],
            tuple(row.text for row in rows[first]),
            right,
        )
    )
    log("measuring the distance to the world's pictures")
    partial = parts[items.PROMPTS.index("partial")].images
    assert partial is not None
    if count > 1:
        result.distances["hard_frechet_distance"] = distribution.frechet(
            partial, difficulty, splits
        )
        result.distance_ceilings["hard_frechet_distance"] = distribution.true_distance(
            count, size, reconstruct, difficulty, splits
        )
