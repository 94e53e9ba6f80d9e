"""The sampler as a file: traced once, for several kinds of machines, and called by servers that then trace nothing.

A folder holds `programs.json` and a file a program, as `jax.export` serialises one: StableHLO, a few hundred kilobytes,
without parameters. It is not machine code: each machine compiles it when it is first called, and keeps that in the
compile cache like everything else. What is saved is the tracing in Python: with a warm compile cache the emoji
model's first picture takes about 1.0 s after loading and not 1.4, on two busy cores.

A program draws pictures or clips of prompts, one device's rows of one size. What none is for (edits, a guidance
interval, text, parameters on a mesh, another size) is traced as if there were no programs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Array, Float, UInt8

from tuna_jax.config import TunaConfig
from tuna_jax.flow import EVERYWHERE
from tuna_jax.inference import batching
from tuna_jax.inference.components import PathLike
from tuna_jax.inference.generation import flow_sampler
from tuna_jax.inference.generation.prefix_cache import Prefix
from tuna_jax.inference.generation_config import SamplingSettings
from tuna_jax.models.vae_tiles import TILE_ABOVE
from tuna_jax.sequence import Special, TokenSequence

PLATFORMS = ("cpu", "tpu", "cuda")
LIST = "programs.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """What a program draws: all that its shapes and its steps are made of.

    Attributes:
      rows: prompts at a time.
      prompt: tokens that prompts are padded to; shorter ones do.
      frames, height, width: of what is drawn, in frames and pixels.
      steps, shift, solver: as `options.SamplingOptions`.
      guided: whether the negative side is run; the scale is an argument.
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
        """Of its file."""
        size = f"{self.frames}x{self.height}x{self.width}"
        how = f"{self.steps}_{self.shift:g}_{self.solver}{'' if self.guided else '_unguided'}"
        return f"draw_{self.rows}_of_{size}_prompt_{self.prompt}_{how}.program"


Program = Callable[..., tuple[Float[Array, "n t h w c"], UInt8[Array, "n f y x 3"]]]


@dataclasses.dataclass(frozen=True)
class Programs:
    """Programs for one model, by what they draw.

    Attributes:
      spatial_factor: pixels a latent position.
      known: the programs.
    """

    spatial_factor: int
    known: Mapping[Drawing, Program]

    def find(self, wanted: Drawing) -> tuple[Drawing, Program] | None:
        """The program for this, or for longer prompts and else the same; None: there is none."""
        fitting = [
            one
            for one in self.known
            if one.prompt >= wanted.prompt
            and dataclasses.replace(one, prompt=wanted.prompt) == wanted
        ]
        if not fitting:
            return None
        one = min(fitting, key=lambda drawing: drawing.prompt)
        return one, self.known[one]

    def draw(
        self,
        params: Any,
        vae_params: Any,
        sides: Sequence[Sequence[TokenSequence]],
        special: Special,
        noise: Float[np.ndarray, "n t h w c"],
        frames: int,
        how: SamplingSettings,
    ) -> UInt8[np.ndarray, "n f y x 3"] | None:
        """Clips that a program draws; None: there is none for this.

        Args:
          params, vae_params: the model's.
          sides: the positive prompts and the negative ones, laid out, one a row.
          special: gives the pad id.
          noise: to start from.
          frames: of a clip.
          how: to sample.
        """
        guided = how.guidance not in (0.0, 1.0)
        wanted = Drawing(
            rows=len(noise),
            prompt=batching.width_of([one for side in sides for one in side]),
            frames=frames,
            height=noise.shape[2] * self.spatial_factor,
            width=noise.shape[3] * self.spatial_factor,
            steps=how.steps,
            shift=how.shift,
            solver=how.solver,
            guided=guided,
        )
        found = self.find(wanted)
        if found is None or how.guidance_interval != EVERYWHERE:
            return None
        drawing, program = found
        positive, negative = (
            tuple(batching.prefix_of(side, special, None, drawing.prompt)[:2]) for side in sides
        )
        inputs = (positive, negative if guided else None, noise, np.float32(how.guidance))
        return np.asarray(program(params, vae_params, *inputs)[1])


