"""Features of images at every layer of a model, for comparing representations layer by layer."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from tuna_jax.config import TunaConfig
from tuna_jax.inference import batching
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.models import pixels, tuna
from tuna_jax.models.attention import sequence_layout
from tuna_jax.models.layers import Params, scan_layers
from tuna_jax.models.rope import flow_head_rotation, text_rotation
from tuna_jax.parallel import distributed
from tuna_jax.parallel.leader import on_all_processes
from tuna_jax.sequence import Grid, stack, understanding_prompt


class HiddenStates(NamedTuple):
    """Hidden states of whole sequences.

    Attributes:
      embedded: what enters the language transformer: at image tokens the unified visual representation.
      language: after each of its layers, before its last norm.
      flow: after each layer of the flow head.
    """

    embedded: Float[Array, "b s d"]
    language: Float[Array, "l b s d"]
    flow: Float[Array, "m b s d"]


def hidden_states(
    config: TunaConfig,
    params: Params,
    tokens: Int[Array, "b s"],
    spans: Int[Array, "b n 2"],
    latents: Float[Array, "b n t h w c"],
    images: Float[Array, "b n t h w p"] | None = None,
) -> HiddenStates:
    """`models.tuna.forward` of given (clean) images, with the hidden states of every layer.

    Arguments are those of `forward`.
    """
    model = tuna.bind(config, params)
    layout = sequence_layout(spans, tokens.shape[1])
    time = model.time_embedding(jnp.ones(latents.shape[:2], jnp.float32))
    embedded = model.embed(tokens, layout, latents, time, None, images, False)

    def twice(x: Array) -> tuple[Array, Array]:
        return x, x

    rotation = text_rotation(layout.position, jnp.asarray(model.language.frequencies, jnp.float32))
    x, language = scan_layers(
        model.language.layers, lambda layer, x, _: twice(layer(x, rotation, layout)[0]), embedded
    )
    turned = flow_head_rotation(layout, config.flow_head, *latents.shape[3:5])
    _, flow = scan_layers(
        model.flow_head.layers,
        lambda layer, x, _: twice(layer(x, time, turned, layout)[0]),
        model.language.norm(x),
    )
    return HiddenStates(embedded, language, flow)


@functools.partial(jax.jit, static_argnums=0)
def _pooled(
    config: TunaConfig,
    params: Params,
    tokens: Int[Array, "b s"],
    spans: Int[Array, "b n 2"],
    latents: Float[Array, "b n t h w c"],
    images: Float[Array, "b n t h w p"] | None,
) -> Float[Array, "b l d"]:
    """The mean over image tokens after every layer, float32."""
    states = hidden_states(config, params, tokens, spans, latents, images)
    stacked = jnp.concatenate([states.embedded[None], states.language, states.flow])
    is_image = sequence_layout(spans, tokens.shape[1]).is_image[..., None]
    total = jnp.where(is_image, stacked.astype(jnp.float32), 0.0).sum(2)
    return jnp.moveaxis(total / is_image.sum(1), 0, 1)


def names(config: TunaConfig) -> list[tuple[str, int]]:
    """(part, layer) of every entry of `layer_features`: ('visual', 0), ('language', 1), ..., ('flow_head', 1), ..."""
    return [
        ("visual", 0),
        *(("language", layer + 1) for layer in range(config.language.layers)),
        *(("flow_head", layer + 1) for layer in range(config.flow_head.layers)),
    ]


@on_all_processes
def layer_features(
    model: Tuna, images: UInt8[np.ndarray, "n h w 3"]
) -> Float[np.ndarray, "n layers width"]:
    """Features of clean images in the sequence of a question, before the question: the mean over an image's tokens of
    the unified visual representation, and of the hidden states after every layer; see `names`."""
    config, special = model.config, model.tokenizer.special
    grid = Grid(*config.space.latent_shape(1, *images.shape[1:3])[:3])
    sequence = understanding_prompt(special, [], grid)

    def run(part: np.ndarray) -> np.ndarray:
        clips = part[:, None]
        latents, _ = batching.encode(config, model.vae_params, clips, model.sharding)
        patches = None
        if config.sees_pixels:
            patches = pixels.from_uint8(config.image_patches, jnp.asarray(clips[:, None]))
        batch = stack([sequence] * len(part), len(sequence.tokens), 1, special)
        tokens, spans = jnp.asarray(batch["tokens"]), jnp.asarray(batch["spans"])
        return distributed.to_host(
            _pooled(config, model.params, tokens, spans, latents[:, None], patches)
        )

    max_rows = batching.rows_per_chunk(grid.tokens)
    return batching.in_chunks(run, images, max_rows, model.batch_parts)
