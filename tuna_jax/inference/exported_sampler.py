"""Exported samplers: programs that are traced once, for several platforms, and run later without tracing.

A folder has `programs.json` and a file per program in the format of `jax.export`: StableHLO, a few hundred kilobytes,
without parameters. It is not machine code: a machine compiles a program when it is first called, and stores the result
in the compile cache like any other. What is saved is the tracing in Python: with a warm compile cache the emoji model's
first image takes about 1.0 s after loading instead of 1.4 s, on two busy cores.

A program generates images or clips from prompts, with one number of rows and one size, on one device. Everything else
(edits, a guidance interval, text, sharded parameters, another size) is traced as usual.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Bool, Float, UInt8

from tuna_jax.config import TunaConfig
from tuna_jax.flow import EVERYWHERE
from tuna_jax.inference import batching
from tuna_jax.inference.generation import flow_sampler
from tuna_jax.inference.generation.prefix_cache import Prefix
from tuna_jax.inference.generation_config import SamplingSettings
from tuna_jax.models.vae_tiles import TILE_ABOVE
from tuna_jax.sequence import Special, TokenSequence
from tuna_jax.utils.text_files import read_json

PLATFORMS = ("cpu", "tpu", "cuda")
LIST_FILE = "programs.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerSpec:
    """What a program generates: everything that its shapes and its steps depend on.

    Attributes:
      rows: number of prompts.
      prompt: tokens that prompts are padded to; shorter prompts fit.
      frames: frames per clip; 1 for an image.
      height, width: size in pixels.
      steps, shift, solver: see `generation_config.SamplingOptions`.
      guided: whether the negative branch of guidance runs; the scale is an argument of the program.
    """

    rows: int = 1
    prompt: int = 64
    frames: int = 1
    height: int
    width: int
    steps: int
    shift: float
    solver: str
    guided: bool = True

    @property
    def name(self) -> str:
        """The name of the program's file."""
        size = f"{self.frames}x{self.height}x{self.width}"
        sampling = f"{self.steps}_{self.shift:g}_{self.solver}{'' if self.guided else '_unguided'}"
        return f"draw_{self.rows}_of_{size}_prompt_{self.prompt}_{sampling}.program"


