"""Buckets: rows of like shape, so that a batch has one shape and few shapes exist.

A bucket is a picture size (the nearest by logarithm of the aspect ratio), a number of visual slots, and a
sequence length (the smallest that holds the visual tokens and the text). A row's bucket follows from its
*facts*: its picture's size, how many it has, and its tokens. `scan` looks them up once, from headers (of a
clip, the first frame) and text alone, and keeps them in the cache folder under the manifest's content.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from tuna_jax.data.invalid_examples import Fault, InvalidExample
from tuna_jax.data.media.image import SMALLEST_SIDE, Encoded, Medium, Size, image_size
from tuna_jax.data.media.video import video_size
from tuna_jax.data.mixture.tokenize_example import (
    CAPTION_PROMPTS,
    Task,
    is_cut,
    text_tokens,
)
from tuna_jax.data.sources.base import VIDEO_KINDS, Example, ExampleSource
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import Grid
from tuna_jax.utils.atomic_io import atomic_file, cache_directory

SIZES_512 = (Size(512, 512), Size(448, 576), Size(576, 448), Size(384, 672), Size(672, 384))
SIZES_1024 = tuple(Size(2 * size.height, 2 * size.width) for size in SIZES_512)
FAMILIES = {"512": SIZES_512, "1024": SIZES_1024}
_VERSION = 1  # of what is kept; raise it when `text_tokens` or the facts change
_CHUNK = 256


def named_sizes(text: str) -> tuple[Size, ...]:
    """'384x672' -> that size; '512' and '1024' are TUNA's five of that kind."""
    height, _, width = text.partition("x")
    if text in FAMILIES:
        return FAMILIES[text]
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(
            f"{text!r} is no size; give HEIGHTxWIDTH, for example 512x512, or {' or '.join(FAMILIES)} for TUNA's five"
        )
    return (Size(int(height), int(width)),)


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """What rows of a batch share: picture size, visual slots, tokens."""

    size: Size
    slots: int
    length: int

    def __str__(self) -> str:
        return f"{self.size}, {self.slots} slots, {self.length} tokens"


@dataclasses.dataclass(frozen=True)
class ExampleMetadata:
    """What bucketing needs to know of each row; a bad row's numbers are 0.

    Attributes:
        height, width: pixels of the row's first picture, or of an edit's target; 0 without a picture.
        media: how many pictures or clips.
        text: tokens beside the spans, at most.
        bad: the rows that cannot be used, by their numbers.
    """

    height: Int[np.ndarray, " rows"]
    width: Int[np.ndarray, " rows"]
    media: Int[np.ndarray, " rows"]
    text: Int[np.ndarray, " rows"]
    bad: dict[int, InvalidExample]


def _fingerprint(tokenizer: Tokenizer) -> str:
    """Tells vocabularies apart, by their size and some of their tokens."""
    some = range(0, tokenizer.size, 1 + tokenizer.size // 512)
    text = tokenizer.decode(some, skip_special=False)
    return hashlib.sha256(f"{tokenizer.size} {text}".encode()).hexdigest()[:16]


def picture_size(row: Example, smallest: int = SMALLEST_SIDE) -> Size:
    """The size by which a row is sorted: its first picture's or clip's, or an edit's target's; 0x0 without any.

    Raises:
        Fault: any of them is missing, broken or too small.
    """

    def measure(medium: Medium) -> Size:
        if isinstance(medium, Encoded):
            return medium.size
        return (video_size if row.kind in VIDEO_KINDS else image_size)(medium, smallest=smallest)

    sizes = [measure(medium) for medium in row.media]
    if not sizes:
        return Size(0, 0)
    # An edit's batch has the size of what is drawn.
    return sizes[-1] if row.kind == "edit" else sizes[0]


def _look(rows: ExampleSource, task: Task, tokenizer: Tokenizer, smallest: int, index: int):
    """(height, width, media, text) of a row, or why it is bad."""
    try:
        row = rows[index]
        try:
            text = text_tokens(row, task, tokenizer)
            size = picture_size(row, smallest)
        except Fault as fault:
            return InvalidExample(fault.kind, rows.name, rows.line(index), fault.reason)
    except InvalidExample as bad:
        return bad
    return size.height, size.width, len(row.media), text


def scan(
    rows: ExampleSource,
    task: Task,
    tokenizer: Tokenizer,
    *,
    smallest: int = SMALLEST_SIDE,
    directory: Path | None = None,
    threads: int = 8,
    anew: bool = False,
) -> ExampleMetadata:
    """The facts of all rows, from the cache folder if they are there.

    What is kept stays as it was found, also if a missing file turns up later: a run must not change its
    batches when it resumes. `anew` looks again.

    Args:
        rows: the source.
        task: what is made of them.
        tokenizer: counts tokens.
        smallest: pixels that a side must have.
        directory: see `cache_directory`.
        threads: files that are looked at at once.
        anew: do not take what is kept.
    """
    key = json.dumps(
        [_VERSION, rows.identity, task, _fingerprint(tokenizer), smallest, CAPTION_PROMPTS]
    )
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    kept = cache_directory(directory) / "facts" / f"{name}.npz"
    if kept.is_file() and not anew:
        return _load(kept, rows)
    look = functools.partial(_look, rows, task, tokenizer, smallest)
    numbers = np.zeros((len(rows), 4), np.int32)
    bad: dict[int, InvalidExample] = {}
    # A bar for those who wait: a survey of a moment shows none.
    bar = tqdm(total=len(rows), desc=f"looking at {rows.name}", unit="row", delay=3.0)
    with bar, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # In chunks: the futures of a hundred million rows would not fit.
        for start in range(0, len(rows), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(rows)))
            for index, found in zip(chunk, pool.map(look, chunk), strict=True):
                if isinstance(found, InvalidExample):
                    bad[index] = found
                else:
                    numbers[index] = found
            bar.update(len(chunk))
    height, width, media, text = (np.ascontiguousarray(column) for column in numbers.T)
    facts = ExampleMetadata(height, width, media, text, bad)
    _save(kept, facts)
    return facts


