"""Multitask training on files: weighted streams, the frozen VAE, the tokenizer, and initial parameters.

Each stage of the three-stage recipe is an experiment of this kind, with its frozen parameters, streams, learning rate
and initial checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuna_jax.config import TunaConfig, from_dict
from tuna_jax.conversion.image_vae_file import shipped_image_vae
from tuna_jax.data import loader
from tuna_jax.data.invalid_examples import InvalidExamples
from tuna_jax.data.mixture import mixture as mixing
from tuna_jax.data.sources.precomputed_latents import vae_fingerprint
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.inference import trained_shapes
from tuna_jax.inference.components import PathLike, read_tokenizer, read_vae
from tuna_jax.inference.not_finite import or_warn
from tuna_jax.inference.pipeline import Tuna, in_training
from tuna_jax.inference.run_record import RECORD_KEY, RunRecord
from tuna_jax.parallel import distributed, leader
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.sweeps.online import evaluator
from tuna_jax.trainers import frozen_model, initial_params
from tuna_jax.trainers.build_mixture import open_mixture, programs, scans_of_run, weights_history
from tuna_jax.trainers.config import MultitaskExperiment
from tuna_jax.trainers.stream_config import (
    abstract_batch,
    picture_size,
    stream_settings,
)
from tuna_jax.training import loop
from tuna_jax.training.optimizer import learning_rate
from tuna_jax.training.step import Heads
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.image_grid import contact_sheet


def load_components(
    settings: MultitaskExperiment,
    *,
    vae: PathLike | None = None,
    tokenizer: Tokenizer | PathLike | None = None,
) -> tuple[TunaConfig, Any, Tokenizer]:
    """The model's config including the VAE's, the VAE's parameters ({} without a VAE), and the tokenizer.

    Args:
      settings: the experiment.
      vae: replaces the VAE of the experiment.
      tokenizer: replaces the tokenizer of the experiment.

    Raises:
      FileNotFoundError, ValueError: see `read_vae` and `read_tokenizer`.
    """
    config = from_dict(settings.model)
    tokenizer = read_tokenizer(tokenizer or settings.data.vocabulary or None, config)
    named = vae or settings.vae
    if config.vae is None:
        if named:
            raise ValueError(
                f"config.vae is {named}, and the model works on pixels and has no VAE; set config.vae=''"
            )
        return config, {}, tokenizer
    try:
        vae_config, params = read_vae(Path(named or shipped_image_vae()), config)
    except ValueError as error:
        if named:
            raise
        raise ValueError(
            f"{error}. This is the emoji VAE of the package; set config.vae to the VAE of this model"
        ) from error
    config = dataclasses.replace(config, vae=vae_config)
    return config, params, tokenizer


def train(
    values: Mapping[str, Any],
    settings: MultitaskExperiment,
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
      FileNotFoundError, ValueError: an invalid config, or missing data, VAE, tokenizer or initial parameters.
      TooManyInvalidExamples: more examples are invalid than `config.data.max_invalid_fraction` allows.
    """
    learning_rate(settings.optimizer, settings.steps)  # Raises before the data is scanned.
    workdir = Path(workdir)
    streams = stream_settings(settings.data)
    config, vae_params, tokenizer = load_components(settings)
    frozen_model.check(settings.lora, settings.init_from, config, workdir)
    adapts = bool(settings.lora.targets)
    initial = None if adapts else initial_params.from_run(settings.init_from, config, workdir)
    precomputed = any(stream.latents for stream in streams.values())
    fingerprint = vae_fingerprint(config.video_vae, vae_params) if precomputed else None
    host = f"_{jax.process_index()}" if jax.process_count() > 1 else ""
    invalid_examples = InvalidExamples(
        workdir / f"invalid_examples{host}.jsonl",
        limit=settings.data.max_invalid_fraction,
        least=settings.data.min_examples_to_judge,
    )
    history = weights_history(workdir, {name: stream.weight for name, stream in streams.items()})
    scans, parts = scans_of_run(workdir)
    mesh = make_mesh(settings.mesh)
    part = distributed.batch_part(mesh)
    mixture = open_mixture(
        settings.data,
        config,
        tokenizer,
        invalid_examples,
        history,
        fingerprint,
        scans,
        parts,
        part=part,
    )
    if jax.process_index() == 0:
        print("\n".join([mixture.summary(), *mixture.notices]))
    iterator = loader.iterate(
        mixing.batches(mixture),
        threads=settings.data.threads,
        ahead=settings.data.ahead,
        workers=settings.data.workers,
    )
    names = tuple(streams)
    shapes = trained_shapes.of_streams(
        {name: dataclasses.asdict(stream) for name, stream in streams.items()}
    )

    def heads(batch: Mapping[str, np.ndarray]) -> Heads:
        return streams[names[int(batch["stream"][0])]].heads

    def model(params: Any) -> Tuna:
        size = picture_size(settings.samples.size, "config.samples.size")
        shape = (size.height, size.width)
        sampling = settings.samples.sampling
        return Tuna(config, params, vae_params, tokenizer, shape, sampling, shapes=shapes)

    def sample(step: int, params: Any) -> None:
        tuna, prompts = in_training(model(params), mesh), settings.samples.prompts

        def write() -> None:
            images = or_warn(lambda: tuna.generate_image(prompts), f"the sheet of step {step}")
            folder = workdir / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            contact_sheet(images, prompts).save(folder / f"{step:06d}.png")

        leader.together(write)

    def counters() -> dict[str, float]:
        kinds = {
            f"invalid_examples/{kind}": float(count)
            for kind, count in invalid_examples.counts().items()
        }
        cut = {f"cut_texts/{name}": float(count) for name, count in mixture.cut.items()}
        return {"invalid_examples": float(sum(kinds.values())), **kinds, **cut}

    size = picture_size(settings.samples.size, "config.samples.size")
    base = frozen_model.read(settings.lora, settings.init_from, config, workdir, mesh)
    run = RunRecord(
        kind=settings.kind,
        model=config.to_dict(),
        vae=settings.vae,
        tokenizer=settings.data.vocabulary,
        size=(size.height, size.width),
        sampling=settings.samples.sampling,
        shapes=shapes,
        adapter=base.record,
    )
    record = {
        **values,
        RECORD_KEY: run.to_json(),
        "mixture": {
            "fingerprint": mixture.fingerprint,
            "history": [list(h) for h in history],
            "scans": mixture.scans,
            "parts": mixture.parts,
        },
    }
    with contextlib.closing(iterator):
        return train_loop(
            settings,
            config,
            workdir,
            iterator,
            tasks=names,
            record=record,
            heads=heads,
            shapes_to_compile=[
                (abstract_batch(shape, part.count), shape_heads)
                for shape, shape_heads in programs(mixture, streams)
            ],
            vae_params=vae_params,
            initial_params=initial,
            base_params=base.params,
            evaluate=evaluator(settings, model, workdir),
            sample=sample if settings.samples.prompts else None,
            counters=counters,
        )


def run(values: Mapping[str, Any], workdir: str | Path, train_loop: loop.Loop = loop.train) -> bool:
    """`train` from only the experiment's mapping: what `tuna-jax train` calls for `config.kind = "multitask"`."""
    return train(values, parse(MultitaskExperiment, values), workdir, train_loop)
