"""Next-token cross-entropy (model.md section 8), for all tokens at once or in chunks.

Scores over the vocabulary are the largest array of a training step, and most tokens need none: image tokens, padding
and user turns have no label. With chunks, the tokens with labels come first in every row, a chunk in which no row has a
label is skipped, and a chunk's gradient is computed together with its loss, so that no score is computed twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from tuna_jax.models.logical_sharding import constrain
from tuna_jax.sequence import IGNORE

Score = Callable[[Any, Float[Array, "b s d"]], Float[Array, "b s v"]]
"""`(weights, hidden states) -> scores over the vocabulary`."""


def text_loss(
    scores: Float[Array, "b s v"], labels: Int[Array, "b s"], ignore: int = IGNORE
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Next-token cross-entropy: sums and token counts per row; a label is the token at its own position."""
    target = labels[:, 1:]
    learn = target != ignore
    return _cross_entropy(scores[:, :-1], target, learn), learn.sum(1).astype(jnp.float32)


def chunked_text_loss(
    score: Score,
    weights: Any,
    hidden: Float[Array, "b s d"],
    labels: Int[Array, "b s"],
    chunk: int,
    ignore: int = IGNORE,
) -> tuple[Float[Array, ""], Float[Array, " b"], Float[Array, " b"]]:
    """`text_loss` of `score(weights, hidden)`, with the scores of `chunk` tokens per row in memory at a time.

    Args:
      score: computes the scores; its arguments contain everything that is trained.
      weights: a tree of arrays.
      hidden: hidden states of all tokens.
      labels: as for `text_loss`.
      chunk: tokens per row.
      ignore: the label of a token without one.

    Returns:
      The sum over all rows, whose gradient is that of `text_loss`; sums and token counts per row, without gradients.
    """
    target = jnp.concatenate([labels[:, 1:], jnp.full_like(labels[:, :1], ignore)], 1)
    learn = target != ignore
    summed: Any = _chunked(score, chunk, weights, hidden, target, learn)
    total, rows = summed
    return total, jax.lax.stop_gradient(rows), learn.sum(1).astype(jnp.float32)


def _cross_entropy(
    scores: Float[Array, "b s v"], target: Int[Array, "b s"], learn: Bool[Array, "b s"]
) -> Float[Array, " b"]:
    """Sums over the tokens with labels; scores and targets have the same positions."""
    log_probabilities = jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1)
    chosen = jnp.take_along_axis(
        log_probabilities, jnp.where(learn, target, 0)[..., None], axis=-1
    )[..., 0]
    return -jnp.where(learn, chosen, 0.0).sum(1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(
    score: Score, chunk: int, weights: Any, hidden: Array, target: Array, learn: Array
) -> tuple[Array, Array]:
    rows, _, _ = _run(score, chunk, weights, hidden, target, learn, False, False)
    return rows.sum(), rows


def _forward(
    score: Score, chunk: int, weights: Any, hidden: Any, target: Any, learn: Any
) -> tuple[tuple[Array, Array], Any]:
    leaves, tree = jax.tree.flatten(weights)
    values = jax.tree.unflatten(tree, [leaf.value for leaf in leaves])
    weights_trained = any(leaf.perturbed for leaf in leaves)
    rows, *gradients = _run(
        score,
        chunk,
        values,
        hidden.value,
        target.value,
        learn.value,
        weights_trained,
        hidden.perturbed,
    )
    return (rows.sum(), rows), gradients


def _backward(
    score: Score, chunk: int, gradients: Any, cotangents: tuple[Any, Any]
) -> tuple[Any, ...]:
    del score, chunk
    total, _ = cotangents
    if isinstance(total, SymbolicZero):
        total = jnp.float32(0)
    scaled = (
        jax.tree.map(lambda x: (total * x).astype(x.dtype), gradient) for gradient in gradients
    )
    return *scaled, None, None


_chunked.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(
    score: Score,
    chunk: int,
    weights: Any,
    hidden: Float[Array, "b s d"],
    target: Int[Array, "b s"],
    learn: Bool[Array, "b s"],
    for_weights: bool,
    for_hidden: bool,
) -> tuple[Float[Array, " b"], Any, Float[Array, "b s d"] | None]:
    """Sums per row, and the gradients of their total for weights and hidden states where requested, else None."""
    batch, length = target.shape
    count = -(-length // chunk)
    order = jnp.argsort(~learn, axis=1, stable=True)

    def parts(x: Array) -> Array:
        x = jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), 1)
        x = jnp.pad(x, ((0, 0), (0, count * chunk - length)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 1, 0)

    def one_chunk(carry: tuple[Array, Any], part: tuple[Array, Array, Array]) -> tuple[Any, Any]:
        hidden, target, learn = part
        hidden = constrain(hidden, "batch", "sequence", "width")

        def run(carry: tuple[Array, Any]) -> tuple[Any, Any]:
            rows, gradient = carry
            inputs = ({"weights": weights} if for_weights else {}) | (
                {"hidden": hidden} if for_hidden else {}
            )
            value = lambda inputs: _cross_entropy(
                score(inputs.get("weights", weights), inputs.get("hidden", hidden)), target, learn
            )
            new, pull_back = jax.vjp(value, inputs)
            (gradients,) = pull_back(jnp.ones_like(new))
            gradient = jax.tree.map(jnp.add, gradient, gradients.get("weights"))
            return (rows + new, gradient), gradients.get("hidden")

        def skip(carry: tuple[Array, Any]) -> tuple[Any, Any]:
            return carry, jnp.zeros_like(hidden) if for_hidden else None

        return jax.lax.cond(learn.any(), run, skip, carry)

    gradient = jax.tree.map(jnp.zeros_like, weights) if for_weights else None
    start = jnp.zeros(batch, jnp.float32), gradient
    (rows, gradient), to_hidden = jax.lax.scan(
        one_chunk, start, (parts(hidden), parts(target), parts(learn))
    )
    if to_hidden is not None:
        to_hidden = jnp.moveaxis(to_hidden, 0, 1).reshape(batch, count * chunk, -1)
        back = jnp.argsort(order, axis=1)[..., None]
        to_hidden = constrain(jnp.take_along_axis(to_hidden, back, 1), "batch", "sequence", "width")
    return rows, gradient, to_hidden
