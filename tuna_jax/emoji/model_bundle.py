"""What surrounds a small TUNA while it trains and is measured, and makes pictures and words of its latents and tokens.

That is the frozen VAE, the tokenizer, and the settings of drawing; the parameters come with every call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from tuna_jax.config import TunaConfig, VAEConfig, from_dict
from tuna_jax.conversion.checkpoint_source import open_parameters
from tuna_jax.conversion.image_vae_file import load_image_vae
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji.config import EmojiData, EmojiExperiment
from tuna_jax.inference import batching
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation_config import SamplingSettings
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sequence import Grid
from tuna_jax.training.checkpoints import finished_checkpoints
from tuna_jax.training.weights_file import load_model
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.param_tree import unflatten

Pictures = UInt8[np.ndarray, "n height width 3"]
Latents = Float[np.ndarray, "n 1 h w c"]
Clips = UInt8[np.ndarray, "n frames height width 3"]
Frames = Float[np.ndarray, "n frames h w c"]


@dataclasses.dataclass(frozen=True)
class ModelBundle:
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
    samples: SamplingSettings = SamplingSettings()

    @property
    def grid(self) -> Grid:
        """Latent extent of a picture."""
        return Grid(*self.config.vae.latent_shape(1, self.size, self.size)[:3])

    def model(self, params: Any) -> Tuna:
        """All abilities, with these parameters."""
        size = (self.size, self.size)
        return Tuna(
            self.config, params, self.vae_params, self.tokenizer, size, self.samples, "plain"
        )

    def parameter_count(self, params: Any) -> int:
        """Numbers in the trainable network; the VAE is apart."""
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    def encode(self, pictures: Pictures) -> tuple[Latents, Latents]:
        """Pictures -> the posterior's normalised mean and standard deviation, float32."""
        mean, std = batching.encode(self.config, self.vae_params, pictures[:, None])
        return np.asarray(mean), np.asarray(std)

    def encode_frames(self, clips: Clips) -> tuple[Frames, Frames]:
        """`encode` for clips, every frame as a picture of its own."""
        flat = self.encode(clips.reshape(-1, *clips.shape[2:]))
        mean, std = (array.reshape(*clips.shape[:2], *array.shape[2:]) for array in flat)
        return mean, std

    def decode(self, latents: Float[Any, "n 1 h w c"]) -> Pictures:
        """Normalised latents -> pictures."""
        return np.asarray(batching.decode(self.config, self.vae_params, latents))[:, 0]

    def reconstruct(self, pictures: Pictures) -> Pictures:
        """Pictures through the VAE and back."""
        return batching.in_chunks(lambda part: self.decode(self.encode(part)[0]), pictures)

    def draw(self, params: Any, prompts: Sequence[str], seed: int = 0) -> Pictures:
        """Pictures of the prompts; picture i depends on (seed, i) and its prompt alone."""
        return self.model(params).generate_image(prompts, seed=seed)

    def edit(
        self, params: Any, pictures: Pictures, instructions: Sequence[str], seed: int = 0
    ) -> Pictures:
        """The pictures changed as told; picture i depends on (seed, i), its source and its instruction alone."""
        return self.model(params).edit_image(list(pictures), instructions, seed=seed)

    def draw_clips(self, params: Any, prompts: Sequence[str], frames: int, seed: int = 0) -> Clips:
        """Clips of the prompts; clip i depends on (seed, i) and its prompt alone."""
        return self.model(params).generate_video(prompts, frames=frames, seed=seed)

    def answer(
        self, params: Any, shown: Pictures | Clips, questions: Sequence[str], *, longest: int = 24
    ) -> list[str]:
        """The model's greedy answer to the question about each picture or clip, at most `longest` tokens."""
        asked = [
            Conversation.of([item if item.ndim == 4 else item[None]], question)
            for item, question in zip(shown, questions, strict=True)
        ]
        return self.model(params).reply(asked, max_new_tokens=longest)

    def converse(
        self,
        params: Any,
        pictures: Pictures,
        questions: Sequence[str],
        histories: Sequence[Sequence[tuple[str, str]]],
        *,
        longest: int = 24,
    ) -> list[str]:
        """The answer to each question after (question, answer) turns, all in the chat form."""
        asked = [
            Conversation.of([picture[None]], question, history)
            for picture, question, history in zip(pictures, questions, histories, strict=True)
        ]
        return self.model(params).reply(asked, max_new_tokens=longest, template="chat")


def load_bundle(settings: EmojiExperiment) -> ModelBundle:
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
    config = dataclasses.replace(config, vae=for_clips(vae_config, settings.data))
    return ModelBundle(config, vae_params, tokenizer, settings.data.size, settings.samples)


def for_clips(config: VAEConfig, data: EmojiData) -> VAEConfig:
    """The VAE of pictures, taking the frames of a clip one by one if there are clips."""
    return dataclasses.replace(config, by_frame=True) if data.clips.rows else config


def load_trained(path: str | Path) -> tuple[ModelBundle, Any, dict[str, Any]]:
    """A trained emoji TUNA, ready to draw and answer.

    Args:
      path: workdir of a run that ended or was stopped, or its `model.safetensors`.

    Returns:
      Its world, its (averaged) parameters, and the experiment's mapping.
    """
    params, values, _ = load_model(path)
    return load_bundle(parse(EmojiExperiment, values)), params, values


def checkpoints(workdir: str | Path) -> dict[int, Path]:
    """The checkpoints that a run has kept, by step."""
    return {int(path.name): path for path in finished_checkpoints(workdir)}


def load_checkpoint(path: Path) -> Any:
    """The (averaged) parameters of one checkpoint."""
    _, state = open_parameters(path)
    return unflatten({name: state.read(name) for name in state.entries})
