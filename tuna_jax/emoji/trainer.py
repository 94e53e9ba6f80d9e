"""The emoji TUNA: scenes, the frozen VAE, the tokenizer and the joint mixture, put together for
training and for drawing.

Batches come in groups of one shape each: pictures (drawn and asked about), edits, clips, dialogues. The demo has
pictures alone; the others are off until they get rows and a share of the batches.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuna_jax.data import loader
from tuna_jax.emoji import image_streams, task_streams
from tuna_jax.emoji.batches import groups, heads
from tuna_jax.emoji.config import EmojiData, EmojiExperiment
from tuna_jax.emoji.model_bundle import load_bundle
from tuna_jax.emoji.world.captions import captions
from tuna_jax.emoji.world.scenes import SceneSource
from tuna_jax.inference.run_record import RECORD_KEY, RunRecord
from tuna_jax.sweeps.online import evaluator
from tuna_jax.training import loop
from tuna_jax.training.optimizer import learning_rate
from tuna_jax.utils.image_grid import contact_sheet


def train(values: Mapping[str, Any], settings: EmojiExperiment, workdir: str | Path) -> bool:
    """Runs or resumes the experiment `settings`, whose mapping was `values`.

    Returns whether it reached its last step.
    """
    learning_rate(settings.optimizer, settings.steps)  # Refused before minutes go into its data.
    world = load_bundle(settings)
    shapes = groups(world, settings.data)
    mixture = task_streams.alternate(shapes, settings.data.seed)
    iterator = loader.iterate(mixture, threads=settings.data.threads)

    run = RunRecord(
        kind=settings.kind,
        model=world.config.to_dict(),
        vae=settings.vae,
        tokenizer=settings.data.vocabulary,
        template="plain",
        size=(world.size, world.size),
        sampling=settings.samples,
    )

    def draw(step: int, params: Any) -> None:
        prompts = sheet_prompts(settings.samples.count, settings.data)
        pictures = world.draw(params, prompts)
        folder = Path(workdir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(pictures, prompts).save(folder / f"{step:06d}.png")

    return loop.train(
        settings,
        world.config,
        workdir,
        iterator,
        tasks=image_streams.STREAMS if settings.data.pictures_alone else task_streams.TASKS,
        record={**values, RECORD_KEY: run.to_json()},
        draw=draw,
        evaluate=evaluator(settings, world.model, workdir),
        heads=functools.partial(heads, settings.data),
        ahead=[(group.first, heads(settings.data, group.first)) for group in shapes],
    )


def sheet_prompts(count: int, data: EmojiData) -> list[str]:
    """Usual captions of unseen scenes: one object and two objects, in turn."""
    sources = [SceneSource(split, data.seed, data.size) for split in ("test_single", "test_pairs")]
    return [captions(sources[index % 2][index])[0] for index in range(count)]