def _save(path: Path, facts: ExampleMetadata) -> None:
    listed = [[index, row.kind, row.reason] for index, row in facts.bad.items()]
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(
            file,
            numbers=np.stack([facts.height, facts.width, facts.media, facts.text]),
            bad=np.frombuffer(json.dumps(listed).encode(), np.uint8),
        )


def _load(path: Path, rows: ExampleSource) -> ExampleMetadata:
    with np.load(path) as kept:
        numbers, listed = kept["numbers"], json.loads(kept["bad"].tobytes())
    bad = {i: InvalidExample(kind, rows.name, rows.line(i), reason) for i, kind, reason in listed}
    height, width, media, text = numbers
    return ExampleMetadata(height, width, media, text, bad)


def nearest(
    height: Int[np.ndarray, " rows"], width: Int[np.ndarray, " rows"], sizes: Sequence[Size]
) -> Int[np.ndarray, " rows"]:
    """Which of the sizes is nearest to each picture, by the logarithm of the aspect ratio.

    Of sizes with the same ratio it is the largest that the picture need not be enlarged for, else the smallest.
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
    facts: ExampleMetadata,
    rows: ExampleSource,
    task: Task,
    *,
    sizes: Sequence[Size],
    slots: Sequence[int],
    lengths: Sequence[int],
    grids: Sequence[Grid],
) -> tuple[list[Bucket], list[Int[np.ndarray, " _"]], list[InvalidExample]]:
    """Sorts rows into buckets.

    Args:
        facts: of the rows.
        rows: the source, for the names of bad rows.
        task: what is made of them.
        sizes: picture sizes.
        slots: numbers of visual slots, ascending.
        lengths: sequence lengths, ascending.
        grids: the latent extent of each size.

    Returns:
        The buckets that have rows, in order; the rows of each, ascending; and the bad rows, with those that
        have too many pictures or tokens.
    """
    usable = np.ones(len(rows), bool)
    usable[list(facts.bad)] = False
    size = nearest(facts.height, facts.width, sizes)
    slot = np.searchsorted(slots, facts.media)
    span = 1 + np.array([grid.tokens for grid in grids])[size]
    visual = facts.media * span
    needed = visual + facts.text
    if is_cut(task):
        needed = np.minimum(needed, np.maximum(lengths[-1], visual + 4))
    length = np.searchsorted(lengths, needed)
    bad = list(facts.bad.values())
    for index in np.flatnonzero(usable & ((slot == len(slots)) | (length == len(lengths)))):
        if slot[index] == len(slots):
            kind = "wrong_image_count"
            why = f"{facts.media[index]} pictures; a row of this stream has at most {slots[-1]}"
        else:
            kind = "too_long"
            why = f"{needed[index]} tokens ({visual[index]} of them visual) exceed the longest length, {lengths[-1]}"
        bad.append(InvalidExample(kind, rows.name, rows.line(int(index)), why))
        usable[index] = False
    code = (size * len(slots) + slot) * len(lengths) + length
    buckets, members = [], []
    for number in np.unique(code[usable]):
        rest, at_length = divmod(int(number), len(lengths))
        at_size, at_slot = divmod(rest, len(slots))
        buckets.append(Bucket(sizes[at_size], slots[at_slot], lengths[at_length]))
        members.append(np.flatnonzero(usable & (code == number)))
    return buckets, members, bad
