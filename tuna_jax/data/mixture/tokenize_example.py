"""A manifest's row as a sequence: which segments a task makes of it (model.md sections 5, 8 and 11).

    t2i, t2v            <bos> caption <boi> [time][img]*n <eoi> <eos>
    understand          caption: <bos> <boi> [time][img]*n <eoi> prompt caption <eos>, the prompt one of ours
                        conversation: the chat template, a span where each <image> stood
    video_understand    the same of a clip
    chat                the chat template without spans
    edit                <bos> <boi> [time][src]*n <eoi> instruction <boi> [time][dst]*n <eoi> <eos>

For guidance, now and then the text of what is generated is left empty (`text_dropout`), and of an edit the
source (`source_dropout`): what is left is text to image, with the instruction as its text. With both, it
is an unconditional picture. The two are drawn independently.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import numpy as np

from tuna_jax import sequence
from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.image import Medium
from tuna_jax.data.sources.base import Example, Kind
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import Grid, Text, TokenSequence

Task = Literal["t2i", "understand", "chat", "edit", "video_understand", "t2v"]
ACCEPTS: dict[Task, tuple[Kind, ...]] = {
    "t2i": ("image_caption",),
    "understand": ("image_caption", "image_chat"),
    "chat": ("chat",),
    "edit": ("edit",),
    "video_understand": ("video_caption", "video_chat"),
    "t2v": ("video_caption",),
}
VIDEO_TASKS: tuple[Task, ...] = ("video_understand", "t2v")

# What is asked for a caption, in the plain form.
CAPTION_PROMPTS = (
    "Describe this {}.",
    "What does this {} show?",
    "Write a caption for this {}.",
    "What do you see in this {}?",
    "Say what is going on in this {}.",
    "Put this {} into words.",
    "Tell somebody who cannot see it what this {} is of.",
    "Please caption the {}.",
)


@dataclasses.dataclass(frozen=True)
class TokenizedExample:
    """A row's sequence, and the pictures or clips that fill its spans, in order."""

    sequence: TokenSequence
    media: tuple[Medium, ...]


def check_task(row: Example, task: Task) -> None:
    """Raises Fault if the task has no use for a row of this kind."""
    if row.kind not in ACCEPTS[task]:
        raise Fault(
            "unknown_format",
            f"the row is {row.kind}; task {task!r} takes {', '.join(ACCEPTS[task])}",
        )


def caption_prompts(task: Task) -> tuple[str, ...]:
    """The prompts from which a caption's is drawn."""
    word = "video" if task in VIDEO_TASKS else "image"
    return tuple(prompt.format(word) for prompt in CAPTION_PROMPTS)


@functools.lru_cache(maxsize=8)
def _prompt_ids(tokenizer: Tokenizer, task: Task) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tokenizer.encode(prompt)) for prompt in caption_prompts(task))


def _messages(row: Example) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in row.turns]


def is_cut(task: Task) -> bool:
    """Whether text that is too long is cut at its last tokens: captions that condition a picture or a clip are.

    Any other text is left whole (an answer or an instruction without its end says something else), and the
    row is bad if it does not fit.
    """
    return task in ("t2i", "t2v")


def text_tokens(row: Example, task: Task, tokenizer: Tokenizer) -> int:
    """The tokens of a row beside its spans, at most: without dropout, with the longest prompt, uncut."""
    check_task(row, task)
    if row.turns:
        segments = tokenizer.chat(_messages(row), grids=[Grid(1, 1, 1)] * len(row.media))
        return sum(len(segment.ids) for segment in segments if isinstance(segment, Text))
    text = len(tokenizer.encode(row.text))
    if task == "edit":
        return text + 6  # bos, and begin and end of two images, and eos
    if is_cut(task):
        return text + 4
    return text + 4 + max(len(ids) for ids in _prompt_ids(tokenizer, task))


def tokenize_example(
    row: Example,
    task: Task,
    tokenizer: Tokenizer,
    grid: Grid,
    random: np.random.Generator,
    *,
    longest: int,
    text_dropout: float = 0.1,
    source_dropout: float = 0.0,
    encode: Callable[[str], list[int]] | None = None,
) -> TokenizedExample:
    """What a task makes of a row.

    Args:
        row: of a kind that the task accepts.
        task: see the top of this file.
        tokenizer: makes the ids.
        grid: latent extent of every span.
        random: draws the dropout and the prompt.
        longest: tokens that the sequence may have; a caption that conditions is cut to fit.
        text_dropout: how often the caption or instruction of what is generated is left empty.
        source_dropout: how often an edit is without its source.
        encode: the tokenizer's, if it remembers.

    Raises:
        Fault: the task has no use for the row, or its sequence is too long.
    """
    check_task(row, task)
    encode, special = encode or tokenizer.encode, tokenizer.special
    # Drawn in every case, so that one setting does not move the other's draws.
    no_text, no_source = random.random() < text_dropout, random.random() < source_dropout
    media = row.media
    if row.turns:
        segments = tokenizer.chat(_messages(row), grids=[grid] * len(media))
        built = sequence.build(segments, special)
    elif task == "edit":
        ids = [] if no_text else encode(row.text)
        if no_source:
            built, media = sequence.text_to_image(special, ids, grid), media[1:]
        else:
            built = sequence.editing(special, ids, grid)
    elif is_cut(task):
        room = longest - (4 + 1 + grid.tokens)
        ids = [] if no_text else encode(row.text)[: max(0, room)]
        built = sequence.text_to_image(special, ids, grid)
    else:
        prompts = _prompt_ids(tokenizer, task)
        prompt = prompts[int(random.integers(len(prompts)))]
        built = sequence.understanding(special, prompt, encode(row.text), grid)
    if len(built.tokens) > longest:
        visual = int(built.spans[:, 1].sum())
        raise Fault(
            "too_long",
            f"{len(built.tokens)} tokens ({visual} of them visual) exceed the longest length, {longest}",
        )
    return TokenizedExample(built, media)
