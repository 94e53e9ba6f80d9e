"""What surrounds a small TUNA and makes pictures and words of its latents and tokens.

That is the frozen VAE, the tokenizer, and the settings of drawing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from tuna_jax.config import TunaConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.generation import images, text
from tuna_jax.generation.prefix import Prefix, text_prefix
from tuna_jax.models import vae
from tuna_jax.sequence import Grid, stack, understanding_prompt

Pictures = UInt8[np.ndarray, "n height width 3"]
Latents = Float[np.ndarray, "n 1 h w c"]

_ROWS = 64  # Rows a call: every call has as many, so that a program is compiled once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How pictures are drawn: `points` of the time grid (one step fewer), guidance, shift of the grid, solver.

    Attributes:
      count: pictures on the contact sheet that training draws.
    """

    count: int = 24
    points: int = 16
    guidance: float = 2.0
    shift: float = 3.0
    solver: str = "euler"


@dataclasses.dataclass(frozen=True)
class World:
    """A model's surroundings.

    Attributes:
      config: the model, with the VAE's config in it.
      vae_params: the frozen VAE.
      tokenizer: text to ids.
      size: side of a picture in pixels.
      samples: how to draw.
    """

    config: TunaConfig
    vae_params: Any
    tokenizer: Tokenizer
    size: int
    samples: SampleSettings = SampleSettings()

    @property
    def grid(self) -> Grid:
        """Latent extent of a picture."""
        return Grid(*self.config.vae.latent_shape(1, self.size, self.size)[:3])

    def parameter_count(self, params: Any) -> int:
        """Numbers in the trainable network; the VAE is apart."""
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    def encode(self, pictures: Pictures) -> tuple[Latents, Latents]:
        """Pictures -> the posterior's normalised mean and standard deviation, float32."""
        mean, std = _encode(self.config, self.vae_params, pictures)
        return np.asarray(mean), np.asarray(std)

    def decode(self, latents: Float[Any, "n 1 h w c"]) -> Pictures:
        """Normalised latents -> pictures."""
        return np.asarray(_decode(self.config, self.vae_params, jnp.asarray(latents)))

    def reconstruct(self, pictures: Pictures) -> Pictures:
        """Pictures through the VAE and back."""
        return _in_chunks(lambda part: self.decode(self.encode(part)[0]), pictures)

    def draw(self, params: Any, prompts: Sequence[str], seed: int = 0) -> Pictures:
        """Pictures of the prompts; picture i depends on (seed, i) and its prompt alone."""
        special, shape = (
            self.tokenizer.special,
            self.config.vae.latent_shape(1, self.size, self.size),
        )
        ids = [[special.bos, *self.tokenizer.encode(prompt), special.boi] for prompt in prompts]
        width = _round_up(max(map(len, ids)))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(seed), jnp.arange(len(prompts))
        )
        noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))

        def some(index: np.ndarray) -> Pictures:
            empty = [[special.bos, special.boi]] * len(index)
            drawn = images.sample(
                self.config,
                params,
                _prefix([ids[i] for i in index], width, special.pad),
                jnp.asarray(noise[index]),
                negative=_prefix(empty, width, special.pad),
                guidance=self.samples.guidance,
                points=self.samples.points,
                shift=self.samples.shift,
                solver=self.samples.solver,
            )
            return self.decode(drawn)

        return _in_chunks(some, np.arange(len(prompts)))

    def answer(
        self, params: Any, pictures: Pictures, questions: Sequence[str], *, longest: int = 24
    ) -> list[str]:
        """The model's greedy answer to each picture's question, at most `longest` tokens."""
        special = self.tokenizer.special
        asked = [
            understanding_prompt(special, self.tokenizer.encode(question), self.grid)
            for question in questions
        ]
        width = _round_up(max(len(item.tokens) for item in asked))

        def some(index: np.ndarray) -> np.ndarray:
            batch = stack([asked[i] for i in index], width, 1, special)
            prefix = Prefix(
                jnp.asarray(batch["tokens"]),
                jnp.asarray(batch["lengths"]),
                jnp.asarray(batch["spans"]),
                jnp.asarray(self.encode(pictures[index])[0][:, None]),
            )
            decoded = text.generate(
                self.config,
                params,
                prefix,
                jax.random.key(0),
                eos=special.eos,
                max_new_tokens=longest,
            )
            return np.asarray(decoded.tokens)

        rows = _in_chunks(some, np.arange(len(questions)))
        return [self._until_end(row) for row in rows]

    def _until_end(self, row: np.ndarray) -> str:
        ids = row.tolist()
        eos = self.tokenizer.special.eos
        return self.tokenizer.decode(ids[: ids.index(eos)] if eos in ids else ids)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: TunaConfig, vae_params: Any, pictures: Array) -> tuple[Array, Array]:
    scaled = pictures[:, None].astype(jnp.float32) / 127.5 - 1.0
    mean, log_var = vae.encode(config.vae, vae_params, scaled)
    return mean, vae.posterior_std(config.vae, log_var)


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: TunaConfig, vae_params: Any, latents: Array) -> Array:
    return images.to_uint8(vae.decode(config.vae, vae_params, latents)[:, 0])


def _in_chunks(function: Any, rows: np.ndarray) -> np.ndarray:
    """`function` over `_ROWS` rows at a time; the last chunk is filled up with its own last row."""
    parts = []
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        filled = np.concatenate([part, np.repeat(part[-1:], _ROWS - len(part), axis=0)])
        # A short call alone is not worth 64 rows.
        parts.append(function(filled if len(rows) > _ROWS else part)[: len(part)])
    return np.concatenate(parts)


def _prefix(rows: Sequence[Sequence[int]], width: int, pad: int) -> Prefix:
    """Rows of ids, padded to one width."""
    tokens = np.full((len(rows), width), pad, np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return text_prefix(tokens, np.array([len(row) for row in rows], np.int32))


def _round_up(length: int, multiple: int = 16) -> int:
    """Few widths, so that few programs are compiled."""
    return -(-length // multiple) * multiple
