"""Buckets: examples of similar shape, so that a batch has one shape and there are few shapes.

A bucket is an image size (the nearest by logarithm of the aspect ratio), a number of visual slots, and a sequence
length (the smallest that holds the visual tokens and the text). An example's bucket follows from its metadata
(scan.py): the size and number of its images, and its tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt32

from tuna_jax.data.invalid_examples import InvalidExample
from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.metadata import ExampleMetadata
from tuna_jax.data.mixture.tokenize_example import Task, added_slots, frame_texts, is_cut
from tuna_jax.data.sources.base import ExampleSource
from tuna_jax.data.sources.stored_index import smallest_type
from tuna_jax.sequence import Grid, first_frame

SIZES_512 = (Size(512, 512), Size(448, 576), Size(576, 448), Size(384, 672), Size(672, 384))
SIZES_1024 = tuple(Size(2 * size.height, 2 * size.width) for size in SIZES_512)
FAMILIES = {"512": SIZES_512, "1024": SIZES_1024}
_PART = 1 << 18  # Examples that are looked at together.


def named_sizes(text: str) -> tuple[Size, ...]:
    """'384x672' -> that size; '512' and '1024' are TUNA's five of that kind."""
    height, _, width = text.partition("x")
    if text in FAMILIES:
        return FAMILIES[text]
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(
            f"{text!r} is not a size; give HEIGHTxWIDTH, such as 512x512, or {' or '.join(FAMILIES)} for TUNA's five"
        )
    return (Size(int(height), int(width)),)


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """What the rows of a batch share: image size, visual slots, tokens."""

    size: Size
    slots: int
    length: int

    def __str__(self) -> str:
        return f"{self.size}, {self.slots} slots, {self.length} tokens"


def nearest(
    height: Int[np.ndarray, " examples"], width: Int[np.ndarray, " examples"], sizes: Sequence[Size]
) -> Int[np.ndarray, " examples"]:
    """The index of the size nearest to each image, by the logarithm of the aspect ratio.

    Among sizes of one ratio it is the largest that does not enlarge the image, otherwise the smallest.
    """
    shape = np.array([[size.height, size.width] for size in sizes])
    ratio = np.log(np.maximum(height, 1) / np.maximum(width, 1))
    away = np.abs(ratio[:, None] - np.log(shape[:, 0] / shape[:, 1])[None])
    near = away <= away.min(axis=1, keepdims=True) + 1e-9
    covered = (height[:, None] >= shape[:, 0]) & (width[:, None] >= shape[:, 1])
    area = shape.prod(axis=1)[None]
    cost = np.where(covered, -area, area).astype(float)
    return np.where(near, cost, np.inf).argmin(axis=1)


def assign(
    metadata: ExampleMetadata,
    examples: ExampleSource,
    task: Task,
    *,
    sizes: Sequence[Size],
    slots: Sequence[int],
    lengths: Sequence[int],
    grids: Sequence[Grid],
) -> tuple[list[Bucket], list[UInt32[np.ndarray, " _"]], list[InvalidExample]]:
    """Sorts examples into buckets.

    Args:
        metadata: of the examples.
        examples: the source; names invalid examples.
        task: decides whether long text is truncated.
        sizes: image sizes.
        slots: numbers of visual slots, ascending.
        lengths: sequence lengths, ascending.
        grids: the latent extent of each size.

    Returns:
        The buckets that have examples, in order; the numbers of each one's examples, ascending; and the invalid
        examples, including those with too many images or tokens.
    """
    count = len(sizes) * len(slots) * len(lengths)
    codes = np.full(len(metadata), count, smallest_type(count))  # `count`: it cannot be used.
    invalid = list(metadata.invalid.values())
    usable = _usable(metadata)
    for part, size, visual, text in _parts(metadata, task, sizes, grids):
        slot = np.searchsorted(slots, metadata.media[part].astype(np.int64) + added_slots(task))
        needed = visual + text
        if is_cut(task):
            needed = np.minimum(needed, np.maximum(lengths[-1], visual + frame_texts(task)))
        length = np.searchsorted(lengths, needed)
        fits = (slot < len(slots)) & (length < len(lengths))
        for at in np.flatnonzero(usable[part] & ~fits):
            index = part.start + int(at)
            if slot[at] == len(slots):
                kind = "wrong_image_count"
                reason = f"{metadata.media[index]} images; an example of this stream has at most {slots[-1]}"
                if task == "edit":
                    reason += f", its target among them; add {metadata.media[index]} to its slots"
            else:
                kind = "too_long"
                reason = f"{needed[at]} tokens ({visual[at]} of them visual) exceed the longest length, {lengths[-1]}"
            invalid.append(InvalidExample(kind, examples.name, examples.line(index), reason))
        code = (size * len(slots) + slot) * len(lengths) + length
        codes[part] = np.where(usable[part] & fits, code, count)
    buckets, members = [], []
    for number in np.flatnonzero(np.bincount(codes, minlength=count)[:count]):
        rest, at_length = divmod(int(number), len(lengths))
        at_size, at_slot = divmod(rest, len(slots))
        buckets.append(Bucket(sizes[at_size], slots[at_slot], lengths[at_length]))
        members.append(np.flatnonzero(codes == number).astype(np.uint32))
    return buckets, members, invalid


def _usable(metadata: ExampleMetadata) -> Bool[np.ndarray, " examples"]:
    usable = np.ones(len(metadata), bool)
    usable[list(metadata.invalid)] = False
    return usable


def _parts(
    metadata: ExampleMetadata, task: Task, sizes: Sequence[Size], grids: Sequence[Grid]
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Ranges of the examples, with the index of the size nearest to each, and its visual and text tokens.

    In ranges, because the distances from all sizes take many times the memory of the metadata.
    """
    spans = 1 + np.array([grid.tokens for grid in grids])
    if added_slots(task):  # The first frame.
        spans += 1 + np.array([first_frame(grid).tokens for grid in grids])
    for begin in range(0, len(metadata), _PART):
        part = slice(begin, min(begin + _PART, len(metadata)))
        height, width, media, text = (
            column[part].astype(np.int64)
            for column in (metadata.height, metadata.width, metadata.media, metadata.text)
        )
        size = nearest(height, width, sizes)
        yield part, size, media * spans[size], text


def count_cut(
    metadata: ExampleMetadata,
    task: Task,
    *,
    sizes: Sequence[Size],
    lengths: Sequence[int],
    grids: Sequence[Grid],
) -> int:
    """How many valid examples have a text that does not fit into the longest length and is truncated to it."""
    if not is_cut(task):
        return 0
    usable = _usable(metadata)
    return sum(
        int((usable[part] & (visual + text > lengths[-1])).sum())
        for part, _, visual, text in _parts(metadata, task, sizes, grids)
    )
