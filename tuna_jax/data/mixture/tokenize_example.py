"""An example as a token sequence: the segments that a task makes of it (model.md sections 5, 8 and 11).

    t2i, t2v            <bos> caption <boi> [time][img]*n <eoi> <eos>
    understand          caption: <bos> <boi> [time][img]*n <eoi> prompt caption <eos>, with one of CAPTION_PROMPTS
                        conversation: the chat template, with a span for each <image>
    video_understand    the same for a video
    chat                the chat template without spans
    edit                <bos> <boi> [time][src]*n <eoi> instruction <boi> [time][dst]*n <eoi> <eos>

For classifier-free guidance, the text of what is generated is sometimes left empty (`text_dropout`), and an edit is
sometimes without its source (`source_dropout`): it is then text to image, with the instruction as its text. With both
it is an unconditional image. The two are independent.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

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

# Prompts for a caption, in the plain template.
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
    """An example's sequence, and the images or videos that fill its spans, in order."""

    sequence: TokenSequence
    media: tuple[Medium, ...]


def check_task(example: Example, task: Task) -> None:
    """Raises Fault if the task does not accept this kind of example."""
    if example.kind not in ACCEPTS[task]:
        raise Fault(
            "unknown_format",
            f"the example is {example.kind}; task {task!r} accepts {', '.join(ACCEPTS[task])}",
        )


def caption_prompts(task: Task) -> tuple[str, ...]:
    """The prompts of which one is chosen for each caption."""
    word = "video" if task in VIDEO_TASKS else "image"
    return tuple(prompt.format(word) for prompt in CAPTION_PROMPTS)


@functools.lru_cache(maxsize=8)
def _prompt_ids(tokenizer: Tokenizer, task: Task) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tokenizer.encode(prompt)) for prompt in caption_prompts(task))


def _messages(example: Example) -> list[dict[str, Any]]:
    return [
        {"role": turn.role, "content": turn.text, "learn": turn.learn} for turn in example.turns
    ]


def is_cut(task: Task) -> bool:
    """Whether text that is too long is truncated: captions that condition an image or a video are.

    Other text stays whole (an answer or an instruction without its end means something else), and the example is
    invalid if it does not fit.
    """
    return task in ("t2i", "t2v")


def text_tokens(example: Example, task: Task, tokenizer: Tokenizer) -> int:
    """The largest number of text tokens of an example: without dropout or truncation, with the longest prompt."""
    check_task(example, task)
    if example.turns:
        segments = tokenizer.chat(_messages(example), grids=[Grid(1, 1, 1)] * len(example.media))
        return sum(len(segment.ids) for segment in segments if isinstance(segment, Text))
    text = example.tokens or len(tokenizer.encode(example.text))
    if task == "edit":
        return text + 6  # bos, begin and end of two images, eos.
    if is_cut(task):
        return text + 4
    return text + 4 + max(len(ids) for ids in _prompt_ids(tokenizer, task))


def tokenize_example(
    example: Example,
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
    """The sequence that a task makes of an example.

    Args:
        example: of a kind that the task accepts.
        task: see the module's docstring.
        tokenizer: text to ids.
        grid: latent extent of every span.
        random: decides dropout and prompt.
        longest: the most tokens that the sequence may have; a caption that conditions is truncated to fit.
        text_dropout: probability that the caption or instruction of what is generated is left empty.
        source_dropout: probability that an edit is without its source.
        encode: the tokenizer's `encode`, cached; None calls the tokenizer.

    Raises:
        Fault: the task does not accept the example, or its sequence is too long.
    """
    check_task(example, task)
    encode, special = encode or tokenizer.encode, tokenizer.special
    # Always both, so that one setting does not change the other's random numbers.
    no_text, no_source = random.random() < text_dropout, random.random() < source_dropout
    media = example.media
    if example.turns:
        segments = tokenizer.chat(_messages(example), grids=[grid] * len(media))
        built = sequence.build(segments, special)
    elif task == "edit":
        ids = [] if no_text else encode(example.text)
        if no_source:
            built, media = sequence.text_to_image(special, ids, grid), media[1:]
        else:
            built = sequence.editing(special, ids, grid)
    elif is_cut(task):
        room = longest - (4 + 1 + grid.tokens)
        ids = [] if no_text else encode(example.text)[: max(0, room)]
        built = sequence.text_to_image(special, ids, grid)
    else:
        prompts = _prompt_ids(tokenizer, task)
        prompt = prompts[int(random.integers(len(prompts)))]
        built = sequence.understanding(special, prompt, encode(example.text), grid)
    if len(built.tokens) > longest:
        visual = int(built.spans[:, 1].sum())
        raise Fault(
            "too_long",
            f"{len(built.tokens)} tokens ({visual} of them visual) exceed the longest length, {longest}",
        )
    return TokenizedExample(built, media)
