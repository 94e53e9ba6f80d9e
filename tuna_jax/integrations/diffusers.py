"""A pipeline with the arguments and results of diffusers' pipelines, for programs that were written for one of them.

    from tuna_jax.integrations.diffusers import TunaPipeline

    pipe = TunaPipeline.from_pretrained("emoji")
    image = pipe("a red apple on a blue background", seed=3).images[0]
    edited = pipe("make the background green", image=image, seed=3).images[0]

Neither diffusers nor PyTorch is imported. Images are those of `tuna_jax.Tuna` with the same seed.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from tuna_jax.inference import images, option_checks
from tuna_jax.inference.media_inputs import as_list
from tuna_jax.inference.pipeline import Tuna

OUTPUT_TYPES = ("pil", "np", "latent")
_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "image_guidance_scale": "image_guidance",
    "guidance_interval": "guidance_interval",
    "shift": "shift",
    "solver": "solver",
    "batch_size": "batch_size",
}
"""Options of a call, and their names in `SamplingOptions`."""


@dataclasses.dataclass(frozen=True)
class TunaPipelineOutput:
    """What a call returns.

    Attributes:
      images: by `output_type`: a list of Pillow images ('pil'); float32 [n, height, width, 3] from 0 to 1 ('np'); the
        model's normalised latents, float32 [n, 1, h, w, c], which are not decoded ('latent').
    """

    images: list[Image.Image] | np.ndarray


class TunaPipeline:
    """Generates and edits images.

    Args:
      model: the model that it runs.
    """

    def __init__(self, model: Tuna):
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: Any = None,
        torch_dtype: Any = None,
        **options: Any,
    ) -> TunaPipeline:
        """Reads a training run, a converted model, or the model in the package ('emoji').

        Args:
          path: as for `Tuna.load`.
          dtype, torch_dtype: dtype of the parameters, a name such as 'bfloat16' or one of PyTorch's dtypes. Default: as
            they are stored.
          **options: as for `Tuna.load`.

        Raises:
          ValueError, FileNotFoundError: as `Tuna.load`.
        """
        given = torch_dtype if dtype is None else dtype
        name = "" if given is None else str(given).rpartition(".")[2]
        return cls(Tuna.load(path, dtype=name, **options))

    def to(self, *_: Any, **__: Any) -> TunaPipeline:
        """This pipeline: JAX has placed the model on its devices; `from_pretrained(mesh=...)` chooses others."""
        return self

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: images.Sources | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        seed: int | Sequence[int] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        shift: float | None = None,
        solver: str | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> TunaPipelineOutput | tuple[list[Image.Image] | np.ndarray]:
        """Generates images, or edits `image`. What is left out takes the model's default.

        Args:
          prompt: one prompt or several; with `image`, what to change.
          image: an image to edit, or one per prompt: files, Pillow images, or uint8 [height, width, 3]. In place of one
            a list of several, `[[a, b]]` of one prompt.
          height, width: size in pixels, both or neither. Default: the model's size, or for edits the nearest of the
            shapes that edits were trained on.
          num_inference_steps: solver steps.
          guidance_scale: guidance scale; 0 and 1 sample without guidance.
          image_guidance_scale: guidance scale of the images to edit; 1 is none.
          negative_prompt: what not to generate: one for all prompts, or one per prompt.
          num_images_per_prompt: images of each prompt; those of one prompt follow each other.
          generator: as `seed`, or an object with `initial_seed()` as PyTorch's generators, or one per image. Only the
            seed of a generator is used: it does not move on.
          seed: seed of the noise: image i depends on (seed, i). A list has a seed per image. Default: at random.
          guidance_interval, shift, solver, batch_size: see `SamplingOptions`.
          output_type: 'pil', 'np' or 'latent', see `TunaPipelineOutput`.
          return_dict: whether the result is a `TunaPipelineOutput`; otherwise it is a tuple of its images.

        Raises:
          ValueError: an argument is invalid, or a number of images, prompts or seeds differs; it is named.
          FileNotFoundError: there is no file of that name.
          NotFiniteError: the model computed NaN or infinity.
        """
        option_checks.choice("output_type", output_type, OUTPUT_TYPES)
        each = option_checks.whole("num_images_per_prompt", num_images_per_prompt, 1, 2**31 - 1)
        prompts = images.prompt_list(prompt)
        values = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "image_guidance_scale": image_guidance_scale,
            "guidance_interval": guidance_interval,
            "shift": shift,
            "solver": solver,
            "batch_size": batch_size,
        }
        options: Any = {
            ours: option_checks.SAMPLING[ours](theirs, values[theirs])
            for theirs, ours in _NAMES.items()
            if values[theirs] is not None
        }
        if (height is None) is not (width is None):
            raise ValueError(f"height is {height} and width is {width}; give both or neither")
        if height is not None:
            options["size"] = option_checks.size("height and width", (height, width))
        if negative_prompt is not None:
            negative = option_checks.texts("negative_prompt", negative_prompt)
            options["negative"] = (
                negative
                if isinstance(negative, str)
                else _repeat("negative_prompt", negative, len(prompts), each)
            )
        options["seed"] = _seed(generator, seed)
        sources = None
        if image is not None:
            listed = as_list(image)
            sources = listed if len(listed) == 1 else _repeat("image", listed, len(prompts), each)
            options.setdefault("size", images.edit_size(self.model, sources))
            count = len(prompts) * each
            sources = images.load_sources(self.model, sources, count, options["size"])
        result = images.generate(
            self.model,
            [text for text in prompts for _ in range(each)],
            sources,
            options=options,
            as_latents=output_type == "latent",
        )
        made: list[Image.Image] | np.ndarray = result
        if output_type == "pil":
            made = [Image.fromarray(clip[0]) for clip in result]
        elif output_type == "np":
            made = result[:, 0].astype(np.float32) / 255
        return TunaPipelineOutput(made) if return_dict else (made,)


def _repeat(name: str, items: Sequence[Any], count: int, each: int) -> list[Any]:
    """One item per prompt, `each` times.

    Raises:
      ValueError: there is another number of items.
    """
    if len(items) != count:
        raise ValueError(
            f"{name} has {len(items)} entries for {count} prompts; give one, or one per prompt"
        )
    return [item for item in items for _ in range(each)]


def _seed(generator: Any, seed: Any) -> Any:
    """The `Seed` of a call.

    Raises:
      ValueError: both are given.
    """
    if generator is not None and seed is not None:
        raise ValueError("generator and seed are both given; give one of them")
    given = seed if generator is None else generator
    if given is None:
        return secrets.randbits(32)
    if isinstance(given, (list, tuple)):
        return [_number(item) for item in given]
    return _number(given)


def _number(generator: Any) -> Any:
    return generator.initial_seed() if hasattr(generator, "initial_seed") else generator
