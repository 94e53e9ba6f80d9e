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
from tuna_jax.sequence import (
    Grid,
    TokenSequence,
    editing_prompt,
    generation_prompt,
    image_to_video_prompt,
)

if TYPE_CHECKING:
    from tuna_jax.inference.pipeline import Tuna

Images = UInt8[np.ndarray, "n height width 3"]
Clips = UInt8[np.ndarray, "n frames height width 3"]
SourceImages = UInt8[np.ndarray, "n sources height width 3"]
Sources = MediaInput | Sequence[MediaInput | Sequence[MediaInput]]
"""Images of edits: one, several, or a list of several for each edit (`sources_of`)."""


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


def sources_of(images: Sources, count: int) -> list[list[MediaInput]]:
    """The source images of each of `count` edits: all images of one edit; otherwise an image, or a list of them, for
    each edit, or one for all.

    Raises:
      ValueError: the number of images fits neither one nor `count`, or the edits do not have equally many.
    """
    listed = as_list(images)
    rows: list[list[MediaInput]] = [
        list(item) if isinstance(item, (list, tuple)) else [item] for item in listed
    ]
    if count == 1:
        rows = [[image for row in rows for image in row]]
    if len(rows) == 1:
        rows = rows * count
    if len(rows) != count:
        raise ValueError(
            f"{len(rows)} images for {count} instructions; give one image, or one per instruction (a list, if it has "
            "several)"
        )
    numbers = sorted({len(row) for row in rows})
    if len(numbers) > 1 or not numbers[0]:
        raise ValueError(
            f"the edits have {', '.join(map(str, numbers))} images; those of one call must have equally many, and at "
            "least one"
        )
    return rows


def load_sources(
    model: Tuna, images: Sources, count: int, size: tuple[int, int] | None = None
) -> SourceImages:
    """The source images of `count` edits (`sources_of`), scaled and cropped to `size`.

    Raises:
      ValueError: the size is not divisible by 16, an input is a clip, or the errors of `sources_of`.
      FileNotFoundError: there is no such file.
    """
    size = model.size if size is None else option_checks.size("size", size)
    model.config.space.latent_shape(1, *size)  # Rejects a wrong size before files are read.
    rows = [[as_picture(image, size) for image in sources] for sources in sources_of(images, count)]
    if any(len(clip) != 1 for row in rows for clip in row):
        raise ValueError("a clip cannot be edited; give images, [height, width, 3] each")
    return np.stack([np.concatenate(row) for row in rows])


def edit_size(model: Tuna, images: Sources, count: int = 0, task: str = "edit") -> tuple[int, int]:
    """The size of edits of these images: the nearest shape that edits were trained on, or the model's size.

    Of an edit of several images the first one decides.

    Args:
      model, images: see `load_sources`.
      count: number of edits; 0: one per image.
      task: 'edit', or 'i2v' for clips that begin with the images.

    Raises:
      ValueError: the images are nearest to different shapes, or one cannot be read, or the errors of `sources_of`.
      FileNotFoundError: there is no such file.
    """
    shapes = model.shapes.get(task, ())
    listed = as_list(images)
    firsts = [row[0] for row in sources_of(images, count or len(listed))] if listed else []
    sizes = [nearest_shape(shapes, model.size, image) for image in of_kind(firsts, "image")]
    if len(set(sizes)) > 1:
        named = ", ".join(f"{height}x{width}" for height, width in dict.fromkeys(sizes))
        raise ValueError(
            f"the images are nearest to different shapes ({named}); give size=, or edit those of one shape per call"
        )
    return sizes[0] if sizes else model.size


def load_first_frames(
    model: Tuna,
    images: MediaInput | Sequence[MediaInput],
    count: int,
    frames: int,
    options: SamplingOptions,
) -> SourceImages:
    """The first frame of each of `count` clips, in the size of the clips, which `options` gets.

    Raises:
      ValueError: a clip of one frame, a size that does not fit, or several images for one clip.
      FileNotFoundError: there is no such file.
    """
    if frames == 1:
        raise ValueError(
            "frames is 1, and the first frame is given; give 1 + 4k frames, such as 17"
        )
    if len(as_list(images)) not in (1, count):
        raise ValueError(
            f"{len(as_list(images))} images for {count} prompts; give one first frame, or one per prompt"
        )
    size = options.get("size")
    size = edit_size(model, images, count, "i2v") if size is None else size
    options["size"] = size
    return load_sources(model, images, count, size)


@on_all_processes
def generate(
    model: Tuna,
    prompts: Sequence[str],
    sources: SourceImages | None = None,
    frames: int = 1,
    options: SamplingOptions | None = None,
    as_latents: bool = False,
) -> np.ndarray:
    """A clip per prompt, uint8 [n, frames, height, width, 3].

    Args:
      model: the model.
      prompts: prompts, or with `sources` instructions.
      sources: the images to edit for each instruction, in the size of the result, or with `frames` above 1 the first
        frame of each clip; None: generate from the prompts only.
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
    edits = sources is not None and frames == 1
    defaults = model.samples.of_edits() if edits else model.samples
    settings = _settings(defaults, given)
    frames = option_checks.whole("frames", frames, 1, option_checks.LARGEST_FRAMES)
    shape = model.config.space.latent_shape(frames, *given.get("size", model.size))
    grid = Grid(*shape[:3])
    image_guidance = given.get("image_guidance", 1.0)
    three = image_guidance != 1.0
    if three and sources is None:
        raise ValueError(
            f"image_guidance is {image_guidance:g}, and no image is given to be edited or continued"
        )
    negatives = _negative_prompts(given, len(prompts), 2.0 if three else settings.guidance)

    special, encode_text = model.tokenizer.special, model.tokenizer.encode

    def tokens_of(prompt: str) -> TokenSequence:
        ids = encode_text(prompt)
        if sources is None:
            return generation_prompt(special, ids)
        if not edits:
            return image_to_video_prompt(special, ids, grid)
        return editing_prompt(special, ids, grid, sources.shape[1])

    positive = [tokens_of(prompt) for prompt in prompts]
    negative = [tokens_of(prompt) for prompt in negatives]
    textual = [generation_prompt(special, encode_text(prompt)) for prompt in negatives] * three
    width = batching.width_of([*positive, *negative, *textual])
    noise = batching.noise(given.get("seed", 0), len(prompts), shape)
    finite = np.ones(len(prompts), bool)

    def generate_rows(rows: Int[np.ndarray, " rows"]) -> np.ndarray:
        row_positive, row_negative = [positive[i] for i in rows], [negative[i] for i in rows]
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
            pictures = sources[rows].reshape(-1, 1, *sources.shape[2:])
            latents = encode(model, pictures)
            latents = latents.reshape(len(rows), -1, *latents.shape[1:])
            images = batching.clean_patches(model.config, pictures)
            images = None if images is None else images.reshape(len(rows), -1, *images.shape[1:])
        samples = flow_sampler.sample(
            model.config,
            model.generation_params,
            batching.prefix_of(row_positive, special, latents, width, images),
            jnp.asarray(noise[rows]),
            negative=batching.prefix_of(row_negative, special, latents, width, images),
            textual=batching.prefix_of([textual[i] for i in rows], special, latents, width, images)
            if three
            else None,
            guidance=settings.guidance,
            image_guidance=image_guidance,
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

    given_images = 0 if sources is None else sources.shape[1]
    visual_tokens = grid.tokens + given_images * grid.height * grid.width
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
