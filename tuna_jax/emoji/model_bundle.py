"""The components of an emoji model except its parameters: config, frozen VAE, tokenizer and sampling settings.

`ModelBundle` generates, edits and answers with the parameters that each call passes, so training and evaluation can
use one bundle for many checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
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
from tuna_jax.inference import batching, loading
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation_config import SamplingSettings
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.inference.run_record import RECORD_KEY
from tuna_jax.parallel import leader
from tuna_jax.sequence import Grid
from tuna_jax.training.checkpoints import finished_checkpoints
from tuna_jax.training.weights_file import ADAPTER_FILE, LOADED_DTYPE, exported, load_model
from tuna_jax.utils import old_names
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.fingerprint import fingerprint
from tuna_jax.utils.param_tree import unflatten

Images = UInt8[np.ndarray, "n height width 3"]
Pairs = UInt8[np.ndarray, "n 2 height width 3"]
Latents = Float[np.ndarray, "n 1 h w c"]
Clips = UInt8[np.ndarray, "n frames height width 3"]
Frames = Float[np.ndarray, "n frames h w c"]


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """A model's components without its parameters.

    Attributes:
      config: the model, including the VAE's config.
      vae_params: parameters of the frozen VAE.
      tokenizer: text to ids.
      size: side of an image in pixels.
      samples: sampling settings.
    """

    config: TunaConfig
    vae_params: Any
    tokenizer: Tokenizer
    size: int
    samples: SamplingSettings = SamplingSettings()

    @property
    def grid(self) -> Grid:
        """Latent grid of an image."""
        return Grid(*self.config.space.latent_shape(1, self.size, self.size)[:3])

    @property
    def latents_key(self) -> str:
        """Identifies what makes latents of images: a VAE's weights and config, or the patches of a model on pixels."""
        space = self.config.space
        config = space.identity() if isinstance(space, VAEConfig) else dataclasses.asdict(space)
        config.pop("by_frame", None)  # A frame is encoded as an image with either value.
        return fingerprint({"weights": self.vae_params, "config": config})

    def model(self, params: Any) -> Tuna:
        """The inference pipeline with these parameters, or with those of a model that is loaded already."""
        if isinstance(params, Tuna):
            return dataclasses.replace(params, samples=self.samples)
        size = (self.size, self.size)
        return Tuna(
            self.config, params, self.vae_params, self.tokenizer, size, self.samples, "plain"
        )

    def parameter_count(self, params: Any) -> int:
        """Number of parameters of the trained network, without the VAE."""
        params = params.params if isinstance(params, Tuna) else params
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    def encode(self, images: Images) -> tuple[Latents, Latents]:
        """Images -> normalised mean and standard deviation of the posterior, float32."""
        mean, std = batching.encode(self.config, self.vae_params, images[:, None])
        return np.asarray(mean), np.asarray(std)

    def encode_frames(self, clips: Clips) -> tuple[Frames, Frames]:
        """`encode` for clips; every frame is encoded as an image."""
        flat = self.encode(clips.reshape(-1, *clips.shape[2:]))
        mean, std = (array.reshape(*clips.shape[:2], *array.shape[2:]) for array in flat)
        return mean, std

    def decode(self, latents: Float[Any, "n 1 h w c"]) -> Images:
        """Normalised latents -> images."""
        return np.asarray(batching.decode(self.config, self.vae_params, latents))[:, 0]

    def reconstruct(self, images: Images) -> Images:
        """Images, encoded to the posterior mean and decoded."""
        return batching.in_chunks(lambda part: self.decode(self.encode(part)[0]), images)

    def generate(
        self, params: Any, prompts: Sequence[str], seed: int | Sequence[int] = 0
    ) -> Images:
        """Images of the prompts; image i depends only on (seed, i), or on (seed[i], 0), and on its prompt."""
        return self.model(params).generate_image(prompts, seed=seed)

    def edit(
        self, params: Any, images: Images | Pairs, instructions: Sequence[str], seed: int = 0
    ) -> Images:
        """The edited images; image i depends only on (seed, i), its source or sources, and its instruction."""
        sources = [image if image.ndim == 3 else list(image) for image in images]
        return self.model(params).edit_image(sources, instructions, seed=seed)

    def continue_clips(
        self, params: Any, firsts: Images, prompts: Sequence[str], frames: int, seed: int = 0
    ) -> Clips:
        """Clips that begin with these frames; clip i depends only on (seed, i), its first frame and its prompt."""
        model = self.model(params)
        return model.generate_video(prompts, image=list(firsts), frames=frames, seed=seed)

    def generate_clips(
        self, params: Any, prompts: Sequence[str], frames: int, seed: int = 0
    ) -> Clips:
        """Clips of the prompts; clip i depends only on (seed, i) and its prompt."""
        return self.model(params).generate_video(prompts, frames=frames, seed=seed)

    def answer(
        self,
        params: Any,
        media: Images | Clips,
        questions: Sequence[str],
        *,
        max_new_tokens: int = 24,
    ) -> list[str]:
        """The greedy answer to the question about each image or clip, at most `max_new_tokens` tokens."""
        conversations = [
            Conversation.of([item if item.ndim == 4 else item[None]], question)
            for item, question in zip(media, questions, strict=True)
        ]
        return self.model(params).reply(conversations, max_new_tokens=max_new_tokens)

    def converse(
        self,
        params: Any,
        images: Images,
        questions: Sequence[str],
        histories: Sequence[Sequence[tuple[str, str]]],
        *,
        max_new_tokens: int = 24,
    ) -> list[str]:
        """The greedy answer to each question after earlier (question, answer) turns, in the chat template."""
        conversations = [
            Conversation.of([image[None]], question, history)
            for image, question, history in zip(images, questions, histories, strict=True)
        ]
        return self.model(params).reply(
            conversations, max_new_tokens=max_new_tokens, template="chat"
        )


