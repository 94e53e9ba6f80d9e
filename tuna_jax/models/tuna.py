"""TUNA: one sequence of text and unified visual tokens in, text and velocities out (model.md sections 3 to 8).

    latents -> representation encoder -> connector -> visual tokens ┐
    text ids -> token table ------------------------------------------┴-> language transformer -> text head -> logits
    t -> time embedding -> time tokens, modulation                              └-> flow head -> velocities

What turns latents into visual tokens is the model's design (`designs.py`). Models without a VAE have patches of pixels
in place of latents, and their flow head predicts the clean image (sections 12 and 13).

Functions here take `(config, params, ...)`; params is the nested dict that `init` returns. It does not contain the
frozen VAE.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tuna_jax import flow
from tuna_jax.config import TunaConfig
from tuna_jax.models import language, layers, pixels
from tuna_jax.models.attention import Layout, sequence_layout
from tuna_jax.models.designs import DESIGNS, Inputs
from tuna_jax.models.flow_head import FlowHead, TimeEmbedding
from tuna_jax.models.language import LanguageModel
from tuna_jax.models.layers import Params
from tuna_jax.models.logical_sharding import constrain
from tuna_jax.models.text_loss import chunked_text_loss, text_loss
from tuna_jax.sequence import IGNORE

Latents = Float[Array, "b n t h w c"]
Patches = Float[Array, "b n t h w p"]


class Tuna(nnx.Module):
    """The trainable network."""

    def __init__(self, config: TunaConfig, *, rngs: nnx.Rngs):
        width = config.language.width
        for name, part in DESIGNS[config.design].parts(config, rngs).items():
            setattr(self, name, part)
        self.time_embedding = TimeEmbedding(config.time_frequencies, width, rngs=rngs)
        self.language = LanguageModel(config, rngs=rngs)
        self.flow_head = FlowHead(config, rngs=rngs)
        self.mask_token = (
            nnx.Param(jax.random.normal(rngs.params(), (width,)) / jnp.sqrt(width))
            if config.mask_token
            else None
        )
        self.design = config.design
        self.dtype = jnp.dtype(config.compute_dtype)
        self.remat, self.unroll = config.remat, config.unroll

    def visual_tokens(
        self,
        latents: Latents,
        hidden: Bool[Array, "b n thw"] | None = None,
        images: Patches | None = None,
        generates: bool | Bool[Array, "b n"] = False,
    ) -> Float[Array, "b n thw d"]:
        """The unified visual representation z of every slot's latents.

        Args:
          latents: of every slot, noisy or clean.
          hidden: where the mask token stands instead; None: nowhere.
          images, generates: patches of clean pixels of the slots, and whether each is generated; only designs that see
            pixels use them (`designs.Inputs`).
        """
        batch, slots = latents.shape[:2]
        flat = latents.reshape(batch * slots, *latents.shape[2:]).astype(self.dtype)
        flat = constrain(flat, "batch", None, None, None, "channels")
        if images is not None:
            images = images.reshape(batch * slots, *images.shape[2:]).astype(self.dtype)
        if not isinstance(generates, bool):
            generates = generates.reshape(-1)
        z = DESIGNS[self.design].tokens(self, Inputs(flat, generates, images))
        z = z.reshape(batch, slots, *z.shape[1:])
        if hidden is not None:
            z = hide(self.mask_token, z, hidden)
        return constrain(z, "batch", "slots", "tokens", "width")

    def embed(
        self,
        tokens: Int[Array, "b s"],
        layout: Layout,
        latents: Latents | None,
        time: Float[Array, "b n d"] | None,
        hidden: Bool[Array, "b n thw"] | None = None,
        images: Patches | None = None,
        generates: bool | Bool[Array, "b n"] = False,
    ) -> Float[Array, "b s d"]:
        """Token embeddings with every span replaced by its time token and visual tokens; the last three arguments are
        those of `visual_tokens`."""
        x = self.language.embed(tokens, self.dtype)
        if latents is None or time is None:
            return x
        visual = self.visual_tokens(latents, hidden, images, generates)
        spans = jnp.concatenate([time[:, :, None].astype(visual.dtype), visual], axis=2)
        batch, slots, length, width = spans.shape
        index = jnp.maximum(layout.slot, 0) * length + layout.within
        # Any device may need any of its rows' image tokens.
        spans = constrain(spans.reshape(batch, slots * length, width), "batch", None, "width")
        inside = jnp.take_along_axis(spans, index[..., None], 1)
        x = jnp.where((layout.slot >= 0)[..., None], inside, x)
        return constrain(x, "batch", "sequence", "width")


def hide(
    mask_token: Any, tokens: Float[Array, "*b d"], hidden: Bool[Array, "*b"]
) -> Float[Array, "*b d"]:
    """Visual tokens with the learned mask token, `nnx.Param` [d], where `hidden` is True (model.md section 13).

    Raises:
      ValueError: the model has no mask token.
    """
    if mask_token is None:
        raise ValueError(
            "tokens are to be hidden, and the model has no mask token (mask_token=True)"
        )
    return jnp.where(hidden[..., None], mask_token[...].astype(tokens.dtype), tokens)


class Outputs(NamedTuple):
    """The results of a forward pass.

    Attributes:
      hidden: the language transformer's final hidden states.
      prediction: the flow head's float32 output at every token of the selected rows, which `span_predictions` takes
        apart; None without latents or rows.
    """

    hidden: Float[Array, "b s d"]
    prediction: Float[Array, "r s c"] | None


@functools.cache
def _template(config: TunaConfig) -> tuple[Any, Params]:
    return layers.split(nnx.eval_shape(lambda: Tuna(config, rngs=nnx.Rngs(0))))


def graphdef(config: TunaConfig) -> Any:
    """The structure that `layers.merge` combines with params; traced once per config."""
    return _template(config)[0]


def shapes(config: TunaConfig) -> Params:
    """Shapes and dtypes of what `init` returns, as `jax.ShapeDtypeStruct`; traced once per config."""
    return jax.tree.map(lambda leaf: leaf, _template(config)[1])


def bind(config: TunaConfig, params: Params) -> Tuna:
    """Params -> a module to call inside a traced function."""
    return layers.merge(graphdef(config), params)


def init(config: TunaConfig, key: Array) -> Params:
    """Fresh float32 parameters, AdaLN-Zero: nested dict with keys `time_embedding, language, flow_head` and those of
    the design (`representation, connector` for TUNA); layers are stacked on axis 0. `shapes` returns only their
    shapes."""
    return layers.split(Tuna(config, rngs=nnx.Rngs(key)))[1]


def forward(
    config: TunaConfig,
    params: Params,
    tokens: Int[Array, "b s"],
    spans: Int[Array, "b n 2"],
    latents: Latents | None = None,
    t: Float[Array, "b n"] | None = None,
    flow_rows: Int[Array, " r"] | None = None,
    hidden_tokens: Bool[Array, "b n thw"] | None = None,
    images: Patches | None = None,
    generates: bool | Bool[Array, "b n"] = False,
) -> Outputs:
    """Whole sequences through the whole network.

    Args:
      config, params: the model.
      tokens: ids; those inside spans are ignored.
      spans: `(offset, length)` of every slot, `(-1, -1)` if unused.
      latents: `[B, N, T, h, w, C]`, noisy or clean; None for text only (all spans must then be unused).
      t: flow time of every slot; 1 is clean.
      flow_rows: rows that the flow head runs on; None: all; empty: it is not run.
      hidden_tokens: visual tokens that the mask token replaces (model.md section 13); None: none.
      images, generates: see `Tuna.visual_tokens`.
    """
    model = bind(config, params)
    layout = sequence_layout(spans, tokens.shape[1])
    if latents is None or t is None:
        hidden, _ = model.language(model.embed(tokens, layout, None, None), layout)
        return Outputs(hidden, None)
    time = constrain(model.time_embedding(t), "batch", "slots", "width")
    embedded = model.embed(tokens, layout, latents, time, hidden_tokens, images, generates)
    hidden, _ = model.language(embedded, layout)
    if flow_rows is not None and not len(flow_rows):
        return Outputs(hidden, None)
    selected, time, layout = _take((hidden, time, layout), flow_rows)
    prediction, _ = model.flow_head(selected, time, layout, (latents.shape[3], latents.shape[4]))
    return Outputs(hidden, prediction)


def logits(config: TunaConfig, params: Params, hidden: Float[Array, "b s d"]) -> Array:
    """Hidden states -> float32 logits over the vocabulary."""
    return bind(config, params).language.logits(hidden)


def span_predictions(
    config: TunaConfig,
    prediction: Float[Array, "b s c"],
    spans: Int[Array, "b n 2"],
    shape: tuple[int, ...],
) -> Latents:
    """Predictions at every slot's image tokens as latents `[B, N, T, h, w, C]`: velocities, or clean images
    (`config.flow`). Those of an unused slot are meaningless."""
    batch, slots = spans.shape[:2]
    count = shape[0] * shape[1] * shape[2]
    index = jnp.maximum(spans[:, :, :1], 0) + 1 + jnp.arange(count)
    index = jnp.minimum(index, prediction.shape[1] - 1).reshape(batch, slots * count, 1)
    taken = jnp.take_along_axis(prediction, index, axis=1).reshape(batch, slots, *shape)
    return in_place(config, taken)


def in_place(config: TunaConfig, predictions: Float[Array, "*b h w c"]) -> Array:
    """Predictions in the order of image tokens -> at the positions of the latents that they predict.

    Only models that predict strips of the raster (`PixelConfig.order`) predict something else than the token's own
    patch.
    """
    if config.pixels is None or config.pixels.order == "patch":
        return predictions
    return pixels.from_strips(predictions, config.pixels.patch)


def _rows_with(condition: Bool[Array, " b"], count: int | None) -> Int[Array, " r"] | None:
    """Indices of `count` rows, those that meet the condition first; None: all rows."""
    return None if count is None else jnp.argsort(~condition, stable=True)[:count]


def _take(tree: Any, rows: Int[Array, " r"] | None) -> Any:
    """These rows of every array; None: the arrays unchanged."""
    return tree if rows is None else jax.tree.map(lambda array: array[rows], tree)


def _put_back(
    values: Float[Array, " r"], rows: Int[Array, " r"] | None, length: int
) -> Float[Array, " b"]:
    """The inverse of `_take`: a vector over all rows, 0 for those that were not taken."""
    return values if rows is None else jnp.zeros(length, values.dtype).at[rows].set(values)


def _mean(
    total: Float[Array, ""], counts: Float[Array, " b"], divisor: Float[Array, ""] | None
) -> Float[Array, ""]:
    """`total / divisor`; the divisor is by default the sum of the counts, and at least 1."""
    return total / jnp.maximum(counts.sum() if divisor is None else divisor, 1.0)


def target_counts(batch: Mapping[str, Array]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The divisors of a batch's two losses: latent values to generate, and tokens with labels."""
    target = batch["is_target"] & (batch["spans"][:, :, 1] > 0)
    values = target.sum().astype(jnp.float32) * batch["latents"][0, 0].size
    return values, (batch["labels"][:, 1:] != IGNORE).sum().astype(jnp.float32)


