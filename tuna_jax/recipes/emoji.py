"""The emoji TUNA: scenes, the frozen VAE, the tokenizer and the joint mixture, put together for
training and for drawing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from tuna_jax.config import from_dict
from tuna_jax.data import latents, pipeline
from tuna_jax.data.phrases import captions
from tuna_jax.data.scenes import SceneSource
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.evaluation.sheets import contact_sheet
from tuna_jax.recipes.world import SampleSettings, World
from tuna_jax.training import loop
from tuna_jax.training.export import load_model
from tuna_jax.training.image_vae import load_image_vae
from tuna_jax.training.settings import parse
from tuna_jax.training.step import Heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiData:
    """The mixture of drawing and understanding.

    Attributes:
      scenes: how many training scenes are encoded beforehand.
      size: side of a picture in pixels.
      seed: seed of the scenes, of their order, and of captions and questions.
      length: tokens a row; a longer one is an error that says how long.
      draw_rows, understand_rows: rows of every batch with each task.
      caption_dropout: share of drawing rows without a caption, for guidance.
      draw_spread: how far latents to draw are spread around the posterior's mean, relative to its standard deviation:
        1 draws from the posterior, 0 takes the mean. Pictures to understand are always drawn from it.
      layouts: relative frequency of each layout of scenes; empty takes the source's own.
      questions: relative frequency of each kind of question; empty takes the stream's own.
      vocabulary: compact vocabulary that ships, or a JSON file of one.
      threads: host threads that make batches.
    """

    scenes: int = 40_000
    size: int = 64
    seed: int = 0
    length: int = 44
    draw_rows: int = 16
    understand_rows: int = 8
    caption_dropout: float = 0.1
    draw_spread: float = 1.0
    layouts: dict = dataclasses.field(default_factory=dict)
    questions: dict = dataclasses.field(default_factory=dict)
    vocabulary: str = "emoji"
    threads: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiExperiment(loop.LoopSettings):
    """An experiment file of kind 'tuna': the loop's settings, and these.

    Attributes:
      model: a preset and overrides of its fields; see `tuna_jax.config.from_dict`.
      vae: safetensors file of the image VAE; empty takes the one that ships.
      data: the mixture. samples: the contact sheet.
    """

    kind: str = "tuna"
    model: dict
    vae: str = ""
    data: EmojiData = EmojiData()
    samples: SampleSettings = SampleSettings()


def load_world(settings: EmojiExperiment) -> World:
    """Reads the VAE and the tokenizer that an experiment names, and checks that they fit its model.

    Raises:
      ValueError: the model's table of tokens, or its latents, are not those of the tokenizer or the
        VAE.
    """
    config = from_dict(settings.model)
    vae_config, vae_params = load_image_vae(settings.vae or None)
    if vae_config.latent_channels != config.vae.latent_channels:
        raise ValueError(
            f"the VAE has {vae_config.latent_channels} latent channels and the model wants "
            f"{config.vae.latent_channels}; set config.model.vae.latent_channels, or name another "
            f"file in config.vae"
        )
    tokenizer = Tokenizer(settings.data.vocabulary)
    if config.language.vocabulary < tokenizer.size:
        raise ValueError(
            f"config.model.language.vocabulary is {config.language.vocabulary}, and the vocabulary "
            f"{settings.data.vocabulary!r} has {tokenizer.size} ids; the table needs a row for each"
        )
    config = dataclasses.replace(config, vae=vae_config)
    return World(config, vae_params, tokenizer, settings.data.size, settings.samples)


def load_trained(path: str | Path) -> tuple[World, Any, dict[str, Any]]:
    """A trained emoji TUNA, ready to draw and answer.

    Args:
      path: workdir of a run that ended or was stopped, or its `model.safetensors`.

    Returns:
      Its world, its (averaged) parameters, and the experiment's mapping.
    """
    params, values, _ = load_model(path)
    return load_world(parse(EmojiExperiment, values)), params, values


def batches(world: World, data: EmojiData, progress: bool = True) -> Any:
    """The endless data set of this process's part of every batch.

    The first call encodes the scenes and keeps the latents on disk.
    """
    source = SceneSource(
        "train", data.seed, data.size, length=data.scenes, weights=dict(data.layouts) or None
    )
    key = latents.fingerprint(
        {"weights": world.vae_params, "config": dataclasses.asdict(world.config.vae)}
    )
    pool = latents.encode_pool(source, data.scenes, world.encode, key, progress=progress)
    streams = [
        pipeline.text_to_image_stream(
            pool,
            world.tokenizer,
            rows=data.draw_rows,
            seed=2 * data.seed,
            caption_dropout=data.caption_dropout,
            spread=data.draw_spread,
        ),
        pipeline.understanding_stream(
            pool,
            world.tokenizer,
            rows=data.understand_rows,
            seed=2 * data.seed + 1,
            question_weights=dict(data.questions) or None,
        ),
    ]
    return pipeline.batches(
        streams,
        world.tokenizer,
        length=data.length,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def train(values: Mapping[str, Any], settings: EmojiExperiment, workdir: str | Path) -> bool:
    """Runs or resumes the experiment `settings`, whose mapping was `values`.

    Returns whether it reached its last step.
    """
    world = load_world(settings)
    iterator = pipeline.iterate(batches(world, settings.data), threads=settings.data.threads)

    def draw(step: int, params: Any) -> None:
        prompts = sheet_prompts(settings.samples.count, settings.data)
        pictures = world.draw(params, prompts)
        folder = Path(workdir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(pictures, prompts).save(folder / f"{step:06d}.png")

    heads = Heads(settings.data.draw_rows, settings.data.understand_rows)
    return loop.train(
        settings,
        world.config,
        workdir,
        iterator,
        tasks=pipeline.STREAMS,
        record=dict(values),
        draw=draw,
        heads=lambda batch: heads,
    )


def sheet_prompts(count: int, data: EmojiData) -> list[str]:
    """Usual captions of unseen scenes: one object and two objects, in turn."""
    sources = [SceneSource(split, data.seed, data.size) for split in ("test_single", "test_pairs")]
    return [captions(sources[index % 2][index])[0] for index in range(count)]