def load_bundle(settings: EmojiExperiment) -> ModelBundle:
    """Reads the VAE and the tokenizer of an experiment, and checks that they match its model.

    Raises:
      ValueError: the model's latent channels differ from the VAE's, or its token embedding has fewer rows than the
        tokenizer has ids.
    """
    config = from_dict(settings.model)
    config, vae_params = _with_vae(config, settings)
    tokenizer = Tokenizer(settings.data.vocabulary)
    if config.language.vocabulary < tokenizer.size:
        raise ValueError(
            f"config.model.language.vocabulary is {config.language.vocabulary}, but the vocabulary "
            f"{settings.data.vocabulary!r} has {tokenizer.size} ids; the embedding requires a row for each id"
        )
    return ModelBundle(config, vae_params, tokenizer, settings.data.size, settings.samples)


def _with_vae(config: TunaConfig, settings: EmojiExperiment) -> tuple[TunaConfig, Any]:
    """The model's config with that of its VAE, and the VAE's parameters; a model on pixels has none."""
    if config.vae is None:
        if settings.vae:
            raise ValueError(
                f"config.vae is {settings.vae}, and the model works on pixels; set config.vae=''"
            )
        config.space.latent_shape(
            settings.data.clips.frames if settings.data.has_clips else 1,
            settings.data.size,
            settings.data.size,
        )
        return config, {}
    vae_config, vae_params = load_image_vae(settings.vae or None)
    if vae_config.latent_channels != config.vae.latent_channels:
        raise ValueError(
            f"the VAE has {vae_config.latent_channels} latent channels and the model requires "
            f"{config.vae.latent_channels}; set config.model.vae.latent_channels, or another file in "
            f"config.vae"
        )
    return dataclasses.replace(config, vae=for_clips(vae_config, settings.data)), vae_params


def for_clips(config: VAEConfig, data: EmojiData) -> VAEConfig:
    """The image VAE; if the data has clips, it encodes and decodes them frame by frame."""
    return dataclasses.replace(config, by_frame=True) if data.has_clips else config


def load_trained(path: str | Path) -> tuple[ModelBundle, Any, dict[str, Any]]:
    """Loads a trained emoji model.

    Args:
      path: workdir of a run that ended or was stopped, or its `model.safetensors`.

    Returns:
      The bundle, the (averaged) parameters, and the experiment's config as a mapping. With other processes that compute
      along (`parallel/leader.py`), the parameters are a `Tuna` over all of them.
    """
    source = (exported(path) or Path(path)) if Path(path).is_dir() else Path(path)
    stored: Mapping[str, Any]
    if source.name == ADAPTER_FILE:
        _, state = open_parameters(source)
        dtype = state.metadata.get(LOADED_DTYPE) or None
        params = unflatten({name: np.asarray(state.read(name), dtype) for name in state.entries})
        stored = json.loads(state.metadata["settings"])
    else:
        params, stored, _ = load_model(path)
    values = old_names.experiment(stored, stored=True)
    values.pop(RECORD_KEY, None)
    if leader.is_leading():
        params = loading.load(path)
    return load_bundle(parse(EmojiExperiment, values)), params, values


def checkpoints(workdir: str | Path) -> dict[int, Path]:
    """The checkpoints that a run kept, by step."""
    return {int(path.name): path for path in finished_checkpoints(workdir)}


def load_checkpoint(path: Path) -> Any:
    """The (averaged) parameters of one checkpoint; with other processes that compute along, a `Tuna`."""
    if leader.is_leading():
        return loading.load(path)
    _, state = open_parameters(path)
    return unflatten({name: state.read(name) for name in state.entries})
