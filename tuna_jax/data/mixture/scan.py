"""The metadata of a source's examples, which bucketing needs: sizes, numbers of images, tokens, and what is invalid.

`scan` reads each example once, from headers (of a video, the first frame) and text, and keeps the result in the cache
folder under a hash of the source. Files that were missing or unreadable then may be there at the next start, so a new
run looks at those again. What changed is stored under its own version, and a run that resumes names the version that it
began with: its batches do not change.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from tuna_jax.data.invalid_examples import (
    OF_FILES,
    Fault,
    InvalidExample,
    report_as_invalid,
)
from tuna_jax.data.media.image import SMALLEST_SIDE, Encoded, Medium, Size, image_size
from tuna_jax.data.media.video import video_size
from tuna_jax.data.mixture.tokenize_example import CAPTION_PROMPTS, Task, text_tokens
from tuna_jax.data.sources.base import VIDEO_KINDS, Example, ExampleSource
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.utils.atomic_io import atomic_file, cache_directory
from tuna_jax.utils.regular_files import with_retries
from tuna_jax.utils.text_files import read_json

_VERSION = 2  # Of the stored metadata; raise it when `text_tokens` or the metadata change.
_CHUNK = 256
_MOST_KEYS = 200  # Names of ignored keys that are kept, of rows whose keys are data.


class ExampleNumbers(NamedTuple):
    """Height and width in pixels, number of images or videos, and text tokens of a valid example."""

    height: int
    width: int
    media: int
    text: int


@dataclasses.dataclass(frozen=True)
class ExampleMetadata:
    """What bucketing needs to know of each example; the numbers of an invalid one are 0.

    Attributes:
        height, width: pixels of the first image or video, or of an edit's target; 0 without media.
        media: number of images or videos.
        text: the largest number of text tokens.
        invalid: the examples that cannot be used, by their numbers.
        ignored: keys of the examples that have no meaning: (number of examples, the first one's number) of each.
        version: of the metadata, which a run that resumes passes to `scan`.
        recovered, still_invalid: examples whose files an earlier scan found missing or unreadable, and that this one
            looked at again: now valid, and not.
    """

    height: Int[np.ndarray, " examples"]
    width: Int[np.ndarray, " examples"]
    media: Int[np.ndarray, " examples"]
    text: Int[np.ndarray, " examples"]
    invalid: dict[int, InvalidExample]
    ignored: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    version: str = ""
    recovered: int = 0
    still_invalid: int = 0


Result = ExampleNumbers | InvalidExample


def fingerprint(tokenizer: Tokenizer) -> str:
    """Distinguishes vocabularies by their size and a sample of their tokens."""
    sample = range(0, tokenizer.size, 1 + tokenizer.size // 512)
    text = tokenizer.decode(sample, skip_special=False)
    return hashlib.sha256(f"{tokenizer.size} {text}".encode()).hexdigest()[:16]


def picture_size(example: Example, smallest: int = SMALLEST_SIDE) -> Size:
    """The size that decides an example's bucket: of its first image or video, or an edit's target; 0x0 without media.

    Raises:
        Fault: any of them is missing, broken or too small.
    """

    if example.size is not None:
        if min(example.size.height, example.size.width) < smallest:
            raise Fault(
                "tiny_image",
                f"its row says {example.size} pixels; each side needs at least {smallest}",
            )
        return example.size
    sizes = [_size_of(medium, example.kind, smallest) for medium in example.media]
    if not sizes:
        return Size(0, 0)
    # An edit's batch has the size of the generated image.
    return sizes[-1] if example.kind == "edit" else sizes[0]


def _size_of(medium: Medium, kind: str, smallest: int) -> Size:
    if isinstance(medium, Encoded):
        return medium.size
    return (video_size if kind in VIDEO_KINDS else image_size)(medium, smallest=smallest)


def scan(
    examples: ExampleSource,
    task: Task,
    tokenizer: Tokenizer,
    *,
    smallest: int = SMALLEST_SIDE,
    directory: Path | None = None,
    threads: int = 8,
    version: str | None = None,
) -> ExampleMetadata:
    """The metadata of all examples, from the cache folder if it is there.

    Args:
        examples: the source.
        task: decides the text of an example.
        tokenizer: counts tokens.
        smallest: the shortest side, in pixels, of a usable image or video.
        directory: see `cache_directory`.
        threads: files that are read at the same time.
        version: of the metadata with which a run began that now resumes; None for a new run, which looks again at
            files that were missing or unreadable.

    Raises:
        OSError: the machine fails (not a file), repeatedly.
    """
    key = json.dumps(
        [_VERSION, examples.identity, task, fingerprint(tokenizer), smallest, CAPTION_PROMPTS]
    )
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    stored = cache_directory(directory) / "facts" / f"{name}.npz"
    reader = _Reader(examples, task, tokenizer, smallest, threads)
    if not stored.is_file():
        metadata = _scan_all(reader)
        _save(stored, metadata)
        return metadata
    metadata = _load(stored, examples)
    changes = _stored_changes(stored, version, examples) if version else {}
    if version is not None and changes is not None:
        return _with_changes(metadata, changes, version)
    return _looked_again(metadata, reader, stored)


@dataclasses.dataclass
class _Reader:
    """Reads examples of a source for a scan, in several threads."""

    examples: ExampleSource
    task: Task
    tokenizer: Tokenizer
    smallest: int
    threads: int

    def read(self, index: int) -> tuple[Result, tuple[str, ...]]:
        """An example's numbers, or why it is invalid; and its ignored keys."""
        return with_retries(functools.partial(self._read, index))

    def _read(self, index: int) -> tuple[Result, tuple[str, ...]]:
        ignored: tuple[str, ...] = ()
        try:
            example = getattr(self.examples, "outline", self.examples.__getitem__)(index)
            ignored = example.ignored
            with report_as_invalid(self.examples.name, self.examples.line(index)):
                text = text_tokens(example, self.task, self.tokenizer)
                size = picture_size(example, self.smallest)
        except InvalidExample as invalid:
            return invalid, ignored
        return ExampleNumbers(size.height, size.width, len(example.media), text), ignored


def _scan_all(reader: _Reader) -> ExampleMetadata:
    examples = reader.examples
    numbers = np.zeros((len(examples), 4), np.int32)
    invalid: dict[int, InvalidExample] = {}
    ignored: dict[str, tuple[int, int]] = {}
    # The delay hides the bar of a scan that takes a moment.
    bar = tqdm(total=len(examples), desc=f"scanning {examples.name}", unit="example", delay=3.0)
    with bar, concurrent.futures.ThreadPoolExecutor(reader.threads) as pool:
        # In chunks: the futures of a hundred million examples would not fit into memory.
        for start in range(0, len(examples), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(examples)))
            for index, (result, keys) in zip(chunk, pool.map(reader.read, chunk), strict=True):
                for name in keys:
                    if name in ignored or len(ignored) < _MOST_KEYS:
                        count, first = ignored.get(name, (0, index))
                        ignored[name] = count + 1, first
                if isinstance(result, InvalidExample):
                    invalid[index] = result
                else:
                    numbers[index] = result
            bar.update(len(chunk))
    height, width, media, text = (np.ascontiguousarray(column) for column in numbers.T)
    return ExampleMetadata(height, width, media, text, invalid, ignored)


