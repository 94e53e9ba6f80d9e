"""Batched generation of images and clips with a `Tuna`; `Tuna.generate_image`, `generate_video` and `edit_image`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from tuna_jax.inference import batching, generation_config, option_checks
from tuna_jax.inference.generation import flow_sampler
from tuna_jax.inference.generation_config import SamplingOptions, SamplingSettings
from tuna_jax.inference.media_inputs import MediaInput, as_list, as_picture, of_kind
from tuna_jax.inference.not_finite import NotFiniteError
from tuna_jax.inference.trained_shapes import nearest_shape
from tuna_jax.parallel import distributed
from tuna_jax.parallel.leader import on_all_processes
from tuna_jax.sequence import Grid, TokenSequence, editing_prompt, generation_prompt

if TYPE_CHECKING:
    from tuna_jax.inference.pipeline import Tuna

Images = UInt8[np.ndarray, "n height width 3"]
Clips = UInt8[np.ndarray, "n frames height width 3"]


def prompt_list(prompts: str | Sequence[str]) -> list[str]:
    """The prompts as a list.

    Raises:
      ValueError: the list is empty, or a prompt is not text.
    """
    listed = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(listed, Sequence) or isinstance(listed, bytes):
        raise ValueError(f"the prompts are a {type(prompts).__name__}; give a text or several")
    if not listed:
        raise ValueError("no prompt is given")
    return [option_checks.text(f"prompt {index}", text) for index, text in enumerate(listed)]


def load_sources(
    model: Tuna,
    images: MediaInput | Sequence[MediaInput],
    count: int,
    size: tuple[int, int] | None = None,
) -> Clips:
    """The source images of `count` edits, scaled and cropped to `size`; one image serves all edits.

    Raises:
      ValueError: the size is not divisible by 16, an input is a clip, or the number of images fits neither one nor
        `count`.
      FileNotFoundError: there is no such file.
    """
    size = model.size if size is None else option_checks.size("size", size)
    model.config.space.latent_shape(1, *size)  # Rejects a wrong size before files are read.
    sources = [as_picture(image, size) for image in as_list(images)]
    if any(len(clip) != 1 for clip in sources):
        raise ValueError("a clip cannot be edited; give images, [height, width, 3] each")
    if len(sources) == 1:
        sources = sources * count
    if len(sources) != count:
        raise ValueError(
            f"{len(sources)} images for {count} instructions; give one image, or one per instruction"
        )
    return np.stack(sources)


def edit_size(model: Tuna, images: MediaInput | Sequence[MediaInput]) -> tuple[int, int]:
    """The size of edits of these images: the nearest shape that edits were trained on, or the model's size.

    Raises:
      ValueError: the images are nearest to different shapes, or one cannot be read.
      FileNotFoundError: there is no such file.
    """
    shapes = model.shapes.get("edit", ())
    sizes = [
        nearest_shape(shapes, model.size, image) for image in of_kind(as_list(images), "image")
    ]
    if len(set(sizes)) > 1:
        named = ", ".join(f"{height}x{width}" for height, width in dict.fromkeys(sizes))
        raise ValueError(
            f"the images are nearest to different shapes ({named}); give size=, or edit those of one shape per call"
        )
    return sizes[0] if sizes else model.size


@on_all_processes
def generate(
    model: Tuna,
    prompts: Sequence[str],
    sources: Clips | None = None,
    frames: int = 1,
    options: SamplingOptions | None = None,
    as_latents: bool = False,
) -> np.ndarray:
    """A clip per prompt, uint8 [n, frames, height, width, 3].

    Args:
      model: the model.
      prompts: prompts, or with `sources` instructions.
      sources: an image to edit for each instruction, in the size of the result; None: generate from the prompts only.
      frames: frames per clip, 1 + 4k.
      options: see `SamplingOptions`.
      as_latents: return the normalised latents, float32 [n, t, h, w, c], and do not decode them.

    Raises:
      NotFiniteError: the model computed NaN or infinity for some prompts; the clips of the others are in the error.
      ValueError: an option is unknown, invalid or has no effect, or the number of negative prompts or of seeds differs
        from the number of prompts.
    """
    if model.config.design == "semantic_only":
        raise ValueError(
            "this model only understands images (its design is 'semantic_only'); it cannot generate or edit them"
        )
    given = generation_config.sampling(options or {})
    defaults = model.samples if sources is None else model.samples.of_edits()
    settings = _settings(defaults, given)
    frames = option_checks.whole("frames", frames, 1, option_checks.LARGEST_FRAMES)
    shape = model.config.space.latent_shape(frames, *given.get("size", model.size))
    grid = Grid(*shape[:3])
    negatives = _negative_prompts(given, len(prompts), settings.guidance)

    def tokens_of(prompt: str) -> TokenSequence:
        special, ids = model.tokenizer.special, model.tokenizer.encode(prompt)
        if sources is None:
            return generation_prompt(special, ids)
        return editing_prompt(special, ids, grid)

    positive = [tokens_of(prompt) for prompt in prompts]
    negative = [tokens_of(prompt) for prompt in negatives]
    width = batching.width_of([*positive, *negative])
    noise = batching.noise(given.get("seed", 0), len(prompts), shape)
    finite = np.ones(len(prompts), bool)

    def generate_rows(rows: Int[np.ndarray, " rows"]) -> np.ndarray:
        row_positive, row_negative = [positive[i] for i in rows], [negative[i] for i in rows]
        special = model.tokenizer.special
        has_programs = model.programs is not None and model.sharding is None
        if sources is None and not as_latents and has_programs:
            assert model.programs is not None
            generated = model.programs.generate(
                model.params,
                model.vae_params,
                (row_positive, row_negative),
                special,
                noise[rows],
                frames,
                settings,
            )
            if generated is not None:
                clips, finite[rows] = generated
                return clips
        latents = images = None
        if sources is not None:
            latents = encode(model, sources[rows])[:, None]
            images = batching.clean_patches(model.config, sources[rows])
            images = None if images is None else images[:, None]
        samples = flow_sampler.sample(
            model.config,
            model.generation_params,
            batching.prefix_of(row_positive, special, latents, width, images),
            jnp.asarray(noise[rows]),
            negative=batching.prefix_of(row_negative, special, latents, width, images),
            guidance=settings.guidance,
            guidance_interval=settings.guidance_interval,
            steps=settings.steps,
            shift=settings.shift,
            solver=settings.solver,
            sharding=model.sharding,
        )
        if as_latents:
            values = distributed.to_host(samples)
            finite[rows] = batching.finite_rows(values)
            return values
        clips, finite[rows] = batching.decode_checked(
            model.config, model.vae_params, samples, model.sharding, model.tile_above
        )
        return clips

    visual_tokens = grid.tokens * (1 if sources is None else 2)
    max_rows = given.get("batch_size") or batching.rows_per_chunk(visual_tokens)
    rows = np.arange(len(prompts))
    clips = batching.in_chunks(generate_rows, rows, max_rows, model.batch_parts)
    if not finite.all():
        what = "image" if frames == 1 else "clip"
        raise NotFiniteError.of_rows(what, prompts, np.flatnonzero(~finite).tolist(), clips)
    return clips


def encode(model: Tuna, clips: Clips) -> Array:
    """The normalised latents of clips, float32 [n, t, h, w, c]: the mean of the VAE's posterior."""
    mean, _ = batching.encode(
        model.config, model.vae_params, clips, model.sharding, model.tile_above
    )
    return mean


def _settings(defaults: SamplingSettings, options: Mapping[str, Any]) -> SamplingSettings:
    """The model's defaults with a call's options over them."""
    names = {field.name for field in dataclasses.fields(defaults)}
    changes: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    settings = dataclasses.replace(defaults, **changes)
    if "guidance_interval" in options and settings.guidance in (0.0, 1.0):
        raise ValueError(
            f"guidance_interval has no effect at guidance {settings.guidance:g}; raise the guidance"
        )
    return settings


def _negative_prompts(options: Mapping[str, Any], count: int, guidance: float) -> list[str]:
    """The negative prompt of each of `count` rows."""
    negative = options.get("negative") or ""
    if any(negative) and guidance in (0.0, 1.0):
        raise ValueError(f"negative has no effect at guidance {guidance:g}; raise the guidance")
    negatives = [negative] * count if isinstance(negative, str) else list(negative)
    if len(negatives) != count:
        raise ValueError(
            f"negative has {len(negatives)} prompts for {count} rows; give one prompt, or one per row"
        )
    return negatives
