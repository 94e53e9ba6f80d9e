"""An example as a token sequence: the segments that a task makes of it (model.md sections 5, 8 and 11).

    t2i, t2v            <bos> caption <boi> [time][img]*n <eoi> <eos>
    understand          caption: <bos> <boi> [time][img]*n <eoi> prompt caption <eos>, with one of CAPTION_PROMPTS
                        conversation: the chat template, with a span for each <image>
    video_understand    the same for a video
    chat                the chat template without spans
    edit                <bos> <boi> [time][src]*n <eoi> instruction <boi> [time][dst]*n <eoi> <eos>; of several sources
                        each is in its <boi> ... <eoi>
    i2v                 <bos> <boi> [time][img]*m <eoi> caption <boi> [time][img]*n <eoi> <eos>: the first frame, then
                        the whole clip

In a conversation the user's images are inputs, and the assistant may generate some. A row generates one of them, at its
end; earlier ones are clean inputs, like the user's. So a conversation in which the assistant generates n images has n
rows, and one more if text that is learned follows the last image: `random` chooses among them.

For classifier-free guidance, the text of what is generated is sometimes left empty, and an edit or a clip is sometimes
without its sources: it is then text to image (or to video), with the instruction as its text. With both it is
unconditional. `left_out` says how often.
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
from tuna_jax.data.text.messages import split_at_tags
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import Grid, Text, TokenSequence

Task = Literal["t2i", "understand", "chat", "edit", "video_understand", "t2v", "i2v"]
ACCEPTS: dict[Task, tuple[Kind, ...]] = {
    "t2i": ("image_caption",),
    "understand": ("image_caption", "image_chat"),
    "chat": ("chat",),
    "edit": ("edit",),
    "video_understand": ("video_caption", "video_chat"),
    "t2v": ("video_caption",),
    "i2v": ("video_caption",),
}
VIDEO_TASKS: tuple[Task, ...] = ("video_understand", "t2v", "i2v")
GENERATION_TASKS: tuple[Task, ...] = ("t2i", "edit", "t2v", "i2v")
"""Those that generate an image or a clip, and no text."""

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


def check_dropout(text: float, source: float, both: float | None) -> None:
    """Raises ValueError if one of the probabilities of `left_out` is not one, or three that exclude each other are too
    many; the key is named."""
    values = {"text_dropout": text, "source_dropout": source}
    values |= {} if both is None else {"both_dropout": both}
    for key, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{key} is {value}; it must lie in [0, 1]")
    if both is not None and sum(values.values()) > 1:
        listed = ", ".join(f"{key} {value}" for key, value in values.items())
        raise ValueError(
            f"{listed} are more than 1 together; with both_dropout the three exclude each other"
        )


def left_out(
    random: np.random.Generator, text: float, source: float, both: float | None
) -> tuple[bool, bool]:
    """Whether a row is without its text, and without its sources.

    Args:
        random: gives two numbers.
        text, source, both: without `both`, the probabilities of the one and of the other, which are independent. With
            it the three exclude each other: only the text, only the sources, both.
    """
    # Always two numbers, so that one setting does not change the other's.
    first, second = random.random(), random.random()
    if both is None:
        return first < text, second < source
    no_text, no_source = first < text, text <= first < text + source
    neither = text + source <= first < text + source + both
    return no_text or neither, no_source or neither


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
    return task in ("t2i", "t2v", "i2v")


def added_slots(task: Task) -> int:
    """Visual slots of a row besides one for each image or video of its example: the first frame of `i2v`."""
    return int(task == "i2v")


def least_slots(task: Task) -> int:
    """The smallest number of visual slots of a task's rows."""
    return 2 if task in ("edit", "i2v") else 1


def least_spans(task: Task, grid: Grid) -> int:
    """The smallest number of tokens of the spans of a task's rows; 0 for a task without images."""
    if task == "chat":
        return 0
    before = {"edit": 1 + grid.tokens, "i2v": 1 + sequence.first_frame(grid).tokens}
    return before.get(task, 0) + 1 + grid.tokens


