"""Conversations about what is media, and how they are put to a model (model.md sections 5 and 10)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tuna_jax.data.text.tokenizer import IMAGE_TAG, Tokenizer
from tuna_jax.sequence import Grid, TokenSequence, build, understanding_prompt

TEMPLATES = ("chat", "plain")


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What was said and media so far.

    Attributes:
      messages: dicts with `role` ('system', 'user' or 'assistant') and `content`, the last of them the user's;
        `<image>` in a user's content is where a clip goes.
      media: the clips, uint8 [frames, height, width, 3], all of one shape; a picture is a clip of one frame.

    Raises:
      ValueError: clips of several shapes, another number of `<image>` than of clips, or a last message that is not the
        user's.
    """

    messages: tuple[Mapping[str, str], ...]
    media: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        for message in self.messages:
            if not {"role", "content"} <= set(message):
                raise ValueError(f"a message wants 'role' and 'content', and one is {message}")
        if not self.messages or self.messages[-1]["role"] != "user":
            raise ValueError("the last message of a conversation must be the user's")
        if len({clip.shape for clip in self.media}) > 1:
            raise ValueError(
                "pictures and a video, or videos of several lengths, cannot be media together; ask about one kind"
            )
        tags = sum(m["content"].count(IMAGE_TAG) for m in self.messages if m["role"] == "user")
        if tags != len(self.media):
            raise ValueError(
                f"the messages have {tags} {IMAGE_TAG}, and {len(self.media)} pictures or videos are media"
            )

    @classmethod
    def of(
        cls, media: Sequence[np.ndarray], question: str, history: Sequence[tuple[str, str]] = ()
    ) -> Conversation:
        """A question after (question, answer) turns; what is media stands before the first question."""
        asked = [*(turn[0] for turn in history), question]
        asked[0] = f"{IMAGE_TAG}\n" * len(media) + asked[0]
        messages = [{"role": "user", "content": asked[0]}]
        for (_, answer), following in zip(history, asked[1:], strict=True):
            messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": following})
        return cls(tuple(messages), tuple(media))


def ask(
    tokenizer: Tokenizer,
    conversation: Conversation,
    grids: Sequence[Grid],
    usual: str = "chat",
    template: str | None = None,
) -> TokenSequence:
    """The tokens that the assistant's answer follows.

    Args:
      tokenizer: text to ids.
      conversation: what was said.
      grids: latent extents of what is media.
      usual: the template that the model was trained with. 'plain', `<bos> <boi> [span] <eoi> question`, has one thing
        media and one question; any other conversation takes the chat template.
      template: another one, which must fit.

    Raises:
      ValueError: an unknown template, or 'plain' for a conversation that is not of that form.
    """
    if (template or usual) not in TEMPLATES:
        raise ValueError(f"unknown template {template or usual!r}; choose chat or plain")
    content = conversation.messages[0]["content"]
    fits = len(conversation.messages) == len(grids) == 1 and content.startswith(IMAGE_TAG)
    if template == "plain" and not fits:
        raise ValueError(
            "the plain template has one picture or video followed by one question; use the chat template"
        )
    if (template or usual) == "plain" and fits:
        question = content.removeprefix(IMAGE_TAG).removeprefix("\n")
        return understanding_prompt(tokenizer.special, tokenizer.encode(question), grids[0])
    segments = tokenizer.chat(conversation.messages, grids=grids, answer=True)
    return build(segments, tokenizer.special)
