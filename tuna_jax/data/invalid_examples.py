"""ExampleSource that cannot be used: what is wrong with them, a list of them, and when there are too many.

A reader that knows only a file raises `Fault`; whoever knows the row turns it into `InvalidExample` with the
source and the line. `InvalidExamples` keeps the list. Everything else (a full disk, a wrong setting) is no
fault of a row and goes up as it is.
"""

from __future__ import annotations

import collections
import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

KINDS = (
    "malformed_json",  # the line is no JSON object
    "unknown_format",  # its keys or their types are none of the known formats, or not the task's
    "empty_text",  # a caption, an instruction or an answer without words
    "wrong_image_count",  # more or fewer pictures than its <image> marks, or than a row may have
    "missing_file",
    "corrupt_image",
    "tiny_image",
    "corrupt_video",
    "no_frames",
    "too_long",  # its tokens exceed the longest sequence length
    "drawn_picture",  # a conversation ends in a picture that the assistant draws, and its stream learns text alone
)


class Fault(ValueError):
    """Something that makes one row unusable, told by code that does not know the row.

    Attributes:
        kind: one of `KINDS`.
        reason: what is wrong, for a person.
    """

    def __init__(self, kind: str, reason: str):
        if kind not in KINDS:
            raise KeyError(f"{kind!r} is not a kind of bad row; the kinds are {', '.join(KINDS)}")
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class InvalidExample(ValueError):
    """A row that cannot be used.

    Attributes:
        kind: one of `KINDS`.
        source: the manifest.
        line: its line, counted from 1.
        reason: what is wrong, for a person.
    """

    def __init__(self, kind: str, source: str, line: int, reason: str):
        super().__init__(kind, source, line, reason)  # all of them, so that it pickles
        self.kind, self.source, self.line, self.reason = kind, source, line, reason

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: {self.kind}: {self.reason}"


class TooManyInvalidExamples(RuntimeError):
    """The share of bad rows passed the limit: the data set is not what it should be."""


@contextlib.contextmanager
def report_as_invalid(source: str, line: int) -> Iterator[None]:
    """Turns a `Fault` inside into the `InvalidExample` of a source and line."""
    try:
        yield
    except Fault as fault:
        raise InvalidExample(fault.kind, source, line, fault.reason) from fault


class InvalidExamples:
    """A list of bad rows, each once, and a limit on their share. Safe to use from many threads.

    The share is of draws (a bad row drawn in each of three epochs counts three times, and so do the good ones),
    and is looked at only after enough of them. `scanned` checks a whole source at once, on its own.

    Args:
        path: a JSON lines file of `{"source", "line", "kind", "reason"}`, continued if it exists; None keeps the list
            in memory alone. Several hosts need a file each.
        limit: the largest share of bad rows among rows seen.
        least: how many rows must be seen before the share is judged.
    """

    def __init__(self, path: Path | None = None, *, limit: float = 0.05, least: int = 1000):
        if not 0 <= limit <= 1:
            raise ValueError(f"limit is {limit}; the largest share of bad rows lies in [0, 1]")
        self.path, self.limit, self.least = path, limit, least
        self.drawn = 0  # rows taken for a batch, good or bad
        self.failed = 0  # the bad ones of them
        self._counts: collections.Counter[str] = collections.Counter()
        self._listed: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        if path is not None and path.is_file():
            self._continue(path)

    def _continue(self, path: Path) -> None:
        """Remembers what an earlier run listed; a last line that was cut off is dropped."""
        text = path.read_text(encoding="utf-8")
        whole, end, _ = text.rpartition("\n")
        if whole + end != text:
            path.write_text(whole + end, encoding="utf-8")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                key = (entry["source"], entry["line"])
                kind = entry["kind"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is not an entry of a list of bad rows ({error}); "
                    "move the file away or name another one"
                ) from error
            if key not in self._listed:
                self._listed.add(key)
                self._counts[kind] += 1

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker's copy knows when there are too many; the list is the main process's.
        return _without_list, (self.limit, self.least)

    def counts(self) -> dict[str, int]:
        """How many distinct bad rows of each kind are listed; kinds without any are left out."""
        with self._lock:
            return {kind: self._counts[kind] for kind in KINDS if self._counts[kind]}

    def good(self, rows: int = 1) -> None:
        """Counts rows that were used."""
        with self._lock:
            self.drawn += rows

    def too_many(self, bad: int, seen: int) -> bool:
        """Whether so many bad ones of `seen` rows pass the limit, if they are enough to judge."""
        return seen >= self.least and bad > self.limit * seen

    def bad(self, row: InvalidExample) -> None:
        """Lists a row that was drawn and could not be used.

        Raises:
            TooManyInvalidExamples: the share of such rows passed the limit.
        """
        with self._lock:
            self.drawn += 1
            self.failed += 1
            self._list([row])
            self._judge(self.failed, self.drawn, "rows drawn", str(row))

    def scanned(self, source: str, rows: int, bad: Iterable[InvalidExample]) -> None:
        """Lists the bad rows that were found while a source of `rows` rows was looked through.

        Raises:
            TooManyInvalidExamples: they are too large a share of the source.
        """
        found = list(bad)
        with self._lock:
            self._list(found)
            if found:
                self._judge(len(found), rows, f"rows of {source}", str(found[-1]))

    def _list(self, rows: Iterable[InvalidExample]) -> None:
        """Writes rows that are not listed yet (the lock is held)."""
        fresh = []
        for row in rows:
            if (row.source, row.line) not in self._listed:
                self._listed.add((row.source, row.line))
                self._counts[row.kind] += 1
                fresh.append(row)
        if self.path is None or not fresh:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for row in fresh:
                entry = {
                    "source": row.source,
                    "line": row.line,
                    "kind": row.kind,
                    "reason": row.reason,
                }
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def _judge(self, bad: int, seen: int, what: str, last: str) -> None:
        if not self.too_many(bad, seen):
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._counts.most_common())
        where = f"they are listed in {self.path}" if self.path else "no list was asked for"
        raise TooManyInvalidExamples(
            f"{bad} of {seen} {what} ({bad / seen:.1%}) cannot be used, more than the limit of "
            f"{self.limit:.1%}; {where}. Kinds: {kinds}. The last one: {last}. "
            "Mend the data, or raise the limit on bad rows"
        )


def _without_list(limit: float, least: int) -> InvalidExamples:
    return InvalidExamples(limit=limit, least=least)
