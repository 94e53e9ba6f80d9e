"""Any source of examples as ArrayRecord files, in shards that hosts share and that resume.

Shard i of S holds the same examples on any host; host p of P writes shards p, p + P, ... A shard's JSON file comes last
and marks it as complete. Images and videos are stored as their files are, byte for byte.
"""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tqdm import tqdm

from tuna_jax.data.invalid_examples import (
    OF_FILES,
    Fault,
    InvalidExample,
    InvalidExamples,
    report_as_invalid,
)
from tuna_jax.data.media.image import SMALLEST_SIDE, Encoded, Medium, open_medium
from tuna_jax.data.mixture.scan import picture_size
from tuna_jax.data.sources.array_record import SETTINGS_FILE
from tuna_jax.data.sources.base import VIDEO_KINDS, Example, ExampleSource
from tuna_jax.data.sources.records import pack
from tuna_jax.data.sources.shards import shard_name
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.regular_files import with_retries
from tuna_jax.utils.text_files import json_line, read_json

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
    if not 0 <= process_index < process_count or shard_rows < 1:
        raise ValueError(
            f"process_index is {process_index} of process_count={process_count}, shard_rows {shard_rows}"
        )
    shards = -(-len(source) // shard_rows)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, source, shards, shard_rows, smallest)
    log, written, invalid = invalid_examples or InvalidExamples(), 0, []
    own = range(process_index, shards, process_count)
    numbers_of = {
        shard: range(shard * shard_rows, min((shard + 1) * shard_rows, len(source)))
        for shard in own
    }
    total = sum(map(len, numbers_of.values()))
    bar = tqdm(total=total, desc="converting", unit="example", disable=not progress)
    with bar, concurrent.futures.ThreadPoolExecutor(threads) as pool:

        def stored(number: int) -> tuple[bytes, bytes] | InvalidExample:
            return with_retries(lambda: _records(source, number, smallest))

        for shard, numbers in numbers_of.items():
            name = shard_name(shard, shards)
            listed = _finished(folder / f"{name}.json")
            if listed is not None and not _readable_now(source, numbers, listed, smallest):
                bar.update(len(numbers))
                invalid += [
                    InvalidExample(kind, source.name, line, reason)
                    for line, kind, reason in listed["bad"]
                ]
                continue
            (folder / f"{name}.json").unlink(missing_ok=True)  # It is written again, last.
            for left in folder.glob(f".{name}*"):  # Left by a run that was killed.
                left.unlink(missing_ok=True)
            bad: list[InvalidExample] = []
            rows = 0
            with atomic_file(folder / f"{name}.array_record") as scratch:
                writer = ArrayRecordWriter(str(scratch), _OPTIONS)
                try:
                    for begin in range(0, len(numbers), _CHUNK):
                        chunk = numbers[begin : begin + _CHUNK]
                        for result in pool.map(stored, chunk):
                            if isinstance(result, InvalidExample):
                                bad.append(result)
                                log.add(result)
                                continue
                            for record in result:
                                writer.write(record)
                            rows += 1
                        bar.update(len(chunk))
                finally:
                    writer.close()
            log.count_valid(rows)
            invalid += bad
            written += rows
            entry = {"rows": rows, "bad": [[row.line, row.kind, row.reason] for row in bad]}
            with atomic_file(folder / f"{name}.json") as scratch:
                scratch.write_text(json_line(entry), encoding="utf-8")
    log.add_scanned(source.name, total, invalid)
    return {"rows": written, **log.counts()}


def _finished(file: Path) -> dict[str, Any] | None:
    return read_json(file) if file.is_file() else None


def _readable_now(
    source: ExampleSource, numbers: range, listed: Mapping[str, Any], smallest: int
) -> bool:
    """Whether an example of a finished shard can be used now, whose files were missing or unreadable."""
    lines = {line for line, kind, _ in listed["bad"] if kind in OF_FILES}
    if not lines:
        return False
    again = [number for number in numbers if source.line(number) in lines]
    return any(
        not isinstance(_records(source, number, smallest), InvalidExample) for number in again
    )


def _claim(
    folder: Path, source: ExampleSource, shards: int, shard_rows: int, smallest: int
) -> None:
    """Writes what the folder holds, or checks that it is the same."""
    settings = {
        "source": source.name,
        "identity": source.identity,
        "shards": shards,
        "shard_rows": shard_rows,
        "smallest": smallest,
    }
    path = folder / SETTINGS_FILE
    if not path.is_file():
        with atomic_file(path) as scratch:  # Several hosts may write the same file.
            scratch.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        return
    kept = read_json(path)
    differ = [
        f"{key}: {kept.get(key)!r} there, {value!r} now"
        for key, value in settings.items()
        if key != "source" and kept.get(key) != value
    ]
    if differ:
        raise ValueError(
            f"{folder} holds records of another source or other settings ({'; '.join(differ)}); give another folder"
        )


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
        return {"raw_image": media[0], "out_image": media[1], "instruction": example.text}
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
    if video and os.path.isdir(medium):
        raise Fault("unknown_format", f"{medium} is a folder of frames; make a video of it first")
    with open_medium(medium) as file:
        return file.read()