def write(
    folder: PathLike,
    config: TunaConfig,
    params: Any,
    vae_params: Any,
    drawings: Sequence[Drawing],
    platforms: Sequence[str] = PLATFORMS,
    tile_above: int = TILE_ABOVE,
) -> list[Path]:
    """Traces and serialises programs.

    Args:
      folder: made if absent; programs of the same name are replaced, and no others are listed from then on.
      config: the model.
      params, vae_params: its parameters, or their shapes; only shapes and types count.
      drawings: what to write.
      platforms: some of PLATFORMS.
      tile_above: see `rows.decode`.

    Returns:
      The programs' files.

    Raises:
      ValueError: an unknown platform, and what tracing raises (a size that does not fit, an unknown solver).
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(f"platforms are {list(platforms)}; choose some of {', '.join(PLATFORMS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        shapes = _shapes(config, params, vae_params, drawing)
        traced = jax.jit(_function(config, drawing, tile_above))
        exported = jax_export.export(traced, platforms=platforms)(*shapes)
        (folder / drawing.name).write_bytes(exported.serialize())
    listed = {
        "model": config.to_dict(),
        "platforms": list(platforms),
        "programs": [dataclasses.asdict(drawing) for drawing in drawings],
    }
    (folder / LIST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return [folder / drawing.name for drawing in drawings]


def read(folder: PathLike, config: TunaConfig, params: Any, vae_params: Any) -> Programs:
    """Programs of a folder, for the model that they were written for.

    Raises:
      FileNotFoundError: no programs there.
      ValueError: they are of another model, of parameters of other types, or for other platforms.
    """
    path = Path(folder) / LIST
    if not path.is_file():
        raise FileNotFoundError(f"no programs in {folder}; `python -m tuna_jax.export` writes some")
    listed = json.loads(path.read_text(encoding="utf-8"))
    if listed["model"] != json.loads(json.dumps(config.to_dict())):
        raise ValueError(
            f"the programs in {folder} are of another model's config; export them anew"
        )
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in listed["platforms"]:
        raise ValueError(
            f"the programs in {folder} are for {', '.join(listed['platforms'])}; this is {platform}"
        )
    known: dict[Drawing, Program] = {}
    held = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves((params, vae_params))]
    for values in listed["programs"]:
        drawing = Drawing(**values)
        exported = jax_export.deserialize(bytearray((path.parent / drawing.name).read_bytes()))
        wanted = [(leaf.shape, leaf.dtype) for leaf in exported.in_avals[: len(held)]]
        if wanted != held:
            raise ValueError(
                f"{drawing.name} takes parameters of other shapes or types than this model holds them in; "
                "export it from this model, with the same dtype"
            )
        known[drawing] = jax.jit(exported.call)
    return Programs(config.vae.spatial_factor, known)


def _function(config: TunaConfig, drawing: Drawing, tile_above: int) -> Program:
    """(params, vae_params, positive, negative, noise, guidance) -> latents and clips; sides are (tokens, lengths)."""
    sample = flow_sampler.sampler(
        config, steps=drawing.steps, shift=drawing.shift, solver=drawing.solver
    )

    def draw(
        params: Any, vae_params: Any, positive: Any, negative: Any, noise: Array, guidance: Array
    ) -> tuple[Array, Array]:
        none = jnp.zeros((drawing.rows, 0, 2), jnp.int32)
        prefix = Prefix(positive[0], positive[1], none)
        against = None if negative is None else Prefix(negative[0], negative[1], none)
        latents = sample(params, prefix, against, noise, guidance)
        return latents, batching.decode(config, vae_params, latents, tile_above=tile_above)

    return draw


def _shapes(config: TunaConfig, params: Any, vae_params: Any, drawing: Drawing) -> tuple[Any, ...]:
    """Of a program's arguments."""
    shape = jax.ShapeDtypeStruct
    latent = config.vae.latent_shape(drawing.frames, drawing.height, drawing.width)
    side = (
        shape((drawing.rows, drawing.prompt), jnp.int32),
        shape((drawing.rows,), jnp.int32),
    )
    held = jax.tree.map(lambda leaf: shape(leaf.shape, leaf.dtype), (params, vae_params))
    noise = shape((drawing.rows, *latent), jnp.float32)
    return *held, side, side if drawing.guided else None, noise, shape((), jnp.float32)
