"""Conversations with images and videos, and the token sequences that they become (model.md sections 5 and 10)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tuna_jax.data.text.tokenizer import IMAGE_TAG, Tokenizer
from tuna_jax.sequence import Grid, TokenSequence, build, understanding_prompt

TEMPLATES = ("chat", "plain")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The messages of a conversation, ending with the user's, and its input images or videos.

    Attributes:
      messages: dicts with `role` ('system', 'user' or 'assistant') and `content`; the last one is the user's. `<image>`
        in a user's content marks the position of an image or video.
      media: the images and videos in order, uint8 [frames, height, width, 3], all of one shape; an image is a clip of
        one frame.

    Raises:
      ValueError: the clips have different shapes, their number differs from the number of `<image>` tags, a message
        lacks a key, or the last message is not the user's.
    """

    messages: tuple[Mapping[str, str], ...]
    media: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        for message in self.messages:
            if not {"role", "content"} <= set(message):
                raise ValueError(f"a message requires 'role' and 'content', and one is {message}")
        if not self.messages or self.messages[-1]["role"] != "user":
            raise ValueError("the last message of a conversation must be the user's")
        if len({clip.shape for clip in self.media}) > 1:
            raise ValueError(
                "the media of a conversation have different shapes; give either images or videos, and videos of one "
                "length"
            )
        tags = sum(m["content"].count(IMAGE_TAG) for m in self.messages if m["role"] == "user")
        if tags != len(self.media):
            raise ValueError(
                f"the messages have {tags} {IMAGE_TAG} tags for {len(self.media)} images or videos"
            )

    @classmethod
    def of(
        cls, media: Sequence[np.ndarray], question: str, history: Sequence[tuple[str, str]] = ()
    ) -> Conversation:
        """A question after earlier (question, answer) turns; the media precede the first question."""
        questions = [*(turn[0] for turn in history), question]
        questions[0] = f"{IMAGE_TAG}\n" * len(media) + questions[0]
        messages = [{"role": "user", "content": questions[0]}]
        for (_, answer), next_question in zip(history, questions[1:], strict=True):
            messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": next_question})
        return cls(tuple(messages), tuple(media))


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
    if (template or default_template) not in TEMPLATES:
        raise ValueError(
            f"unknown template {template or default_template!r}; choose one of {', '.join(TEMPLATES)}"
        )
    content = conversation.messages[0]["content"]
    fits = len(conversation.messages) == len(grids) == 1 and content.startswith(IMAGE_TAG)
    if template == "plain" and not fits:
        raise ValueError(
            "template='plain' takes one image or video followed by one question; use template='chat'"
        )
    if (template or default_template) == "plain" and fits:
        question = content.removeprefix(IMAGE_TAG).removeprefix("\n")
        return understanding_prompt(tokenizer.special, tokenizer.encode(question), grids[0])
    segments = tokenizer.chat(conversation.messages, grids=grids, answer=True)
    return build(segments, tokenizer.special)