def _looked_again(metadata: ExampleMetadata, reader: _Reader, stored: Path) -> ExampleMetadata:
    """The metadata after another look at the files that were missing or unreadable; what changed is stored."""
    again = [index for index, example in metadata.invalid.items() if example.kind in OF_FILES]
    if not again:
        return metadata
    with concurrent.futures.ThreadPoolExecutor(reader.threads) as pool:
        results = [result for result, _ in pool.map(reader.read, again)]
    changes = {
        index: result
        for index, result in zip(again, results, strict=True)
        if not isinstance(result, InvalidExample) or result.kind != metadata.invalid[index].kind
    }
    version = _save_changes(stored, changes) if changes else ""
    recovered = sum(isinstance(result, ExampleNumbers) for result in results)
    return dataclasses.replace(
        _with_changes(metadata, changes, version),
        recovered=recovered,
        still_invalid=len(again) - recovered,
    )


def _with_changes(
    metadata: ExampleMetadata, changes: Mapping[int, Result], version: str
) -> ExampleMetadata:
    invalid = dict(metadata.invalid)
    columns = [metadata.height, metadata.width, metadata.media, metadata.text]
    height, width, media, text = (column.copy() for column in columns)
    for index, result in changes.items():
        if isinstance(result, InvalidExample):
            invalid[index] = result
        else:
            del invalid[index]
            height[index], width[index], media[index], text[index] = result
    return dataclasses.replace(
        metadata,
        height=height,
        width=width,
        media=media,
        text=text,
        invalid=invalid,
        version=version,
    )


def _save(path: Path, metadata: ExampleMetadata) -> None:
    listed = [[index, example.kind, example.reason] for index, example in metadata.invalid.items()]
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        np.savez_compressed(
            file,
            numbers=np.stack([metadata.height, metadata.width, metadata.media, metadata.text]),
            bad=np.frombuffer(json.dumps(listed).encode(), np.uint8),
            ignored=np.frombuffer(json.dumps(metadata.ignored).encode(), np.uint8),
        )


def _load(path: Path, examples: ExampleSource) -> ExampleMetadata:
    with np.load(path) as kept:
        numbers, listed = kept["numbers"], json.loads(kept["bad"].tobytes())
        ignored = json.loads(kept["ignored"].tobytes())
    invalid = {
        i: InvalidExample(kind, examples.name, examples.line(i), reason)
        for i, kind, reason in listed
    }
    height, width, media, text = numbers
    ignored = {key: (count, first) for key, (count, first) in ignored.items()}
    return ExampleMetadata(height, width, media, text, invalid, ignored)


def _save_changes(stored: Path, changes: Mapping[int, Result]) -> str:
    """Stores what another look changed, next to the metadata; returns its version."""
    text = json.dumps(
        [
            [index, result.kind, result.reason]
            if isinstance(result, InvalidExample)
            else [index, *map(int, result)]
            for index, result in changes.items()
        ]
    )
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    with atomic_file(_changes_file(stored, version)) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return version


def _stored_changes(
    stored: Path, version: str, examples: ExampleSource
) -> dict[int, Result] | None:
    """What another look had changed; None if that is not in the cache folder any more."""
    path = _changes_file(stored, version)
    if not path.is_file():
        return None
    return {
        index: InvalidExample(values[0], examples.name, examples.line(index), values[1])
        if isinstance(values[0], str)
        else ExampleNumbers(*values)
        for index, *values in read_json(path)
    }


def _changes_file(stored: Path, version: str) -> Path:
    return stored.with_name(f"{stored.stem}-{version}.json")
