"""Tasks of the emoji world for sweeps in which pictures are given: combinations, and clips with a given first frame.

Item i is the i-th item of `suite.measure`, as in `sweep_tasks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tuna_jax.emoji.evaluation import combine as combinations
from tuna_jax.emoji.evaluation import continuations, images
from tuna_jax.emoji.evaluation.report import ATTRIBUTION
from tuna_jax.emoji.evaluation.sweep_tasks import shared_judge
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sweeps.task import GENERATION_SETTINGS, Outcome, Task, seeds


def combine(count: int = 64) -> Task:
    """Two pictures in one, with held-out pairs: right according to the judges; also of instructions without names."""

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        chosen = combinations.test_items(items, images.SEED, model.size[0])
        results = model.edit_image(
            [list(pair) for pair in chosen.sources],
            chosen.instructions,
            seed=seeds(seed, items),
            batch_size=len(items),
        )
        made = combinations.CombinedImages(**{**vars(chosen), "results": results})
        right = combinations.verdicts(made, shared_judge()).astype(float)
        unnamed = np.where(made.unnamed, right, np.nan)
        values = {"right": right.tolist(), "unnamed": unnamed.tolist()}
        return Outcome(values, made.instructions, pictures=made.strips)

    chance = {"right": combinations.CHANCE, "unnamed": combinations.CHANCE}
    return Task("combine", 1, count, {}, GENERATION_SETTINGS, run, chance, "right", ATTRIBUTION)


def continue_clips(count: int = 32, frames: int = 4) -> Task:
    """Held-out clips from their first frame and a text: object, ground, motion, first frame, and all together."""

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        chosen = continuations.test_items(items, frames, images.SEED, model.size[0])
        prompts = chosen.generated.prompts
        result = model.generate_video(
            prompts,
            image=list(chosen.firsts),
            frames=frames,
            seed=seeds(seed, items),
            batch_size=len(items),
        )
        made = continuations.with_frames(chosen, result)
        right = continuations.verdicts(made, shared_judge())
        right["clip"] = np.logical_and.reduce(list(right.values()))
        values = {name: verdicts.astype(float).tolist() for name, verdicts in right.items()}
        return Outcome(values, prompts, pictures=made.generated.strips)

    chance = float(np.mean(continuations.chances(continuations.test_items(range(count), frames))))
    return Task(
        "continue_clips",
        1,
        count,
        {"frames": frames},
        GENERATION_SETTINGS,
        run,
        {"motion": chance, "clip": chance},
        "clip",
        ATTRIBUTION,
    )
