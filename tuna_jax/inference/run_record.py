"""The record that a run or an exported model carries about itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuna_jax.config import from_dict
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji import model_bundle
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.emoji.model_bundle import ModelBundle
from tuna_jax.inference.components import PathLike, on_device, read_tokenizer, read_vae
from tuna_jax.inference.pipeline import Model
from tuna_jax.trainers import multitask
from tuna_jax.utils.config_parsing import parse


def of_run(
    values: Mapping[str, Any],
    params: Any,
    vae: PathLike | None,
    tokenizer: Tokenizer | PathLike | None,
) -> Model:
    """A model of a training run, whose settings name its VAE and its tokenizer."""
    if values.get("kind") in ("multitask", "mixture"):
        return multitask.load_model(values, params, vae=vae, tokenizer=tokenizer)
    settings = parse(EmojiExperiment, values)
    if vae is None:
        world = model_bundle.load_bundle(settings)
    else:
        config = from_dict(settings.model)
        vae_config, vae_params = read_vae(Path(vae), config)
        config = dataclasses.replace(config, vae=model_bundle.for_clips(vae_config, settings.data))
        words = read_tokenizer(settings.data.vocabulary if tokenizer is None else tokenizer, config)
        world = ModelBundle(config, vae_params, words, settings.data.size, settings.samples)
    if tokenizer is not None:
        world = dataclasses.replace(world, tokenizer=read_tokenizer(tokenizer, world.config))
    return dataclasses.replace(world, vae_params=on_device(world.vae_params)).model(params)
