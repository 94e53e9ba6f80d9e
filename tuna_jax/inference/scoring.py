"""How likely a model finds an answer: the log-probability of its tokens after a conversation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tuna_jax.config import TunaConfig
from tuna_jax.inference import batching
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation.prefix_cache import Prefix, prefill
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.models import tuna
from tuna_jax.models.logical_sharding import LogicalSharding, use_sharding
from tuna_jax.sequence import TokenSequence

_NONE = -1  # where an answer is shorter than others


class Likelihoods(NamedTuple):
    """Of answers, a row each.

    Attributes:
      log_probability: of all tokens of the answer, natural logarithm.
      greedy: whether each token is the likeliest one, so that greedy decoding would say it.
      tokens: how many tokens the answer has, its end counted if it was asked for.
    """

    log_probability: Float[np.ndarray, " n"]
    greedy: Bool[np.ndarray, " n"]
    tokens: Int[np.ndarray, " n"]


def likelihoods(
    model: Tuna,
    conversations: Sequence[Conversation],
    answers: Sequence[str],
    *,
    ended: bool = True,
    template: str | None = None,
    batch_size: int | None = None,
) -> Likelihoods:
    """How likely each answer is after its conversation.

    Args:
      model: who is asked.
      conversations: what was said and shown; those that show equally much run together.
      answers: the assistant's next message in each.
      ended: whether the answer has to end there: the end's token counts too.
      template: as `DecodingOptions.template`.
      batch_size: most rows at once.

    Raises:
      ValueError: another number of answers, an answer without a token, a template that does not fit.
    """
    if len(conversations) != len(answers):
        raise ValueError(f"{len(answers)} answers to {len(conversations)} conversations")
    end = [model.tokenizer.special.eos] if ended else []
    ids = [[*model.tokenizer.encode(answer), *end] for answer in answers]
    for answer, tokens in zip(answers, ids, strict=True):
        if not tokens:
            raise ValueError(f"the answer {answer!r} has no token")
    groups: dict[Any, list[int]] = {}
    for index, conversation in enumerate(conversations):
        groups.setdefault(tuple(clip.shape for clip in conversation.media), []).append(index)
    found = np.zeros((len(answers), 2))
    for group in groups.values():
        asked = [model.ask(conversations[i], template) for i in group]
        shown = [conversations[i].media for i in group]
        some = [ids[i] for i in group]
        found[group] = _of_alike(model, asked, shown, some, batch_size)
    counts = np.array([len(tokens) for tokens in ids])
    return Likelihoods(found[:, 0], found[:, 1] > 0.5, counts)


def _of_alike(
    model: Tuna,
    asked: Sequence[TokenSequence],
    shown: Sequence[Sequence[np.ndarray]],
    answers: Sequence[Sequence[int]],
    most: int | None,
) -> Float[np.ndarray, "n 2"]:
    """Log-probability and greediness of answers after sequences that show equally much."""
    whole = [_joined(one, answer) for one, answer in zip(asked, answers, strict=True)]
    width = batching.width_of(whole)
    longest = batching.round_up(max(map(len, answers)), 8)
    targets = np.full((len(answers), longest), _NONE, np.int32)
    for row, answer in zip(targets, answers, strict=True):
        row[: len(answer)] = answer
    starts = np.array([len(one.tokens) for one in asked], np.int32)

    def some(part: Int[np.ndarray, " rows"]) -> np.ndarray:
        prefix = model.prefix([whole[i] for i in part], [shown[i] for i in part], width)
        scores = _scores(
            model.config, model.params, prefix, starts[part], targets[part], model.sharding
        )
        return np.stack([np.asarray(score) for score in scores], axis=-1)

    visual = int(asked[0].spans[:, 1].sum())
    return batching.in_chunks(some, np.arange(len(asked)), most or batching.rows_a_chunk(visual))


def _joined(asked: TokenSequence, answer: Sequence[int]) -> TokenSequence:
    ids = np.asarray(answer, np.int32)
    tokens = np.concatenate([asked.tokens, ids])
    return dataclasses.replace(asked, tokens=tokens, labels=np.concatenate([asked.labels, ids]))


@functools.partial(jax.jit, static_argnames=("config", "sharding"))
def _scores(
    config: TunaConfig,
    params: Any,
    prefix: Prefix,
    starts: Int[Any, " b"],
    targets: Int[Any, "b a"],
    sharding: LogicalSharding | None,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Of the tokens that begin at `starts`; logits are made at those alone."""
    length = prefix.tokens.shape[1]
    with use_sharding(sharding):
        _, hidden = prefill(config, params, prefix, length, with_flow_head=False)
        before = jnp.asarray(starts)[:, None] - 1 + jnp.arange(targets.shape[1])
        before = jnp.minimum(before, length - 1)
        states = jnp.take_along_axis(hidden, before[..., None], axis=1)
        logits = tuna.logits(config, params, states).astype(jnp.float32)
    counts = jnp.asarray(targets) != _NONE
    chosen = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1
    )[..., 0]
    right = (jnp.argmax(logits, -1) == targets) | ~counts
    return jnp.sum(jnp.where(counts, chosen, 0.0), -1), right.all(-1).astype(jnp.float32)
