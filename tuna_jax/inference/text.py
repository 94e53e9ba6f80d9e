"""Batched decoding of answers with a `Tuna`; `Tuna.reply` and `Tuna.stream`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Bool, Int

from tuna_jax.inference import batching, generation_config
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation import text_decoder
from tuna_jax.inference.generation_config import DecodingOptions
from tuna_jax.inference.not_finite import NotFiniteError
from tuna_jax.parallel import distributed, leader
from tuna_jax.parallel.leader import on_all_processes
from tuna_jax.sequence import TokenSequence

if TYPE_CHECKING:
    from tuna_jax.inference.pipeline import Tuna


@on_all_processes
def reply(
    model: Tuna, conversations: Sequence[Conversation], options: DecodingOptions
) -> list[str]:
    """The assistant's next message in each conversation; see `Tuna.reply`."""
    decoding = _with_defaults(options)
    batch_size, template = decoding.pop("batch_size"), decoding.pop("template")
    keys = batching.keys(decoding.pop("seed"), len(conversations))
    replies = [""] * len(conversations)
    finite = np.ones(len(conversations), bool)
    for group in groups_of_equal_media(conversations):
        prompts = [model.prompt_tokens(conversations[i], template) for i in group]
        media = [conversations[i].media for i in group]
        ids, finite[group] = _decode(
            model, prompts, media, keys[np.asarray(group)], batch_size, decoding
        )
        for index, row in zip(group, ids, strict=True):
            replies[index] = model.tokenizer.decode(_answer_ids(model, row))
    if not finite.all():
        questions = [conversation.question for conversation in conversations]
        rows = np.flatnonzero(~finite).tolist()
        raise NotFiniteError.of_rows("answer", questions, rows, replies)
    return replies


def stream(model: Tuna, conversation: Conversation, options: DecodingOptions) -> Iterator[str]:
    """The assistant's next message in parts; see `Tuna.stream`."""
    if (
        leader.is_leading()
    ):  # The processes would have to agree when to stop, so all is decoded first.
        return iter([reply(model, [conversation], options)[0]])
    decoding = _with_defaults(options)
    prompt = model.prompt_tokens(conversation, decoding.pop("template"))
    keys = batching.keys(decoding.pop("seed"), 1)
    decoding.pop("batch_size")
    parts = text_decoder.stream(
        model.config,
        model.generation_params,
        model.prefix([prompt], [conversation.media]),
        keys if decoding.get("temperature") else keys[0],
        eos=model.tokenizer.special.eos,
        sharding=model.sharding,
        **decoding,
    )
    return model.tokenizer.decode_parts(_answer_ids(model, part[0]) for part in parts)


def groups_of_equal_media(conversations: Sequence[Conversation]) -> list[list[int]]:
    """Indices of conversations grouped by the number and shape of their media, so that each group can share a batch."""
    groups: dict[Any, list[int]] = {}
    for index, conversation in enumerate(conversations):
        shapes = tuple(clip.shape for clip in conversation.media)
        groups.setdefault(shapes, []).append(index)
    return list(groups.values())


def _decode(
    model: Tuna,
    prompts: Sequence[TokenSequence],
    media: Sequence[Sequence[np.ndarray]],
    keys: Array,
    batch_size: int | None,
    decoding: Mapping[str, Any],
) -> tuple[Int[np.ndarray, "n new"], Bool[np.ndarray, " n"]]:
    """Token ids that follow prompts with equally many media of one shape, and whether their logits were finite."""
    width, visual_tokens = batching.width_of(prompts), int(prompts[0].spans[:, 1].sum())
    is_greedy = not decoding.get("temperature")
    finite = np.ones(len(prompts), bool)

    def decode_rows(rows: Int[np.ndarray, " rows"]) -> np.ndarray:
        prefix = model.prefix([prompts[i] for i in rows], [media[i] for i in rows], width)
        decoded = text_decoder.generate(
            model.config,
            model.generation_params,
            prefix,
            keys[0] if is_greedy else keys[rows],  # Greedy decoding uses no randomness.
            eos=model.tokenizer.special.eos,
            sharding=model.sharding,
            **decoding,
        )
        finite[rows] = distributed.to_host(decoded.finite)
        return distributed.to_host(decoded.tokens)

    max_rows = batch_size or batching.rows_per_chunk(visual_tokens)
    rows = np.arange(len(prompts))
    return batching.in_chunks(decode_rows, rows, max_rows, model.batch_parts), finite


def _answer_ids(model: Tuna, row: Int[np.ndarray, " n"]) -> list[int]:
    """The ids before `eos` that the tokenizer can decode."""
    ids, eos = row.tolist(), model.tokenizer.special.eos
    answer = ids[: ids.index(eos)] if eos in ids else ids
    # The embedding table may have more rows than the tokenizer has ids; an untrained model can predict one of those.
    return [i for i in answer if i < model.tokenizer.size]


def _with_defaults(options: DecodingOptions) -> dict[str, Any]:
    """Checked options with the defaults of those that the decoder requires; it has its own for the others."""
    defaults: dict[str, Any] = {"max_new_tokens": 128, "seed": 0}
    defaults |= {"batch_size": None, "template": None}
    return defaults | generation_config.decoding(options)
