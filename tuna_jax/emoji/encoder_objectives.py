"""What a representation encoder can be trained on by itself: captions (`Contrastive`), or nothing but images
(`Masked`).

Both have the encoder under the name `representation`, with the parameters that a TUNA model has under this name, so
that its weights can start one. It sees what it will see there: latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tuna_jax.config import RepresentationConfig, TunaConfig
from tuna_jax.models.designs import ENCODERS
from tuna_jax.models.layers import LayerNorm, Linear, scan_layers, stacked
from tuna_jax.models.representation import EncoderLayer

Latents = Float[Array, "b t h w c"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveSettings:
    """Images with their captions, with SigLIP's loss.

    Attributes:
      width, layers, heads, mlp: sizes of the text transformer.
      embedding: width of the space in which images and texts are compared.
      temperature, bias: initial values of the two learned numbers, as in the paper.
    """

    width: int = 96
    layers: int = 1
    heads: int = 3
    mlp: int = 256
    embedding: int = 96
    temperature: float = 10.0
    bias: float = -10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedSettings:
    """Hidden latents of an image from the others, as MAE and SimMIM predict hidden pixels.

    Attributes:
      hidden: share of the tokens of an image that are hidden.
    """

    hidden: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.hidden < 1:
            raise ValueError(f"config.masked.hidden is {self.hidden}; it must be between 0 and 1")


def encoder(config: TunaConfig, rngs: nnx.Rngs) -> nnx.Module:
    """The encoder of a model, for its latents."""
    kind = ENCODERS[config.representation.kind]
    return kind(config.representation, config.space.latent_channels, rngs=rngs)


# ---- with captions: SigLIP (arXiv 2303.15343) ----------------------------------------------------


class TextEncoder(nnx.Module):
    """Token table, learned positions and bidirectional layers, which as SigLIP's attend to the padding too."""

    def __init__(
        self, settings: ContrastiveSettings, vocabulary: int, length: int, *, rngs: nnx.Rngs
    ):
        width = settings.width
        sizes = RepresentationConfig(width=width, heads=settings.heads, mlp=settings.mlp)

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

        self.embedding, self.position = normal(vocabulary, width), normal(length, width)
        self.layers = stacked(lambda r: EncoderLayer(sizes, "xla", rngs=r), settings.layers, rngs)

    def __call__(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        x = jnp.take(self.embedding[...], tokens, axis=0) + self.position[...][: tokens.shape[1]]
        x, _ = scan_layers(self.layers, lambda layer, x, _: (layer(x), None), x, unroll=True)
        return x


class Contrastive(nnx.Module):
    """Encoder and text transformer, each with a mean over its tokens, a norm and a projection.

    Args:
      config: the TUNA model of the encoder.
      settings: of the text transformer.
      length: number of tokens of a padded caption.
    """

    def __init__(
        self, config: TunaConfig, settings: ContrastiveSettings, length: int, *, rngs: nnx.Rngs
    ):
        self.representation = encoder(config, rngs)
        self.image_norm = LayerNorm(config.representation.width, 1e-6)
        self.image_projection = Linear(config.representation.width, settings.embedding, rngs=rngs)
        self.text = TextEncoder(settings, config.language.vocabulary, length, rngs=rngs)
        self.text_norm = LayerNorm(settings.width, 1e-6)
        self.text_projection = Linear(settings.width, settings.embedding, rngs=rngs)
        self.log_temperature = nnx.Param(jnp.log(jnp.float32(settings.temperature)))
        self.bias = nnx.Param(jnp.float32(settings.bias))

    def __call__(
        self, latents: Latents, tokens: Int[Array, "b s"], pad: int
    ) -> tuple[Float[Array, "b e"], Float[Array, "b e"]]:
        """Embeddings of images and of captions, not normalised; `pad` is the id of the padding."""
        image = self.image_norm(self.representation(latents, unroll=True).mean(1))
        words = (tokens != pad)[..., None]
        text = (self.text(tokens) * words).sum(1) / words.sum(1)
        return self.image_projection(image), self.text_projection(self.text_norm(text))


def sigmoid_loss(
    images: Float[Array, "b e"],
    texts: Float[Array, "b e"],
    log_temperature: Float[Array, ""],
    bias: Float[Array, ""],
) -> Float[Array, ""]:
    """SigLIP's loss: every pair of an image and a text is a binary classification, positive on the diagonal; the sum
    over pairs, divided by the number of images."""
    images, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts))
    logits = jnp.exp(log_temperature) * images @ texts.T + bias
    labels = 2.0 * jnp.eye(len(images)) - 1.0
    return -jax.nn.log_sigmoid(labels * logits).sum() / len(images)


