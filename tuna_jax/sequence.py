"""The unified sequence: segments -> tokens, labels and spans (host side, NumPy; model.md sections 5 and 8).

A visual slot is a *span*: one time token followed by `frames * height * width` image tokens. `(offset, length)`
describes it: the offset is the position of the time token, and the length includes it. An unused slot is `(-1, -1)`.

    text to image    <bos> text <boi> [time][img]*n <eoi> <eos>
    understanding    <bos> <boi> [time][img]*n <eoi> prompt response <eos>
    editing          <bos> <boi> [time][src]*n <eoi> instruction <boi> [time][dst]*n <eoi> <eos>
                     with several sources, each in its <boi> ... <eoi>
    image to video   <bos> <boi> [time][img]*m <eoi> caption <boi> [time][img]*n <eoi> <eos>

The first frame that image to video is given is a span of one latent frame (m tokens); that of the clip has all (n).
Slots of a batch have one shape, so its latents are those of a clip, of which only the first frame is in the span.

A label has the position of its token (the loss shifts); `IGNORE` marks a token without text loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int32

IGNORE = -100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Special:
    """Ids of the special tokens."""

    bos: int
    eos: int
    boi: int
    eoi: int
    image_pad: int
    pad: int


@dataclasses.dataclass(frozen=True)
class Grid:
    """Latent extent of a visual slot: latent frames, height and width."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of image tokens of the slot, without its time token."""
        return self.frames * self.height * self.width


@dataclasses.dataclass(frozen=True)
class Text:
    """A segment of token ids; the text loss covers them if `learn` is set."""

    ids: tuple[int, ...]
    learn: bool = False


@dataclasses.dataclass(frozen=True)
class Visual:
    """A segment of latents, clean inputs unless `target` is set: then they are noised and have the flow loss."""

    grid: Grid
    target: bool = False


Segment = Text | Visual


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """The sequence of one example, without padding.

    Attributes:
      tokens: token ids; the positions of a span have the id `image_pad`.
      labels: token ids, or `IGNORE`.
      spans: `(offset, length)` of every visual slot, in order.
      is_target: whether each slot is generated.
    """

    tokens: Int32[np.ndarray, " l"]
    labels: Int32[np.ndarray, " l"]
    spans: Int32[np.ndarray, "n 2"]
    is_target: Bool[np.ndarray, " n"]


def build(segments: Iterable[Segment], special: Special) -> TokenSequence:
    """Concatenates segments; nothing is added between them."""
    tokens: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    spans: list[tuple[int, int]] = []
    targets: list[bool] = []
    end = 0
    for segment in segments:
        if isinstance(segment, Visual):
            length = 1 + segment.grid.tokens
            spans.append((end, length))
            targets.append(segment.target)
            ids, learn = np.full(length, special.image_pad, np.int32), False
        else:
            ids, learn = np.asarray(segment.ids, np.int32), segment.learn
        tokens.append(ids)
        labels.append(ids if learn else np.full(len(ids), IGNORE, np.int32))
        end += len(ids)
    return TokenSequence(
        np.concatenate(tokens) if tokens else np.zeros(0, np.int32),
        np.concatenate(labels) if labels else np.zeros(0, np.int32),
        np.asarray(spans, np.int32).reshape(-1, 2),
        np.asarray(targets, bool),
    )


def text_to_image(special: Special, prompt_ids: Sequence[int], grid: Grid) -> TokenSequence:
    """`<bos> text <boi> [time][img]*n <eoi> <eos>`; an empty prompt is the negative branch of guidance."""
    return build(
        [
            Text((special.bos, *prompt_ids, special.boi)),
            Visual(grid, target=True),
            Text((special.eoi, special.eos)),
        ],
        special,
    )


def generation_prompt(special: Special, prompt_ids: Sequence[int]) -> TokenSequence:
    """`text_to_image` before the image: what sampling starts from."""
    return build([Text((special.bos, *prompt_ids, special.boi))], special)


def understanding(
    special: Special, prompt_ids: Sequence[int], response_ids: Sequence[int], grid: Grid
) -> TokenSequence:
    """`<bos> <boi> [time][img]*n <eoi> prompt response <eos>`; the loss covers the response and `<eos>`."""
    return build(
        [
            Text((special.bos, special.boi)),
            Visual(grid),
            Text((special.eoi, *prompt_ids)),
            Text((*response_ids, special.eos), learn=True),
        ],
        special,
    )


def understanding_prompt(special: Special, prompt_ids: Sequence[int], grid: Grid) -> TokenSequence:
    """`understanding` before the response: what decoding starts from."""
    return build(
        [Text((special.bos, special.boi)), Visual(grid), Text((special.eoi, *prompt_ids))], special
    )


def first_frame(grid: Grid) -> Grid:
    """The extent of the first latent frame of a clip."""
    return Grid(1, grid.height, grid.width)


def _given(special: Special, sources: Sequence[Grid], text_ids: Sequence[int]) -> list[Segment]:
    """`<bos>`, the sources as clean inputs, each in `<boi> ... <eoi>`, the text, and the `<boi>` of what follows."""
    segments: list[Segment] = []
    before: tuple[int, ...] = (special.bos,)
    for grid in sources:
        segments += [Text((*before, special.boi)), Visual(grid)]
        before = (special.eoi,)
    return [*segments, Text((*before, *text_ids, special.boi))]


