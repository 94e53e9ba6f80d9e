"""Buckets: examples of similar shape, so that a batch has one shape and there are few shapes.

A bucket is an image size (the nearest by logarithm of the aspect ratio), a number of visual slots, and a sequence
length (the smallest that holds the visual tokens and the text). An example's bucket follows from its metadata: the size
and number of its images, and its tokens. `scan` reads them once, from headers (of a video, the first frame) and text,
and keeps them in the cache folder under a hash of the source.
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
_VERSION = 2  # Of the stored metadata; raise it when `text_tokens` or the metadata change.
_CHUNK = 256


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


@dataclasses.dataclass(frozen=True)
class ExampleMetadata:
    """What bucketing needs to know of each example; the numbers of an invalid one are 0.

    Attributes:
        height, width: pixels of the first image or video, or of an edit's target; 0 without media.
        media: number of images or videos.
        text: the largest number of text tokens.
        invalid: the examples that cannot be used, by their numbers.
    """

    height: Int[np.ndarray, " examples"]
    width: Int[np.ndarray, " examples"]
    media: Int[np.ndarray, " examples"]
    text: Int[np.ndarray, " examples"]
    invalid: dict[int, InvalidExample]


def _fingerprint(tokenizer: Tokenizer) -> str:
    """Distinguishes vocabularies by their size and a sample of their tokens."""
    sample = range(0, tokenizer.size, 1 + tokenizer.size // 512)
    text = tokenizer.decode(sample, skip_special=False)
    return hashlib.sha256(f"{tokenizer.size} {text}".encode()).hexdigest()[:16]


def picture_size(example: Example, smallest: int = SMALLEST_SIDE) -> Size:
    """The size that decides an example's bucket: of its first image or video, or an edit's target; 0x0 without media.

    Raises:
        Fault: any of them is missing, broken or too small.
    """

    def measure(medium: Medium) -> Size:
        if isinstance(medium, Encoded):
            return medium.size
        return (video_size if example.kind in VIDEO_KINDS else image_size)(
            medium, smallest=smallest
        )

    sizes = [measure(medium) for medium in example.media]
    if not sizes:
        return Size(0, 0)
    # An edit's batch has the size of the generated image.
    return sizes[-1] if example.kind == "edit" else sizes[0]


def _read_metadata(
    examples: ExampleSource, task: Task, tokenizer: Tokenizer, smallest: int, index: int
):
    """(height, width, media, text) of an example, or why it is invalid."""
    try:
        example = examples[index]
        try:
            text = text_tokens(example, task, tokenizer)
            size = picture_size(example, smallest)
        except Fault as fault:
            return InvalidExample(fault.kind, examples.name, examples.line(index), fault.reason)
    except InvalidExample as invalid:
        return invalid
    return size.height, size.width, len(example.media), text


def scan(
    examples: ExampleSource,
    task: Task,
    tokenizer: Tokenizer,
    *,
    smallest: int = SMALLEST_SIDE,
    directory: Path | None = None,
    threads: int = 8,
    rescan: bool = False,
) -> ExampleMetadata:
    """The metadata of all examples, from the cache folder if it is there.

    Stored metadata does not change, even if a missing file appears later: a run must not change its batches when it
    resumes. `rescan` reads everything again.

    Args:
        examples: the source.
        task: decides the text of an example.
        tokenizer: counts tokens.
        smallest: the shortest side, in pixels, of a usable image or video.
        directory: see `cache_directory`.
        threads: files that are read at the same time.
        rescan: ignore stored metadata.
    """
    key = json.dumps(
        [_VERSION, examples.identity, task, _fingerprint(tokenizer), smallest, CAPTION_PROMPTS]
    )
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    kept = cache_directory(directory) / "facts" / f"{name}.npz"
    if kept.is_file() and not rescan:
        return _load(kept, examples)
    read = functools.partial(_read_metadata, examples, task, tokenizer, smallest)
    numbers = np.zeros((len(examples), 4), np.int32)
    invalid: dict[int, InvalidExample] = {}
    # The delay hides the bar of a scan that takes a moment.
    bar = tqdm(total=len(examples), desc=f"scanning {examples.name}", unit="example", delay=3.0)
    with bar, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        # In chunks: the futures of a hundred million examples would not fit into memory.
        for start in range(0, len(examples), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(examples)))
            for index, result in zip(chunk, pool.map(read, chunk), strict=True):
                if isinstance(result, InvalidExample):
                    invalid[index] = result
                else:
                    numbers[index] = result
            bar.update(len(chunk))
    height, width, media, text = (np.ascontiguousarray(column) for column in numbers.T)
    metadata = ExampleMetadata(height, width, media, text, invalid)
    _save(kept, metadata)
    return metadata


def _save(path: Path, metadata: ExampleMetadata) -> None:
    listed = [[index, example.kind, example.reason] for index, example in metadata.invalid.items()]
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(
            file,
            numbers=np.stack([metadata.height, metadata.width, metadata.media, metadata.text]),
            bad=np.frombuffer(json.dumps(listed).encode(), np.uint8),
        )


def _load(path: Path, examples: ExampleSource) -> ExampleMetadata:
    with np.load(path) as kept:
        numbers, listed = kept["numbers"], json.loads(kept["bad"].tobytes())
    invalid = {
        i: InvalidExample(kind, examples.name, examples.line(i), reason)
        for i, kind, reason in listed
    }
    height, width, media, text = numbers
    return ExampleMetadata(height, width, media, text, invalid)


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
