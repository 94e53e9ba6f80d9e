"""Examples that cannot be used: what is wrong with them, a list of them, and a limit on how many there may be.

Code that knows only a file raises `Fault`; code that knows the example turns it into `InvalidExample` with source and
line, and so does every other error that reading one example raises: one example never stops a run. Only an error that
says that the machine is ill (input and output, no space, no memory) or that a package is missing propagates; one that
repeats on every example exceeds the limit on their share. `InvalidExamples` keeps the list.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tuna_jax.utils import regular_files
from tuna_jax.utils.text_files import json_line, parse_json

KINDS = (
    "malformed_json",  # The line is not a JSON object.
    "unknown_format",  # Its keys or their types fit none of the formats, or not the task's.
    "empty_text",  # A caption, an instruction or an answer without words.
    "invalid_text",  # A text with half of a surrogate pair, which no file and no tokenizer takes.
    "wrong_image_count",  # More or fewer images than <image> tags, or than the stream allows.
    "missing_file",
    "unreadable_file",  # It exists and cannot be opened: no permission, or a pipe, or a device.
    "corrupt_image",
    "tiny_image",
    "corrupt_video",
    "no_frames",
    "corrupt_shard",  # The file that has it and others is cut or damaged.
    "too_long",  # It has more tokens than the longest sequence length.
    "assistant_image",  # A conversation ends in an image by the assistant, and its stream trains on text only.
    "other",  # Any other error that reading it raised.
)
OF_FILES = frozenset(
    {
        *("missing_file", "unreadable_file", "corrupt_image", "tiny_image"),
        *("corrupt_video", "no_frames", "corrupt_shard", "other"),
    }
)
"""Kinds that may be a file's fault: when the file is mended, the example can be used."""
_LONGEST_REASON = 500
# Names in files of earlier versions.
_OLD_FILE_NAME = "bad_rows"
_OLD_KINDS = {"drawn_picture": "assistant_image"}


class Fault(ValueError):
    """What makes one example unusable, raised by code that does not know the example.

    Attributes:
        kind: one of `KINDS`.
        reason: an explanation for the user.
    """

    def __init__(self, kind: str, reason: str):
        if kind not in KINDS:
            raise KeyError(
                f"{kind!r} is not a kind of invalid example; the kinds are {', '.join(KINDS)}"
            )
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class InvalidExample(ValueError):
    """An example that cannot be used.

    Attributes:
        kind: one of `KINDS`.
        source: the name of its source, such as a manifest's path.
        line: its line there, counted from 1.
        reason: an explanation for the user.
    """

    def __init__(self, kind: str, source: str, line: int, reason: str):
        super().__init__(kind, source, line, reason)  # All of them, so that it can be pickled.
        self.kind, self.source, self.line, self.reason = kind, source, line, reason

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: {self.kind}: {self.reason}"


class TooManyInvalidExamples(ValueError):
    """The share of invalid examples exceeds the limit: something is wrong with the data set."""


@contextlib.contextmanager
def report_as_invalid(source: str, line: int) -> Iterator[None]:
    """Turns every error raised inside that is an example's fault into the `InvalidExample` of a source and line.

    Raises:
        InvalidExample: for a `Fault`, and for any other error but these.
        OSError: of input and output, a full disk and the like (`regular_files.is_machine_fault`); source and line are
            added to its message.
        MemoryError, ImportError: unchanged.
    """
    try:
        yield
    except (InvalidExample, MemoryError, ImportError):
        raise
    except OSError as error:
        if regular_files.is_machine_fault(error):
            text = f"{source}, line {line}: {error.strerror}"
            raise OSError(error.errno, text, error.filename) from error
        raise _as_invalid(fault_of(error), source, line) from error
    except Exception as error:
        raise _as_invalid(fault_of(error), source, line) from error


def _as_invalid(fault: Fault, source: str, line: int) -> InvalidExample:
    return InvalidExample(fault.kind, source, line, shortened(fault.reason))


def fault_of(error: Exception) -> Fault:
    """An error that reading one example raised, as its fault."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        kind = "missing_file" if error.errno in regular_files.NO_SUCH_FILE else "unreadable_file"
        named = f"{shortened(str(error.filename), 200)}: " if error.filename is not None else ""
        return Fault(kind, f"{named}{error.strerror}")
    return Fault("other", f"{type(error).__name__}: {error}")


def shortened(text: str, most: int = _LONGEST_REASON) -> str:
    """A text without its middle part if it is longer than `most` characters: reasons may quote whole files."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} ... {text[-(most // 2) :]}"


def described(examples: Iterable[InvalidExample]) -> str:
    """Invalid examples in words, by kind with one example each: '2 missing_file (m.jsonl, line 5: ...)'."""
    kinds: dict[str, list[InvalidExample]] = {}
    for example in examples:
        kinds.setdefault(example.kind, []).append(example)
    return ", ".join(
        f"{len(of_kind)} {kind} (such as {of_kind[0].source}, line {of_kind[0].line}: "
        f"{shortened(of_kind[0].reason, 200)})"
        for kind, of_kind in sorted(kinds.items(), key=lambda item: -len(item[1]))
    )


