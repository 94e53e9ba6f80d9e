"""Shards that are made of a source: who writes which, what is finished, and what is written again.

Shard i of S holds the same examples on any host; host p of P writes shards p, p + P, ... A shard's JSON file comes last
and marks it as complete, so that the same command resumes. Shards with examples whose files were missing or unreadable,
and can be read now, are written again.
"""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from tuna_jax.data.invalid_examples import OF_FILES, InvalidExample, InvalidExamples
from tuna_jax.data.sources.base import ExampleSource
from tuna_jax.data.sources.shards import shard_name
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.text_files import json_line, read_json


@runtime_checkable
class ShardContent(Protocol):
    """What shards are made of."""

    def write(
        self,
        file: Path,
        numbers: range,
        pool: concurrent.futures.Executor,
        done: Callable[[int], object],
    ) -> tuple[dict[str, Any], list[InvalidExample]]:
        """Writes the records of some examples.

        Args:
            file: of the records; it is written atomically.
            numbers: of the examples.
            pool: reads several at a time.
            done: is called with numbers of examples that were read.

        Returns:
            What the shard's JSON file lists, with the number of its examples as `rows`; and those that cannot be used.
        """
        ...

    def is_usable(self, number: int) -> bool:
        """Whether an example can be used now."""
        ...


def write_shards(
    source: ExampleSource,
    folder: Path,
    content: ShardContent,
    *,
    shard_rows: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
    invalid_examples: InvalidExamples | None = None,
    progress: str = "",
) -> dict[str, int]:
    """Writes those of this host's shards that do not exist yet.

    Args:
        source: the examples.
        folder: of the shards; all hosts write into the same.
        content: what is written.
        shard_rows: examples of the source per shard.
        process_index, process_count: this host, and the number of hosts.
        threads: files that are read at the same time.
        invalid_examples: lists invalid examples, and stops when there are too many.
        progress: the word in front of the bar; '' shows none.

    Returns:
        The number of examples written by this call ('rows'), and of invalid examples by kind.

    Raises:
        TooManyInvalidExamples: more examples than `invalid_examples` allows cannot be used.
    """
    shards = shard_count(source, shard_rows)
    log, written = invalid_examples or InvalidExamples(), 0
    invalid: list[InvalidExample] = []
    whole = range(len(source))
    numbers_of = {
        shard: whole[shard * shard_rows : (shard + 1) * shard_rows]
        for shard in range(process_index, shards, process_count)
    }
    total = sum(map(len, numbers_of.values()))
    bar = tqdm(total=total, desc=progress, unit="example", disable=not progress)
    with bar, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for shard, numbers in numbers_of.items():
            name = shard_name(shard, shards)
            marker = folder / f"{name}.json"
            listed = read_json(marker) if marker.is_file() else None
            if listed is not None and not _readable_now(source, content, numbers, listed):
                bar.update(len(numbers))
                invalid += [
                    InvalidExample(kind, source.name, line, reason)
                    for line, kind, reason in listed["bad"]
                ]
                continue
            marker.unlink(missing_ok=True)  # It is written again, last.
            for left in folder.glob(f".{name}*"):  # Left by a run that was killed.
                left.unlink(missing_ok=True)
            entry, bad = content.write(folder / f"{name}.array_record", numbers, pool, bar.update)
            log.count_valid(entry["rows"])
            for example in bad:
                log.add(example)
            invalid += bad
            written += entry["rows"]
            write_marker(marker, entry, bad)
    log.add_scanned(source.name, total, invalid)
    return {"rows": written, **log.counts()}


def shard_count(source: ExampleSource, shard_rows: int) -> int:
    """The number of shards of a source."""
    return -(-len(source) // shard_rows)


def check_process(process_index: int, process_count: int) -> None:
    """Raises ValueError if there is no such host."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index} of process_count={process_count}")


def write_marker(marker: Path, entry: Mapping[str, Any], bad: Sequence[InvalidExample]) -> None:
    """Writes a shard's JSON file, which marks it as complete."""
    listed = {**entry, "bad": [[row.line, row.kind, row.reason] for row in bad]}
    with atomic_file(marker) as scratch:
        scratch.write_text(json_line(listed), encoding="utf-8")


def write_settings(
    path: Path, settings: Mapping[str, Any], holds: str, ignored: Sequence[str] = ()
) -> None:
    """Writes what a folder of shards holds, or checks that it is the same.

    Args:
        path: the file.
        settings: JSON values.
        holds: what the folder holds if it is not the same, for the message.
        ignored: keys that may differ.

    Raises:
        ValueError: the folder holds something else; the keys that differ are named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        with atomic_file(path) as scratch:  # Several hosts may write the same file.
            scratch.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        return
    stored = read_json(path)
    differ = [
        f"{key}: {stored.get(key)!r} there, {value!r} now"
        for key, value in settings.items()
        if key not in ignored and stored.get(key) != value
    ]
    if differ:
        raise ValueError(f"{path.parent} holds {holds} ({'; '.join(differ)}); give another folder")


def _readable_now(
    source: ExampleSource, content: ShardContent, numbers: range, listed: Mapping[str, Any]
) -> bool:
    """Whether an example of a finished shard can be used now, whose files were missing or unreadable."""
    lines = {line for line, kind, _ in listed["bad"] if kind in OF_FILES}
    if not lines:
        return False
    again = (number for number in numbers if source.line(number) in lines)
    return any(content.is_usable(number) for number in again)
