"""Trains the emoji model: combines scenes, the frozen VAE, the tokenizer and the mixture with the training loop.

Batches come in groups of one shape each: images (generation and questions), edits, clips, dialogues. The demo uses
only images; the other groups are off until the config gives them rows.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tuna_jax.data import loader
from tuna_jax.emoji import image_streams, task_streams
from tuna_jax.emoji.batches import check_design, groups, heads
from tuna_jax.emoji.config import EmojiData, EmojiExperiment
from tuna_jax.emoji.model_bundle import load_bundle
from tuna_jax.emoji.world import worlds
from tuna_jax.inference.not_finite import or_warn
from tuna_jax.inference.pipeline import in_training
from tuna_jax.inference.run_record import RECORD_KEY, RunRecord
from tuna_jax.parallel import distributed, leader
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.sweeps.online import evaluator
from tuna_jax.trainers import frozen_model, initial_params
from tuna_jax.training import loop
from tuna_jax.training.optimizer import learning_rate
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.image_grid import contact_sheet


def train(
    values: Mapping[str, Any],
    settings: EmojiExperiment,
    workdir: str | Path,
    train_loop: loop.Loop = loop.train,
) -> bool:
    """Runs or resumes the experiment.

    Args:
      values: the experiment's config as a mapping; it is stored with checkpoints and the exported model.
      settings: the same config, parsed.
      workdir: folder of the run.
      train_loop: what receives model and data; `tuna-jax doctor` passes its own, which measures them.

    Returns:
      Whether the run reached its last step.

    Raises:
      FileNotFoundError: there is nothing at `init_from` or `init_encoder`.
      ValueError: the schedule, the VAE, the tokenizer or the initial parameters do not match the config
        (`learning_rate`, `load_bundle`, `trainers.initial_params`).
    """
    learning_rate(
        settings.optimizer, settings.steps
    )  # Raises before minutes are spent on encoding data.
    bundle = load_bundle(settings)
    check_design(bundle.config, settings.data)
    # All are checked before data is encoded.
    frozen_model.check(settings.lora, settings.init_from, bundle.config, workdir)
    source = "" if settings.lora.targets else settings.init_from
    initial = initial_params.from_run(source, bundle.config, workdir)
    initial = initial or initial_params.with_encoder(
        settings.init_encoder,
        bundle.config,
        workdir,
        seed=settings.seed,
        latents=bundle.latents_key,
    )
    mesh = make_mesh(settings.mesh)
    data_groups = groups(bundle, settings.data, part=distributed.batch_part(mesh))
    mixture = task_streams.alternate(data_groups, settings.data.stream_seed)
    iterator = loader.iterate(mixture, threads=settings.data.threads)

    base = frozen_model.read(settings.lora, settings.init_from, bundle.config, workdir, mesh)
    run_record = RunRecord(
        kind=settings.kind,
        model=bundle.config.to_dict(),
        vae=settings.vae,
        tokenizer=settings.data.vocabulary,
        template="plain",
        size=(bundle.size, bundle.size),
        sampling=settings.samples,
        adapter=base.record,
    )

    def sample(step: int, params: Any) -> None:
        tuna = in_training(bundle.model(params), mesh)
        prompts = sheet_prompts(settings.samples.count, settings.data)

        def write() -> None:
            images = or_warn(lambda: tuna.generate_image(prompts), f"the sheet of step {step}")
            folder = Path(workdir) / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            contact_sheet(images, prompts).save(folder / f"{step:06d}.png")

        leader.together(write)

    if settings.data.names != "demo":  # The new nouns are spelled in bytes, on purpose.
        warnings.filterwarnings("ignore", message=".*it is spelled in bytes")
    return train_loop(
        settings,
        bundle.config,
        workdir,
        iterator,
        tasks=task_names(settings.data),
        record={**values, RECORD_KEY: run_record.to_json()},
        initial_params=initial,
        base_params=base.params,
        sample=sample if settings.data.generation_rows else None,
        evaluate=evaluator(settings, bundle.model, workdir),
        heads=functools.partial(heads, settings.data),
        shapes_to_compile=[
            (group.first, heads(settings.data, group.first)) for group in data_groups
        ],
    )


def task_names(data: EmojiData) -> tuple[str, ...]:
    """The tasks whose losses a run keeps, by the number of their stream."""
    if data.images_only:
        return image_streams.STREAMS
    new = data.combinations.rows or data.continuations.rows
    return task_streams.TASKS if new else task_streams.FIRST_TASKS


def run(values: Mapping[str, Any], workdir: str | Path, train_loop: loop.Loop = loop.train) -> bool:
    """`train` from only the experiment's mapping: what `tuna-jax train` calls for `config.kind = "emoji"`."""
    return train(values, parse(EmojiExperiment, values), workdir, train_loop)


def sheet_prompts(count: int, data: EmojiData) -> list[str]:
    """First captions of held-out scenes: of one object, of two objects (and so on) in turn."""
    world = worlds.world(data.world, data.partial, data.difficulty)
    splits = world.sheet_splits
    if world.name == "hard":  # A model is shown what it was trained for.
        splits = tuple(split for split in splits if split in data.test_splits)
    sources = [world.source(split, data.seed, data.size) for split in splits]
    scenes = [sources[index % len(sources)][index] for index in range(count)]
    return [
        world.phrasings(scene, np.random.default_rng(index))[0]
        for index, scene in enumerate(scenes)
    ]
