"""Log-likelihoods of answers: the log-probability of their tokens after a conversation."""

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
from tuna_jax.inference.text import groups_of_equal_media
from tuna_jax.models import tuna
from tuna_jax.models.logical_sharding import LogicalSharding, use_sharding
from tuna_jax.parallel import distributed
from tuna_jax.parallel.leader import on_all_processes
from tuna_jax.sequence import TokenSequence

_PADDING = -1  # The target behind the end of an answer.


class Likelihoods(NamedTuple):
    """The likelihoods of n answers.

    Attributes:
      log_probability: natural logarithm of the probability of the answer, summed over its tokens.
      greedy: whether every token is the likeliest one, so that greedy decoding would generate the answer.
      tokens: number of tokens of the answer, with its end if that is scored.
    """

    log_probability: Float[np.ndarray, " n"]
    greedy: Bool[np.ndarray, " n"]
    tokens: Int[np.ndarray, " n"]


@on_all_processes
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
      model: the model.
      conversations: the conversations; those with equally many media of one shape run in one batch.
      answers: the assistant's next message in each conversation.
      ended: whether the token that ends the answer is scored too.
      template: see `DecodingOptions`.
      batch_size: the largest number of rows per batch.

    Raises:
      ValueError: the number of answers differs from that of conversations, an answer has no token, or the template does
        not fit.
    """
    if len(conversations) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(conversations)} conversations")
    end = [model.tokenizer.special.eos] if ended else []
    ids = [[*model.tokenizer.encode(answer), *end] for answer in answers]
    for answer, tokens in zip(answers, ids, strict=True):
        if not tokens:
            raise ValueError(f"the answer {answer!r} has no token")
    scores = np.zeros((len(answers), 2))
    for group in groups_of_equal_media(conversations):
        prompts = [model.prompt_tokens(conversations[i], template) for i in group]
        media = [conversations[i].media for i in group]
        scores[group] = _score_group(model, prompts, media, [ids[i] for i in group], batch_size)
    counts = np.array([len(tokens) for tokens in ids])
    return Likelihoods(scores[:, 0], scores[:, 1] > 0.5, counts)


def _score_group(
    model: Tuna,
    prompts: Sequence[TokenSequence],
    media: Sequence[Sequence[np.ndarray]],
    answers: Sequence[Sequence[int]],
    batch_size: int | None,
) -> Float[np.ndarray, "n 2"]:
    """Log-probability and greediness of answers (token ids) after prompts with equally many media of one shape."""
    sequences = [_append(prompt, ids) for prompt, ids in zip(prompts, answers, strict=True)]
    width = batching.width_of(sequences)
    longest = batching.round_up(max(map(len, answers)), 8)
    targets = np.full((len(answers), longest), _PADDING, np.int32)
    for row, ids in zip(targets, answers, strict=True):
        row[: len(ids)] = ids
    starts = np.array([len(prompt.tokens) for prompt in prompts], np.int32)

    def score_rows(rows: Int[np.ndarray, " rows"]) -> np.ndarray:
        prefix = model.prefix([sequences[i] for i in rows], [media[i] for i in rows], width)
        scores = _scores(
            model.config, model.params, prefix, starts[rows], targets[rows], model.sharding
        )
        return np.stack([distributed.to_host(score) for score in scores], axis=-1)

    visual_tokens = int(prompts[0].spans[:, 1].sum())
    max_rows = batch_size or batching.rows_per_chunk(visual_tokens)
    rows = np.arange(len(prompts))
    return batching.in_chunks(score_rows, rows, max_rows, model.batch_parts)


def _append(prompt: TokenSequence, answer: Sequence[int]) -> TokenSequence:
    ids = np.asarray(answer, np.int32)
    tokens = np.concatenate([prompt.tokens, ids])
    return dataclasses.replace(prompt, tokens=tokens, labels=np.concatenate([prompt.labels, ids]))


@functools.partial(jax.jit, static_argnames=("config", "sharding"))
def _scores(
    config: TunaConfig,
    params: Any,
    prefix: Prefix,
    starts: Int[Any, " b"],
    targets: Int[Any, "b a"],
    sharding: LogicalSharding | None,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Log-probability and greediness of the `targets` that begin at `starts`.

    Logits are computed only at the positions of the targets.
    """
    length = prefix.tokens.shape[1]
    with use_sharding(sharding):
        _, hidden = prefill(config, params, prefix, length, with_flow_head=False)
        before = jnp.asarray(starts)[:, None] - 1 + jnp.arange(targets.shape[1])
        before = jnp.minimum(before, length - 1)
        states = jnp.take_along_axis(hidden, before[..., None], axis=1)
        logits = tuna.logits(config, params, states).astype(jnp.float32)
    is_target = jnp.asarray(targets) != _PADDING
    log_probabilities = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[..., None], axis=-1
    )[..., 0]
    is_likeliest = (jnp.argmax(logits, -1) == targets) | ~is_target
    total = jnp.sum(jnp.where(is_target, log_probabilities, 0.0), -1)
    return total, is_likeliest.all(-1).astype(jnp.float32)
