"""The scan: the metadata of a source's examples, which bucketing needs, read once and kept in an index.

`scan` reads each example once, from headers (of a video, the first frame) and text, or takes what its row says of its
size and tokens. All processes and hosts that see the folder of the index divide the chunks of a source among them, and
one that is killed loses its chunk only. Training may begin on the first examples.

Files that were missing or unreadable at the scan may be there at the next start, so a new run looks at those again.
What changed is stored under its own version, and a run that resumes names the version that it began with: its batches
do not change.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tuna_jax.data.claims import Claims
from tuna_jax.data.invalid_examples import (
    OF_FILES,
    Fault,
    InvalidExample,
    report_as_invalid,
)
from tuna_jax.data.media.image import SMALLEST_SIDE, Encoded, Medium, Size, image_size
from tuna_jax.data.media.video import video_size
from tuna_jax.data.mixture import scan_index
from tuna_jax.data.mixture.metadata import ExampleMetadata, ExampleNumbers, Result
from tuna_jax.data.mixture.scan_index import ScanIndex
from tuna_jax.data.mixture.tokenize_example import CAPTION_PROMPTS, Task, text_tokens
from tuna_jax.data.sources.base import VIDEO_KINDS, Example, ExampleSource
from tuna_jax.data.sources.stored_index import index_folder, writing
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.utils.atomic_io import cache_directory
from tuna_jax.utils.regular_files import with_retries

_OLD_VERSION = 2  # Of the archives in the folder `facts` of the cache folder, which are taken over.
_AT_A_TIME = 256  # Examples whose results are awaited together.
_PAUSES = (0.1, 2.0)  # Seconds between looks at the chunks of others: the first, and the longest.


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
    index: str = "",
    threads: int = 8,
    version: str | None = None,
    rows: int | None = None,
    chunk_rows: int | None = None,
) -> ExampleMetadata:
    """The metadata of a source's examples, from their index if it is there.

    Args:
        examples: the source.
        task: decides the text of an example.
        tokenizer: counts tokens.
        smallest: the shortest side, in pixels, of a usable image or video.
        directory: see `cache_directory`.
        index: where the index is kept, see `stored_index.index_folder`.
        threads: files that are read at the same time.
        version: of the metadata with which a run began that now resumes; None for a new run, which looks again at
            files that were missing or unreadable.
        rows: the first examples, as many as are needed; None is all of them.
        chunk_rows: examples of a chunk, the same in all processes; None follows from the size of the source.

    Raises:
        OSError: the machine fails (not a file), repeatedly, or the folder of the index cannot be written.
        ValueError: the index is damaged or of other data; it is named.
    """
    rows = len(examples) if rows is None else min(rows, len(examples))
    kept = index_of(
        examples, task, tokenizer, smallest, directory=directory, index=index, chunk_rows=chunk_rows
    )
    old = _old_file(kept.about, directory)
    reader = _Reader(examples, task, tokenizer, smallest, threads)
    metadata = kept.read(rows)
    if metadata is not None:
        with contextlib.suppress(OSError):  # The folder may be read-only.
            kept.remove_parts()  # Of processes that were killed.
    if metadata is None and (before := scan_index.read_old(old, examples)) is not None:
        kept.write(before)
        metadata = kept.read(rows)
    if metadata is None:
        with writing(kept.folder):
            metadata = _scan_chunks(reader, kept, rows)
            kept.remove_parts()
        return metadata
    changes = kept.changes(version, old) if version else {}
    if version is not None and changes is not None:
        return metadata.with_changes(changes, version)
    return _looked_again(metadata, reader, kept)


def index_of(
    examples: ExampleSource,
    task: Task,
    tokenizer: Tokenizer,
    smallest: int = SMALLEST_SIDE,
    *,
    directory: Path | None = None,
    index: str = "",
    chunk_rows: int | None = None,
) -> ScanIndex:
    """Where the index of a scan is, or will be; the arguments are those of `scan`."""
    folder = index_folder(index, getattr(examples, "location", None), directory)
    about = {
        "version": scan_index.VERSION,
        "identity": examples.identity,
        "task": task,
        "vocabulary": fingerprint(tokenizer),
        "smallest": smallest,
        "prompts": CAPTION_PROMPTS,
    }
    chunk_rows = chunk_rows or scan_index.rows_per_chunk(len(examples))
    return ScanIndex(folder, about, examples, chunk_rows)


def _old_file(about: Mapping[str, Any], directory: Path | None) -> Path:
    names = ("identity", "task", "vocabulary", "smallest", "prompts")
    key = json.dumps([_OLD_VERSION, *(about[name] for name in names)])
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return cache_directory(directory) / "facts" / f"{name}.npz"


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

    def read_all(
        self,
        numbers: range,
        pool: concurrent.futures.Executor,
        progress: Callable[[int], object],
    ) -> ExampleMetadata:
        """The metadata of a range of examples, whose invalid ones have their numbers in the source."""
        found = np.zeros((len(numbers), 4), np.int32)
        invalid: dict[int, InvalidExample] = {}
        ignored: dict[str, tuple[int, int]] = {}
        # In parts: the futures of a hundred million examples would not fit into memory.
        for begin in range(0, len(numbers), _AT_A_TIME):
            part = numbers[begin : begin + _AT_A_TIME]
            for index, (result, keys) in zip(part, pool.map(self.read, part), strict=True):
                for name in keys:
                    scan_index.add_ignored(ignored, name, index)
                if isinstance(result, InvalidExample):
                    invalid[index] = result
                else:
                    found[index - numbers.start] = result
            progress(len(part))
        height, width, media, text = np.ascontiguousarray(found.T)
        return ExampleMetadata(height, width, media, text, invalid, ignored)


def _scan_chunks(reader: _Reader, kept: ScanIndex, rows: int) -> ExampleMetadata:
    """Scans the chunks that nobody else scans, waits for the others, and makes the index of all."""
    chunks, claims = kept.chunks(rows), Claims(kept.chunks_folder)
    # The delay hides the bar of a scan that takes a moment.
    bar = tqdm(total=rows, desc=f"scanning {reader.examples.name}", unit="example", delay=3.0)
    pause = _PAUSES[0]
    with bar, concurrent.futures.ThreadPoolExecutor(reader.threads) as pool:
        while True:
            finished = kept.finished() & chunks.keys()
            missing = [name for name in chunks if name not in finished]
            bar.update(max(sum(len(chunks[name]) for name in finished), bar.n) - bar.n)
            if not missing:
                # None: another process has made it, and removed the chunks.
                metadata = kept.merge(rows)
                if metadata is None:
                    metadata = kept.read(rows)
                if metadata is not None:
                    return metadata
                continue
            mine = next((name for name in missing if claims.take(name)), None)
            if mine is None:
                time.sleep(pause)
                pause = min(2 * pause, _PAUSES[1])
            else:
                pause = _PAUSES[0]
            try:
                # Chunks go when the whole is there: look once more, now that they were listed.
                if (metadata := kept.read(rows)) is not None:
                    return metadata
                if mine is not None and mine not in kept.finished():

                    def progress(count: int, mine: str = mine) -> None:
                        claims.renew(mine)
                        bar.update(count)

                    scanned = reader.read_all(chunks[mine], pool, progress)
                    kept.write_chunk(mine, chunks[mine], scanned)
            finally:
                if mine is not None:
                    claims.release(mine)


def _looked_again(metadata: ExampleMetadata, reader: _Reader, kept: ScanIndex) -> ExampleMetadata:
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
    version = kept.write_changes(changes) if changes else ""
    recovered = sum(isinstance(result, ExampleNumbers) for result in results)
    return dataclasses.replace(
        metadata.with_changes(changes, version),
        recovered=recovered,
        still_invalid=len(again) - recovered,
    )