def _generated(special: Special, grid: Grid) -> list[Segment]:
    return [Visual(grid, target=True), Text((special.eoi, special.eos))]


def editing(
    special: Special, instruction_ids: Sequence[int], grid: Grid, sources: int = 1
) -> TokenSequence:
    """`<bos> <boi> [time][src]*n <eoi> instruction <boi> [time][dst]*n <eoi> <eos>`; only dst is generated.

    Several `sources` follow each other, each in its `<boi> ... <eoi>`.
    """
    given = _given(special, [grid] * sources, instruction_ids)
    return build([*given, *_generated(special, grid)], special)


def editing_prompt(
    special: Special, instruction_ids: Sequence[int], grid: Grid, sources: int = 1
) -> TokenSequence:
    """`editing` before the new image; the negative branch of guidance has the sources too."""
    return build(_given(special, [grid] * sources, instruction_ids), special)


def image_to_video(special: Special, caption_ids: Sequence[int], grid: Grid) -> TokenSequence:
    """`<bos> <boi> [time][img]*m <eoi> caption <boi> [time][img]*n <eoi> <eos>`: the first frame is given, and all n
    tokens of the clip, whose extent is `grid`, are generated."""
    given = _given(special, [first_frame(grid)], caption_ids)
    return build([*given, *_generated(special, grid)], special)


def image_to_video_prompt(
    special: Special, caption_ids: Sequence[int], grid: Grid
) -> TokenSequence:
    """`image_to_video` before the clip, whose extent is `grid`; the negative branch of guidance has the frame too."""
    return build(_given(special, [first_frame(grid)], caption_ids), special)


def text_only(turns: Iterable[Text], special: Special) -> TokenSequence:
    """A chat without images; the caller marks the assistant's turns with `learn`."""
    return build(turns, special)


def check_spans(
    spans: Int32[np.ndarray, "n 2"], length: int, grid: Grid | None = None, where: str = "spans"
) -> None:
    """Checks the visual slots of a sequence.

    Args:
      spans: `(offset, length)` of each slot; `(-1, -1)` is unused.
      length: tokens of the sequence.
      grid: latent extent that every used slot must have; None: any.
      where: what `spans` is, for the error message.

    Raises:
      ValueError: a span overlaps another, leaves the sequence, or does not have the grid's length; the span is named.
    """
    used: list[tuple[int, int, int]] = []
    for index, (offset, size) in enumerate(np.asarray(spans).tolist()):
        if (offset, size) == (-1, -1):
            continue
        name = f"{where}[{index}] = (offset {offset}, length {size})"
        if offset < 0 or size < 2 or offset + size > length:
            raise ValueError(
                f"{name} leaves the sequence of {length} tokens; a span has a length of at least 2 (a time token and "
                f"one image token) within it, an unused slot is (-1, -1)"
            )
        if grid is not None and size != 1 + grid.tokens:
            raise ValueError(
                f"{name} does not fit latents of {grid.frames}x{grid.height}x{grid.width}; its length must be "
                f"1 + {grid.tokens} = {1 + grid.tokens}"
            )
        for other, start, end in used:
            if offset < end and start < offset + size:
                raise ValueError(
                    f"{name} overlaps {where}[{other}] = (offset {start}, length {end - start})"
                )
        used.append((index, offset, offset + size))


def stack(
    sequences: Sequence[TokenSequence], length: int, slots: int, special: Special
) -> dict[str, np.ndarray]:
    """Pads sequences to one length and one number of slots.

    Args:
      sequences: B sequences.
      length: S, tokens per row.
      slots: N, visual slots per row.
      special: special token ids; the pad id is used.

    Returns:
      `tokens` int32 [B, S], `labels` int32 [B, S], `spans` int32 [B, N, 2], `is_target` bool [B, N], `lengths` int32
      [B].

    Raises:
      ValueError: a sequence or its slots do not fit, or a span is invalid; the row and what would fit are named.
    """
    rows = len(sequences)
    batch = {
        "tokens": np.full((rows, length), special.pad, np.int32),
        "labels": np.full((rows, length), IGNORE, np.int32),
        "spans": np.full((rows, slots, 2), -1, np.int32),
        "is_target": np.zeros((rows, slots), bool),
        "lengths": np.asarray([len(s.tokens) for s in sequences], np.int32),
    }
    for row, sequence in enumerate(sequences):
        size, count = len(sequence.tokens), len(sequence.spans)
        if size > length:
            visual = int(sequence.spans[:, 1].sum())
            raise ValueError(
                f"row {row}: {size} tokens ({visual} of them visual) exceed the sequence length {length}; "
                f"shorten the text by {size - length} tokens or raise the sequence length to {size}"
            )
        if count > slots:
            raise ValueError(f"row {row}: {count} visual slots exceed the batch's {slots}")
        check_spans(sequence.spans, length, where=f"row {row} spans")
        batch["tokens"][row, :size] = sequence.tokens
        batch["labels"][row, :size] = sequence.labels
        batch["spans"][row, :count] = sequence.spans
        batch["is_target"][row, :count] = sequence.is_target
    return batch