Program = Callable[..., tuple[Float[Array, "n t h w c"], UInt8[Array, "n f y x 3"]]]
"""(params, vae_params, positive, negative, noise, guidance) -> (latents, clips); `positive` is (tokens, lengths)."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """The exported samplers of one model.

    Attributes:
      spatial_factor: pixels per latent position.
      programs: the programs by what they generate.
    """

    spatial_factor: int
    programs: Mapping[SamplerSpec, Program]

    def find(self, spec: SamplerSpec) -> tuple[SamplerSpec, Program] | None:
        """The program that equals `spec` except that its prompts may be longer; None if there is none."""
        fitting = [
            candidate
            for candidate in self.programs
            if candidate.prompt >= spec.prompt
            and dataclasses.replace(candidate, prompt=spec.prompt) == spec
        ]
        if not fitting:
            return None
        shortest = min(fitting, key=lambda candidate: candidate.prompt)
        return shortest, self.programs[shortest]

    def generate(
        self,
        params: Any,
        vae_params: Any,
        prompts: tuple[Sequence[TokenSequence], Sequence[TokenSequence]],
        special: Special,
        noise: Float[np.ndarray, "n t h w c"],
        frames: int,
        settings: SamplingSettings,
    ) -> tuple[UInt8[np.ndarray, "n f y x 3"], Bool[np.ndarray, " n"]] | None:
        """Generates clips with an exported sampler, and whether each is finite; None if none fits.

        Args:
          params, vae_params: parameters of the model and of its VAE.
          prompts: the positive and the negative token sequences, one of each per row.
          special: special token ids; the pad id is used.
          noise: start of sampling.
          frames: frames per clip.
          settings: how to sample.
        """
        guided = settings.guidance not in (0.0, 1.0)
        match = self.find(
            SamplerSpec(
                rows=len(noise),
                prompt=batching.width_of([*prompts[0], *prompts[1]]),
                frames=frames,
                height=noise.shape[2] * self.spatial_factor,
                width=noise.shape[3] * self.spatial_factor,
                steps=settings.steps,
                shift=settings.shift,
                solver=settings.solver,
                guided=guided,
            )
        )
        if match is None or settings.guidance_interval != EVERYWHERE:
            return None
        spec, program = match
        positive, negative = (
            tuple(batching.prefix_of(sequences, special, None, spec.prompt)[:2])
            for sequences in prompts
        )
        inputs = (positive, negative if guided else None, noise, np.float32(settings.guidance))
        latents, clips = program(params, vae_params, *inputs)
        return np.asarray(clips), batching.finite_rows(np.asarray(latents))


def write(
    folder: str | os.PathLike[str],
    config: TunaConfig,
    params: Any,
    vae_params: Any,
    specs: Sequence[SamplerSpec],
    platforms: Sequence[str] = PLATFORMS,
    tile_above: int = TILE_ABOVE,
) -> list[Path]:
    """Traces samplers and serializes them.

    Args:
      folder: created if it does not exist. Programs of the same name are overwritten, and `programs.json` lists only
        the new ones.
      config: configuration of the model.
      params, vae_params: its parameters, or their shapes; only shapes and dtypes are used.
      specs: what each program generates.
      platforms: platforms to lower for, a subset of PLATFORMS.
      tile_above: see `batching.decode`.

    Returns:
      The files of the programs.

    Raises:
      ValueError: a platform is unknown, or a spec is invalid (a size that does not fit, an unknown solver).
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(
            f"platforms is {list(platforms)}; choose one or more of {', '.join(PLATFORMS)}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for spec in specs:
        shapes = _argument_shapes(config, params, vae_params, spec)
        traced = jax.jit(_sampler(config, spec, tile_above))
        exported = jax_export.export(traced, platforms=platforms)(*shapes)
        (folder / spec.name).write_bytes(exported.serialize())
    listing = {
        "model": config.to_dict(),
        "platforms": list(platforms),
        "programs": [dataclasses.asdict(spec) for spec in specs],
    }
    (folder / LIST_FILE).write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")
    return [folder / spec.name for spec in specs]


def read(
    folder: str | os.PathLike[str], config: TunaConfig, params: Any, vae_params: Any
) -> Programs:
    """Reads the exported samplers in a folder.

    Args:
      folder: written by `write`.
      config: configuration of the model.
      params, vae_params: its parameters, which the programs must fit.

    Raises:
      FileNotFoundError: the folder has no `programs.json`.
      ValueError: the programs are of another model, of parameters of other shapes or dtypes, or for other platforms.
    """
    path = Path(folder) / LIST_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {LIST_FILE}; `tuna-jax export` writes one")
    listing = read_json(path)
    if listing["model"] != json.loads(json.dumps(config.to_dict())):
        raise ValueError(f"the programs in {folder} are of another model; export them again")
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in listing["platforms"]:
        raise ValueError(
            f"the programs in {folder} are for {', '.join(listing['platforms'])}, not for {platform}"
        )
    programs: dict[SamplerSpec, Program] = {}
    expected = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves((params, vae_params))]
    for values in listing["programs"]:
        spec, file = _stored_spec(values)
        exported = jax_export.deserialize(bytearray((path.parent / file).read_bytes()))
        stored = [(leaf.shape, leaf.dtype) for leaf in exported.in_avals[: len(expected)]]
        if stored != expected:
            raise ValueError(
                f"{file} takes parameters of other shapes or dtypes than this model's; export it from this model, with "
                f"the same dtype"
            )
        programs[spec] = jax.jit(exported.call)
    return Programs(config.space.spatial_factor, programs)


def _stored_spec(values: Mapping[str, Any]) -> tuple[SamplerSpec, str]:
    """A program's spec and the name of its file, from its entry in `programs.json`."""
    if "points" not in values:
        spec = SamplerSpec(**values)
        return spec, spec.name
    # Earlier versions counted the points of the time grid, one more than the steps, and named files by them.
    rest = {key: value for key, value in values.items() if key != "points"}
    points = values["points"]
    return SamplerSpec(**rest, steps=points - 1), SamplerSpec(**rest, steps=points).name


def _sampler(config: TunaConfig, spec: SamplerSpec, tile_above: int) -> Program:
    """The function that is exported, see `Program`."""
    sample = flow_sampler.sampler(config, steps=spec.steps, shift=spec.shift, solver=spec.solver)

    def generate(
        params: Any, vae_params: Any, positive: Any, negative: Any, noise: Array, guidance: Array
    ) -> tuple[Array, Array]:
        no_spans = jnp.zeros((spec.rows, 0, 2), jnp.int32)
        prefix = Prefix(positive[0], positive[1], no_spans)
        negative_prefix = None if negative is None else Prefix(negative[0], negative[1], no_spans)
        latents = sample(params, prefix, negative_prefix, noise, guidance)
        return latents, batching.decode(config, vae_params, latents, tile_above=tile_above)

    return generate


def _argument_shapes(
    config: TunaConfig, params: Any, vae_params: Any, spec: SamplerSpec
) -> tuple[Any, ...]:
    """Shapes and dtypes of a program's arguments."""
    shape = jax.ShapeDtypeStruct
    latent_shape = config.space.latent_shape(spec.frames, spec.height, spec.width)
    prompt = (shape((spec.rows, spec.prompt), jnp.int32), shape((spec.rows,), jnp.int32))
    parameters = jax.tree.map(lambda leaf: shape(leaf.shape, leaf.dtype), (params, vae_params))
    noise = shape((spec.rows, *latent_shape), jnp.float32)
    return *parameters, prompt, prompt if spec.guided else None, noise, shape((), jnp.float32)