def loss(
    config: TunaConfig,
    params: Params,
    batch: Mapping[str, Array],
    noise: Latents,
    t: Float[Array, "b n"],
    *,
    flow_weight: float = 1.0,
    text_weight: float = 0.2,
    flow_rows: int | None = None,
    text_rows: int | None = None,
    counts: tuple[Float[Array, ""], Float[Array, ""]] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """`flow_weight * MSE(velocity) + text_weight * CE(next token)` (model.md sections 8 and 12).

    The velocity of a model that predicts the clean image is the one that follows from its prediction, so that its error
    is divided by `max(min_remaining, 1 - t)`.

    Args:
      config, params: the model.
      batch: `tokens`, `labels`, `spans`, `is_target`, `latents` (clean), as `data/` returns them; and optionally, as
        `training/augment.py` draws them, `input_t` float32 [B, N], the times of slots that are not targets (default: 1,
        clean), and `hidden_tokens` bool [B, N, T h w], visual tokens that the mask token replaces; and for designs that
        see pixels `images`, the patches of clean pixels of every slot.
      noise: standard normal, of the shape of `latents`; x_0 of every slot is `noise_scale` times it.
      t: flow times; used where `is_target`.
      flow_weight, text_weight: weights of the two terms. A term without targets is exactly 0.
      flow_rows, text_rows: upper bounds, known to the caller, on the rows of the batch with a target, or with labels:
        the flow head, or the text head, runs on only this many rows (rows beyond are left out of the loss). None: on
        all rows; 0: the head is not run.
      counts: the divisors of the two sums if this is a part of a larger batch (`target_counts` of that batch); the
        losses of the parts then add up to its loss. None: the counts of this batch.

    Returns:
      The loss, and float32 metrics: `loss`, `flow_loss`, `text_loss`, and per row `flow_sum`, `flow_count`, `text_sum`,
      `text_count` `[B]`, from which the losses per task are computed.
    """
    clean = batch["latents"]
    target = batch["is_target"] & (batch["spans"][:, :, 1] > 0)
    t = jnp.where(target, t, batch.get("input_t", 1.0))
    if config.flow.noise_scale != 1.0:
        noise = config.flow.noise_scale * noise
    noisy = flow.interpolate(clean, noise, t)
    rows = _rows_with(target.any(1), flow_rows)
    out = forward(
        config,
        params,
        batch["tokens"],
        batch["spans"],
        noisy,
        t,
        rows,
        batch.get("hidden_tokens"),
        batch.get("images"),
        target,
    )
    flow_sum = flow_count = text_sum = text_count = jnp.zeros(len(clean), jnp.float32)
    token_sum = jnp.float32(0)
    if out.prediction is not None:
        predicts_clean = config.flow.predicts_clean
        wanted = clean if predicts_clean else clean - noise
        spans, mask, wanted = _take((batch["spans"], target, wanted), rows)
        predicted = span_predictions(config, out.prediction, spans, clean.shape[2:])
        weight = mask.astype(jnp.float32)
        if predicts_clean:
            weight /= jnp.square(flow.remaining(_take(t, rows), config.flow.min_remaining))
        error = jnp.square(predicted - wanted) * weight[:, :, None, None, None, None]
        flow_sum = _put_back(error.sum((1, 2, 3, 4, 5)), rows, len(clean))
        flow_count = target.sum(1).astype(jnp.float32) * (clean[0, 0].size)
    if text_rows != 0:
        rows = _rows_with((batch["labels"] != IGNORE).any(1), text_rows)
        hidden, labels = _take((out.hidden, batch["labels"]), rows)
        model, chunk = bind(config, params).language, config.text_chunk
        if 0 < chunk < labels.shape[1]:
            token_sum, *sums = chunked_text_loss(
                language.scores, model.text_head(), hidden, labels, chunk
            )
        else:
            sums = text_loss(model.logits(hidden), labels)
            token_sum = sums[0].sum()
        text_sum, text_count = (_put_back(values, rows, len(clean)) for values in sums)
    flow_total, text_total = counts or (None, None)
    flow_loss = _mean(flow_sum.sum(), flow_count, flow_total)
    ntp_loss = _mean(token_sum, text_count, text_total)
    total = flow_weight * flow_loss + text_weight * ntp_loss
    return total, {
        "loss": total,
        "flow_loss": flow_loss,
        "text_loss": ntp_loss,
        "flow_sum": flow_sum,
        "flow_count": flow_count,
        "text_sum": text_sum,
        "text_count": text_count,
    }
