"""Buckets: examples of similar shape, so that a batch has one shape and there are few shapes.

A bucket is an image size (the nearest by logarithm of the aspect ratio), a number of visual slots, and a sequence
length (the smallest that holds the visual tokens and the text). An example's bucket follows from its metadata
(scan.py): the size and number of its images, and its tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from tuna_jax.data.invalid_examples import InvalidExample
from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.scan import ExampleMetadata
from tuna_jax.data.mixture.tokenize_example import Task, is_cut
from tuna_jax.data.sources.base import ExampleSource
from tuna_jax.sequence import Grid

SIZES_512 = (Size(512, 512), Size(448, 576), Size(576, 448), Size(384, 672), Size(672, 384))
SIZES_1024 = tuple(Size(2 * size.height, 2 * size.width) for size in SIZES_512)
FAMILIES = {"512": SIZES_512, "1024": SIZES_1024}


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
) -> tuple[list[Bucket], list[Int[np.ndarray, " _"]], list[InvalidExample]]:
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
    usable = np.ones(len(examples), bool)
    usable[list(metadata.invalid)] = False
    size = nearest(metadata.height, metadata.width, sizes)
    slot = np.searchsorted(slots, metadata.media)
    span = 1 + np.array([grid.tokens for grid in grids])[size]
    visual = metadata.media * span
    needed = visual + metadata.text
    if is_cut(task):
        needed = np.minimum(needed, np.maximum(lengths[-1], visual + 4))
    length = np.searchsorted(lengths, needed)
    invalid = list(metadata.invalid.values())
    for index in np.flatnonzero(usable & ((slot == len(slots)) | (length == len(lengths)))):
        if slot[index] == len(slots):
            kind = "wrong_image_count"
            reason = (
                f"{metadata.media[index]} images; an example of this stream has at most {slots[-1]}"
            )
        else:
            kind = "too_long"
            reason = f"{needed[index]} tokens ({visual[index]} of them visual) exceed the longest length, {lengths[-1]}"
        invalid.append(InvalidExample(kind, examples.name, examples.line(int(index)), reason))
        usable[index] = False
    code = (size * len(slots) + slot) * len(lengths) + length
    buckets, members = [], []
    for number in np.unique(code[usable]):
        rest, at_length = divmod(int(number), len(lengths))
        at_size, at_slot = divmod(rest, len(slots))
        buckets.append(Bucket(sizes[at_size], slots[at_slot], lengths[at_length]))
        members.append(np.flatnonzero(usable & (code == number)))
    return buckets, members, invalid


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
    usable = np.ones(len(metadata.text), bool)
    usable[list(metadata.invalid)] = False
    span = 1 + np.array([grid.tokens for grid in grids])
    visual = metadata.media * span[nearest(metadata.height, metadata.width, sizes)]
    return int((usable & (visual + metadata.text > lengths[-1])).sum())
