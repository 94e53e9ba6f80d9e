"""Conversations with images and videos, and the token sequences that they become (model.md sections 5 and 10)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuna_jax.data.text.messages import (
    ESCAPED_TAG,
    IMAGE_TAG,
    MEDIA_TYPES,
    escape,
    media_key,
    parts_of,
    unescape,
)
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.inference import option_checks
from tuna_jax.inference.media_inputs import MediaInput, as_list, of_kind
from tuna_jax.sequence import Grid, TokenSequence, build, understanding_prompt

ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The messages of a conversation, ending with the user's, and its input images or videos.

    Attributes:
      messages: dicts with `role` ('system', 'user' or 'assistant') and `content`, a string or a list of parts
        (`data/text/messages.py`); the last one is the user's. Images and videos are in the user's content, and in the
        assistant's if that is a list of parts: what it has generated. In a string of the assistant's `<image>` is text.
      media: the images and videos in order, uint8 [frames, height, width, 3], all of one shape; an image is a clip of
        one frame.

    Raises:
      ValueError: the clips have different shapes, their number differs from that of the places for them, a message
        lacks a key, has an unknown role or content that is not text, or the last message is not the user's.
    """

    messages: tuple[Mapping[str, Any], ...]
    media: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        check_messages(self.messages)
        if not self.messages or self.messages[-1]["role"] != "user":
            raise ValueError("the last message of a conversation must be the user's")
        if len({clip.shape for clip in self.media}) > 1:
            raise ValueError(
                "the media of a conversation have different shapes; give either images or videos, and videos of one "
                "length"
            )
        tags = sum(_parts(message).count(None) for message in self.messages)
        if tags != len(self.media):
            raise ValueError(
                f"the messages have {tags} {IMAGE_TAG} tags for {len(self.media)} images or videos; "
                f"{ESCAPED_TAG} is the text {IMAGE_TAG}"
            )

    @classmethod
    def of(
        cls, media: Sequence[np.ndarray], question: str, history: Sequence[tuple[str, str]] = ()
    ) -> Conversation:
        """A question after earlier (question, answer) turns; the media precede the first question.

        In questions `\\<image>` is the text `<image>`; answers are text as the model gave them.
        """
        questions = [*(turn[0] for turn in history), question]
        for index, text in enumerate(questions):
            option_checks.text("question" if text is question else f"history[{index}]", text)
        questions[0] = f"{IMAGE_TAG}\n" * len(media) + questions[0]
        messages = [{"role": "user", "content": questions[0]}]
        for (_, answer), next_question in zip(history, questions[1:], strict=True):
            messages.append({"role": "assistant", "content": escape(answer)})
            messages.append({"role": "user", "content": next_question})
        return cls(tuple(messages), tuple(media))

    @property
    def question(self) -> str:
        """The text of the last message."""
        return "".join(part or "" for part in _parts(self.messages[-1])).strip()


def check_messages(messages: Any) -> None:
    """Checks the form of messages.

    Raises:
      ValueError: a message is not a dict with `role` and `content`, or one of these is invalid; it is named.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages is a {type(messages).__name__}; it must be a list of messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"a message requires 'role' and 'content', and {where} is {message!r}")
        option_checks.choice(f"role of {where}", message["role"], ROLES)
        parts = parts_of(message["content"], f"{where}.content")
        for part in parts:
            option_checks.text(f"{where}.content", part or "")
        if (
            None in parts
            and message["role"] == "system"
            and not isinstance(message["content"], str)
        ):
            raise ValueError(f"{where}: a system's message cannot have images or videos")


def media_of(
    messages: Sequence[Mapping[str, Any]], media: MediaInput | Sequence[MediaInput] | None = None
) -> list[MediaInput]:
    """The media of messages in order: those that parts name, and for other places the next of `media`.

    Raises:
      ValueError: as `check_messages`, or the number of places that name none differs from that of `media`.
    """
    check_messages(messages)
    given, listed = as_list(media), []
    places = 0
    for message in messages:
        content = message["content"]
        named = [] if isinstance(content, str) else [p for p in content if p["type"] in MEDIA_TYPES]
        if isinstance(content, str):
            named = [{"type": "image"}] * _parts(message).count(None)
        for part in named:
            key = media_key(part)
            if key is not None:
                listed += of_kind([part[key]], part["type"])
                continue
            if places < len(given):
                own = [given[places]]
                listed += own if isinstance(content, str) else of_kind(own, part["type"])
            places += 1
    if places != len(given):
        raise ValueError(
            f"the messages have {places} {IMAGE_TAG} tags for {len(given)} images or videos; "
            f"{ESCAPED_TAG} is the text {IMAGE_TAG}"
        )
    return listed


def _parts(message: Mapping[str, Any]) -> list[str | None]:
    """The content of a message; strings of others than the user have no images."""
    content = message["content"]
    if isinstance(content, str) and message["role"] != "user":
        return [unescape(content)]
    return parts_of(content)


def _as_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    parts = [
        {"type": "image"} if part is None else {"type": "text", "text": part}
        for part in _parts(message)
    ]
    return {"role": message["role"], "content": parts}


def prompt_tokens(
    tokenizer: Tokenizer,
    conversation: Conversation,
    grids: Sequence[Grid],
    default_template: str = "chat",
    template: str | None = None,
) -> TokenSequence:
    """The token sequence that the assistant's answer follows.

    Args:
      tokenizer: maps text to ids.
      conversation: the messages so far.
      grids: latent extent of each of `conversation.media`.
      default_template: the template that the model was trained with. 'plain', `<bos> <boi> [span] <eoi> question`, fits
        one image or video with one question; any other conversation then takes the chat template.
      template: a template to use instead of the default, which must fit.

    Raises:
      ValueError: the template is unknown, or it is 'plain' and the conversation does not fit.
    """
    option_checks.choice("template", template or default_template, option_checks.TEMPLATES)
    parts = _parts(conversation.messages[0])
    # A string that begins with an image has an empty text before it.
    before = parts.index(None) if None in parts else 0
    fits = len(conversation.messages) == len(grids) == 1 and not any(parts[:before])
    if template == "plain" and not fits:
        raise ValueError(
            "template='plain' takes one image or video followed by one question; use template='chat'"
        )
    if (template or default_template) == "plain" and fits:
        question = "".join(part or "" for part in parts)
        return understanding_prompt(tokenizer.special, tokenizer.encode(question), grids[0])
    segments = tokenizer.chat(
        [_as_parts(message) for message in conversation.messages], grids=grids, answer=True
    )
    return build(segments, tokenizer.special)
