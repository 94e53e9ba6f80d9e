"""Any source of examples as ArrayRecord files, in shards that hosts share and that resume.

`shard_writing.py` says who writes which. Images and videos are stored as their files are, byte for byte.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from tuna_jax.data.invalid_examples import (
    Fault,
    InvalidExample,
    InvalidExamples,
    report_as_invalid,
)
from tuna_jax.data.media.image import SMALLEST_SIDE, Encoded, Medium, open_medium
from tuna_jax.data.mixture.scan import picture_size
from tuna_jax.data.shard_writing import (
    check_process,
    shard_count,
    write_settings,
    write_shards,
)
from tuna_jax.data.sources.array_record import SETTINGS_FILE
from tuna_jax.data.sources.base import VIDEO_KINDS, Example, ExampleSource
from tuna_jax.data.sources.records import pack
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.regular_files import with_retries

_OPTIONS = "group_size:1,uncompressed"  # Media do not compress, and examples are read one by one.
_CHUNK = 64


def convert(
    source: ExampleSource,
    folder: Path,
    *,
    shard_rows: int = 4096,
    smallest: int = SMALLEST_SIDE,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
    invalid_examples: InvalidExamples | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Writes those of this host's shards that do not exist yet.

    Shards with examples whose files were missing or unreadable, and can be read now, are written again.

    Args:
        source: the examples.
        folder: of the shards; all hosts write into the same.
        shard_rows: examples of the source per shard.
        smallest: the shortest side, in pixels, of a usable image or video.
        process_index, process_count: this host, and the number of hosts.
        threads: files that are read at the same time.
        invalid_examples: lists invalid examples, and stops when there are too many.
        progress: whether to show a bar.

    Returns:
        The number of examples written by this call ('rows'), and of invalid examples by kind.

    Raises:
        ValueError: the folder holds another source, or other settings.
        TooManyInvalidExamples: more examples than `invalid_examples` allows cannot be used.
    """
    check_process(process_index, process_count)
    if shard_rows < 1:
        raise ValueError(f"shard_rows is {shard_rows}; it must be at least 1")
    settings = {
        "source": source.name,
        "identity": source.identity,
        "shards": shard_count(source, shard_rows),
        "shard_rows": shard_rows,
        "smallest": smallest,
    }
    holds = "records of another source or other settings"
    write_settings(folder / SETTINGS_FILE, settings, holds, ignored=("source",))
    return write_shards(
        source,
        folder,
        _ShardRecords(source, smallest),
        shard_rows=shard_rows,
        process_index=process_index,
        process_count=process_count,
        threads=threads,
        invalid_examples=invalid_examples,
        progress="converting" if progress else "",
    )


@dataclasses.dataclass(frozen=True)
class _ShardRecords:
    """The examples of a source as records (`shard_writing.ShardContent`)."""

    source: ExampleSource
    smallest: int

    def write(
        self,
        file: Path,
        numbers: range,
        pool: concurrent.futures.Executor,
        done: Callable[[int], object],
    ) -> tuple[dict[str, Any], list[InvalidExample]]:
        """See `ShardContent`."""
        bad: list[InvalidExample] = []
        rows = 0
        with atomic_file(file) as scratch:
            writer = ArrayRecordWriter(str(scratch), _OPTIONS)
            try:
                for begin in range(0, len(numbers), _CHUNK):
                    chunk = numbers[begin : begin + _CHUNK]
                    for result in pool.map(self._stored, chunk):
                        if isinstance(result, InvalidExample):
                            bad.append(result)
                            continue
                        for record in result:
                            writer.write(record)
                        rows += 1
                    done(len(chunk))
            finally:
                writer.close()
        return {"rows": rows}, bad

    def is_usable(self, number: int) -> bool:
        """See `ShardContent`."""
        return not isinstance(_records(self.source, number, self.smallest), InvalidExample)

    def _stored(self, number: int) -> tuple[bytes, bytes] | InvalidExample:
        return with_retries(lambda: _records(self.source, number, self.smallest))


def _records(
    source: ExampleSource, number: int, smallest: int
) -> tuple[bytes, bytes] | InvalidExample:
    try:
        example = source[number]
        with report_as_invalid(source.name, source.line(number)):
            size = picture_size(example, smallest)
            return pack(row_of(example), (size.height, size.width) if example.media else None)
    except InvalidExample as invalid:
        return invalid


def row_of(example: Example) -> dict[str, Any]:
    """An example as a row of the formats, with the bytes of its images or its video.

    Raises:
        Fault: a file cannot be read, or a video is a folder of frames.
    """
    video = example.kind in VIDEO_KINDS
    media = [_bytes_of(medium, video) for medium in example.media]
    if example.kind == "edit":
        *sources, target = media
        raw = sources[0] if len(sources) == 1 else sources
        return {"raw_image": raw, "out_image": target, "instruction": example.text}
    row: dict[str, Any] = {}
    if media:
        row["video" if video else "image"] = media[0] if len(media) == 1 else media
    if not example.turns:
        return row | {"caption": example.text}
    turns = []
    for turn in example.turns:
        text = turn.text
        if video:  # As a row spells its video's place, and the word.
            text = text.replace("<video>", "\\<video>")
            text = text.replace("\\<image>", "\0").replace("<image>", "<video>")
            text = text.replace("\0", "\\<image>")
        turns.append({"role": turn.role, "content": text} | ({} if turn.learn else {"loss": False}))
    return row | {"conversations": turns}


def _bytes_of(medium: Medium, video: bool) -> bytes:
    if isinstance(medium, bytes):
        return medium
    if isinstance(medium, Encoded):
        raise ValueError("latents have no images to convert; convert what they were encoded from")
    if isinstance(medium, np.ndarray):
        if video:
            raise Fault("unknown_format", "a clip that is an array of frames cannot be stored")
        buffer = io.BytesIO()
        Image.fromarray(medium[..., 0] if medium.shape[-1] == 1 else medium).save(buffer, "PNG")
        return buffer.getvalue()
    if video and isinstance(medium, Path) and medium.is_dir():
        raise Fault("unknown_format", f"{medium} is a folder of frames; make a video of it first")
    with open_medium(medium) as file:
        return file.read()