# ---- without captions: masked images (MAE, arXiv 2111.06377; SimMIM, arXiv 2111.09886) ------------


class Masked(nnx.Module):
    """The encoder, what replaces hidden latents, and two linear layers that predict them.

    As in SimMIM the encoder also runs on the hidden places, so that it needs no other code than in a TUNA model.
    """

    def __init__(self, config: TunaConfig, *, rngs: nnx.Rngs):
        width, channels = config.representation.width, config.space.latent_channels
        self.representation = encoder(config, rngs)
        self.hidden_latent = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.up, self.down = Linear(width, width, rngs=rngs), Linear(width, channels, rngs=rngs)

    def __call__(self, latents: Latents, hidden: Bool[Array, "b thw"]) -> Float[Array, "b thw c"]:
        """Predicted latents of all tokens, of which those in `hidden` are not seen."""
        where = hidden.reshape(*latents.shape[:-1], 1)
        seen = jnp.where(where, self.hidden_latent[...], latents)
        return self.down(jax.nn.gelu(self.up(self.representation(seen, unroll=True))))


def hidden_error(
    predicted: Float[Array, "b n c"], latents: Float[Array, "b n c"], hidden: Bool[Array, "b n"]
) -> Float[Array, ""]:
    """Mean squared error at hidden tokens."""
    error = jnp.square(predicted - latents).mean(-1)
    return jnp.where(hidden, error, 0.0).sum() / hidden.sum()


def hide(key: Array, rows: int, tokens: int, share: float) -> Bool[Array, "rows tokens"]:
    """A random choice of `round(share * tokens)` tokens in each row, at least one and not all."""
    count = min(max(round(share * tokens), 1), tokens - 1)
    order = jnp.argsort(jax.random.uniform(key, (rows, tokens)), axis=1)
    return jnp.argsort(order, axis=1) < count


# ---- the two methods -----------------------------------------------------------------------------

Batch = Mapping[str, Array]
"""`latents` float32 [B, T, h, w, C] and, of Contrastive, `tokens` int32 [B, S]."""
Loss = Callable[[Any, Batch, Array], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
"""`(module, batch, key) -> (loss, further numbers to log)`."""
METHODS = ("contrastive", "masked")


def contrastive_loss(pad: int) -> Loss:
    """The loss of `Contrastive`; `accuracy` is the share of images whose own caption is the nearest of the batch."""

    def loss(
        module: Any, batch: Batch, key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        del key
        images, texts = module(batch["latents"], batch["tokens"], pad)
        temperature, bias = module.log_temperature[...], module.bias[...]
        nearest = jnp.argmax(images @ (texts / jnp.linalg.norm(texts, axis=-1, keepdims=True)).T, 1)
        numbers = {
            "accuracy": jnp.mean(nearest == jnp.arange(len(images))),
            "temperature": jnp.exp(temperature),
            "bias": bias,
        }
        return sigmoid_loss(images, texts, temperature, bias), numbers

    return loss


def masked_loss(settings: MaskedSettings) -> Loss:
    """The loss of `Masked`."""

    def loss(
        module: Any, batch: Batch, key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        latents = batch["latents"]
        rows, channels = len(latents), latents.shape[-1]
        tokens = latents.reshape(rows, -1, channels)
        hidden = hide(key, rows, tokens.shape[1], settings.hidden)
        return hidden_error(module(latents, hidden), tokens, hidden), {}

    return loss