def frame_texts(task: Task, sources: int = 1) -> int:
    """The tokens around spans and text of a row of a caption or an instruction: `<bos>`, `<eos>`, and the begin and end
    of each image."""
    return 4 + 2 * (sources if task in ("edit", "i2v") else 0)


def text_tokens(example: Example, task: Task, tokenizer: Tokenizer) -> int:
    """The largest number of text tokens of an example: without dropout or truncation, with the longest prompt."""
    check_task(example, task)
    if example.turns:
        segments = tokenizer.chat(_messages(example), grids=[Grid(1, 1, 1)] * len(example.media))
        return sum(len(segment.ids) for segment in segments if isinstance(segment, Text))
    text = example.tokens or len(tokenizer.encode(example.text))
    text += frame_texts(task, len(example.media) - 1 if task == "edit" else 1)
    if task in GENERATION_TASKS:
        return text
    return text + max(len(ids) for ids in _prompt_ids(tokenizer, task))


def _rows(example: Example, draws: bool) -> list[int | None]:
    """The rows of a conversation: the number of the image that is generated at the end of each, counted among all its
    images; None is the whole conversation, whose images are clean.

    Raises:
        Fault: the last that is learned is an image, and the stream does not generate images.
    """
    generated: list[int | None] = []
    images, text_follows = 0, False
    for turn in example.turns:
        pieces = [turn.text] if turn.role == "system" else split_at_tags(turn.text)
        learned = turn.role == "assistant" and turn.learn
        for number, piece in enumerate(pieces):
            if number and learned:
                generated.append(images)
                text_follows = False
            images += bool(number)
            text_follows |= learned and bool(piece.strip())
    if generated and not draws:
        if not text_follows:
            raise Fault(
                "assistant_image",
                "the conversation ends in an image by the assistant; set draws=True for its stream to train on it",
            )
        generated = []
    return [*generated, None] if text_follows or not generated else generated


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
    both_dropout: float | None = None,
    draws: bool = True,
    encode: Callable[[str], list[int]] | None = None,
) -> TokenizedExample:
    """The sequence that a task makes of an example.

    Args:
        example: of a kind that the task accepts.
        task: see the module's docstring.
        tokenizer: text to ids.
        grid: latent extent of every span, but for the first frame of `i2v`.
        random: decides dropout, prompt, and which of a conversation's images is generated.
        longest: the most tokens that the sequence may have; a caption that conditions is truncated to fit.
        text_dropout, source_dropout, both_dropout: how often the text and the sources of what is generated are left
            out, see `left_out`.
        draws: whether rows of conversations may draw an image of the assistant's.
        encode: the tokenizer's `encode`, cached; None calls the tokenizer.

    Returns:
        The sequence, with the media of its spans; of `i2v` the clip is there twice, for its first frame and as a whole.

    Raises:
        Fault: the task does not accept the example, its sequence is too long, or it ends in an image that the stream
            does not draw.
    """
    check_task(example, task)
    encode, special = encode or tokenizer.encode, tokenizer.special
    no_text, no_source = left_out(random, text_dropout, source_dropout, both_dropout)
    media = example.media
    if example.turns:
        rows = _rows(example, draws)
        last = rows[int(random.integers(len(rows)))] if len(rows) > 1 else rows[0]
        media = media if last is None else media[: last + 1]
        segments = tokenizer.chat(_messages(example), grids=[grid] * len(example.media), until=last)
        built = sequence.build(segments, special)
    elif task in ("edit", "i2v"):
        ids = encode(example.text)
        if task == "i2v":
            media = media * 2
            room = longest - frame_texts(task) - least_spans(task, grid)
            ids = ids[: max(0, room)]
        ids = [] if no_text else ids
        if no_source:
            built, media = sequence.text_to_image(special, ids, grid), media[-1:]
        elif task == "i2v":
            built = sequence.image_to_video(special, ids, grid)
        else:
            built = sequence.editing(special, ids, grid, sources=len(media) - 1)
    elif is_cut(task):
        room = longest - frame_texts(task) - (1 + grid.tokens)
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
