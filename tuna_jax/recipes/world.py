"""What surrounds a small TUNA while it trains and is measured, and makes pictures and words of its latents and tokens.

That is the frozen VAE, the tokenizer, and the settings of drawing; the parameters come with every call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from tuna_jax.config import TunaConfig
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.recipes import rows
from tuna_jax.recipes.abilities import Model, SampleSettings
from tuna_jax.recipes.conversations import Conversation
from tuna_jax.sequence import Grid

Pictures = UInt8[np.ndarray, "n height width 3"]
Latents = Float[np.ndarray, "n 1 h w c"]


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

    def model(self, params: Any) -> Model:
        """All abilities, with these parameters."""
        size = (self.size, self.size)
        return Model(
            self.config, params, self.vae_params, self.tokenizer, size, self.samples, "plain"
        )

    def parameter_count(self, params: Any) -> int:
        """Numbers in the trainable network; the VAE is apart."""
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    def encode(self, pictures: Pictures) -> tuple[Latents, Latents]:
        """Pictures -> the posterior's normalised mean and standard deviation, float32."""
        mean, std = rows.encode(self.config, self.vae_params, pictures[:, None])
        return np.asarray(mean), np.asarray(std)

    def decode(self, latents: Float[Any, "n 1 h w c"]) -> Pictures:
        """Normalised latents -> pictures."""
        return np.asarray(rows.decode(self.config, self.vae_params, latents))[:, 0]

    def reconstruct(self, pictures: Pictures) -> Pictures:
        """Pictures through the VAE and back."""
        return rows.in_chunks(lambda part: self.decode(self.encode(part)[0]), pictures)

    def draw(self, params: Any, prompts: Sequence[str], seed: int = 0) -> Pictures:
        """Pictures of the prompts; picture i depends on (seed, i) and its prompt alone."""
        return self.model(params).generate_image(prompts, seed=seed)

    def answer(
        self, params: Any, pictures: Pictures, questions: Sequence[str], *, longest: int = 24
    ) -> list[str]:
        """The model's greedy answer to each picture's question, at most `longest` tokens."""
        asked = [
            Conversation.of([picture[None]], question)
            for picture, question in zip(pictures, questions, strict=True)
        ]
        return self.model(params).reply(asked, max_new_tokens=longest)