class InvalidExamples:
    """A list of invalid examples, each once, and a limit on their share. Safe to use from several threads.

    The share counts examples as they are read (one that is read in three epochs counts three times), and is checked
    only after enough of them. `add_scanned` checks a whole source by itself, however few examples it has. A single
    invalid example never exceeds the limit, unless the limit is 0.

    Args:
        path: a JSON lines file of `{"source", "line", "kind", "reason"}`, continued if it exists; None keeps the list
            in memory only. Each host needs its own file.
        limit: the largest share of invalid examples, from 0 to 1.
        least: how many examples must be read before the share is checked.

    Attributes:
        seen: examples read so far, valid or not.
        invalid: the invalid ones of them.
    """

    def __init__(self, path: Path | None = None, *, limit: float = 0.05, least: int = 1000):
        if not 0 <= limit <= 1:
            raise ValueError(
                f"limit is {limit}; the largest share of invalid examples must lie in [0, 1]"
            )
        self.path, self.limit, self.least = path, limit, least
        self.seen = 0
        self.invalid = 0
        self._counts: collections.Counter[str] = collections.Counter()
        self._listed: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        if path is not None:
            self._continue(path)

    def _continue(self, path: Path) -> None:
        """Reads what an earlier run listed; a truncated last line is dropped."""
        old = path.with_name(path.name.replace("invalid_examples", _OLD_FILE_NAME))
        if old.is_file() and not path.exists():
            old.rename(path)
        if not path.is_file():
            return
        content = path.read_bytes()
        whole, end, _ = content.rpartition(b"\n")
        if whole + end != content:
            path.write_bytes(whole + end)
        for number, line in enumerate(whole.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                entry = parse_json(line, "the line")
                key = (entry["source"], entry["line"])
                kind = str(entry["kind"])
                kind = _OLD_KINDS.get(kind, kind)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is not an entry of a list of invalid examples ({error}); "
                    "move the file away or name another one"
                ) from error
            if key not in self._listed:
                self._listed.add(key)
                self._counts[kind] += 1

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker's copy knows the limit; the main process keeps the list.
        return _without_list, (self.limit, self.least)

    def counts(self) -> dict[str, int]:
        """The number of listed examples of each kind; kinds without any are left out."""
        with self._lock:
            return {kind: self._counts[kind] for kind in KINDS if self._counts[kind]}

    def count_valid(self, examples: int = 1) -> None:
        """Counts examples that were used."""
        with self._lock:
            self.seen += examples

    def too_many(self, invalid: int, seen: int) -> bool:
        """Whether `invalid` of `seen` examples exceed the limit; False while `seen` is too small."""
        return seen >= self.least and self._exceeds(invalid, seen)

    def _exceeds(self, invalid: int, seen: int) -> bool:
        return invalid > (max(1, self.limit * seen) if self.limit else 0)

    def add(self, example: InvalidExample) -> None:
        """Lists an example that was read for a batch and could not be used.

        Raises:
            TooManyInvalidExamples: the share of such examples exceeds the limit.
        """
        with self._lock:
            self.seen += 1
            self.invalid += 1
            self._list([example])
            if self.too_many(self.invalid, self.seen):
                self._stop(self.invalid, self.seen, "examples read", str(example))

    def add_scanned(self, source: str, total: int, invalid: Iterable[InvalidExample]) -> None:
        """Lists the invalid examples that a scan found in a source of `total` examples.

        Raises:
            TooManyInvalidExamples: they are too large a share of the source.
        """
        examples = list(invalid)
        with self._lock:
            self._list(examples)
            # However few examples the source has: all of them are known.
            if self._exceeds(len(examples), total):
                self._stop(len(examples), total, f"examples of {source}", str(examples[-1]))

    def _list(self, examples: Iterable[InvalidExample]) -> None:
        """Writes examples that are not listed yet. The caller holds the lock."""
        new = []
        for example in examples:
            if (example.source, example.line) not in self._listed:
                self._listed.add((example.source, example.line))
                self._counts[example.kind] += 1
                new.append(example)
        if self.path is None or not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for example in new:
                entry = {
                    "source": example.source,
                    "line": example.line,
                    "kind": example.kind,
                    "reason": example.reason,
                }
                file.write(json_line(entry))

    def _stop(self, invalid: int, seen: int, what: str, last: str) -> None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._counts.most_common())
        where = f"they are listed in {self.path}" if self.path else "no list is kept"
        raise TooManyInvalidExamples(
            f"{invalid} of {seen} {what} ({invalid / seen:.1%}) cannot be used, more than the limit of "
            f"{self.limit:.1%}; {where}. Kinds: {kinds}. The last one: {last}. "
            "Repair the data, or raise the limit on invalid examples"
        )


def _without_list(limit: float, least: int) -> InvalidExamples:
    return InvalidExamples(limit=limit, least=least)
