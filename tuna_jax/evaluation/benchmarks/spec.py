"""What a benchmark's folder holds: a list of files, each with what is drawn in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

# So many samples of a prompt can have seeds of their own; VBench asks for 25.
SAMPLES = 64


@dataclasses.dataclass(frozen=True)
class Piece:
    """A file with something that is drawn.

    Attributes:
      path: of the file in the folder.
      prompt: what is drawn, or how the source is changed.
      place: the prompt's number in its file, from 0: with the sample's number it gives the seed.
      samples: which of the prompt's samples it shows: one, or four in a grid of two columns, row by row.
      source: the picture to change: an absolute path, or one in the folder (a `Companion`'s); None where there is none.
    """

    path: str
    prompt: str
    place: int
    samples: tuple[int, ...] = (0,)
    source: Path | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of samples in the file."""
        return (1, 1) if len(self.samples) == 1 else (len(self.samples) // 2, 2)

    def seeds(self, seed: int) -> list[tuple[int, int]]:
        """A (seed, place) for each sample, see `rows.keys`: no other sample of the benchmark has the same."""
        return [(seed, self.place * SAMPLES + sample) for sample in self.samples]


@dataclasses.dataclass(frozen=True)
class Companion:
    """A file that the scorer wants beside what is drawn: a line of JSON, or the picture that was edited.

    Attributes:
      path: of the file in the folder.
      place: as `Piece.place`.
      text: what is in it, or None.
      picture: reads the picture that is in it, or None.
    """

    path: str
    place: int
    text: str | None = None
    picture: Callable[[], Image.Image] | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark as the files that its scorer reads.

    Attributes:
      name: what it is called in commands.
      pieces: the files to draw.
      companions: the files beside them.
      prompts: how many prompts there are.
      published: how many prompts the published benchmark has: with another number, scores cannot be compared.
      scorer: what to run next, with `{folder}` and `{side}` (a sample's side in pixels) to be filled in.
      clips: whether pieces are clips.
      own: parts of the folder that belong to this benchmark and model alone; other parts are left alone.
      tolerated: patterns of files that may lie there too: what the scorer itself writes, or reads if it is there.
    """

    name: str
    pieces: tuple[Piece, ...]
    prompts: int
    published: int
    scorer: str
    companions: tuple[Companion, ...] = ()
    clips: bool = False
    own: tuple[str, ...] = (".",)
    tolerated: tuple[str, ...] = ()

    @property
    def edits(self) -> bool:
        """Whether pieces are changed pictures."""
        return any(piece.source is not None for piece in self.pieces)

    def first(self, count: int) -> Benchmark:
        """The first prompts alone, for a trial."""
        pieces = tuple(piece for piece in self.pieces if piece.place < count)
        companions = tuple(one for one in self.companions if one.place < count)
        prompts = min(count, self.prompts)
        return dataclasses.replace(self, pieces=pieces, companions=companions, prompts=prompts)

    def some(self, numbers: Iterable[int]) -> Benchmark:
        """These pieces alone, by their place among the pieces, each once, with what belongs beside them."""
        pieces = tuple(self.pieces[number] for number in sorted(set(numbers)))
        places = {piece.place for piece in pieces}
        companions = tuple(one for one in self.companions if one.place in places)
        return dataclasses.replace(self, pieces=pieces, companions=companions, prompts=len(places))

    def digest(self) -> str:
        """A hash of what is to be drawn and where."""
        entries = [[p.path, p.prompt, p.place, p.samples] for p in self.pieces]
        entries += [[c.path, c.place, c.text] for c in self.companions]
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def find(data: str | Path | None, benchmark: str, names: Sequence[str], told: str) -> Path:
    """A benchmark's prompt file, or folder of prompts.

    Args:
      data: the file itself, a folder that has it, or a folder with a folder of the benchmark's name that does.
      benchmark: its name.
      names: what it may be called, the likeliest first.
      told: how to get it, for the message.

    Raises:
      FileNotFoundError: it is not there.
    """
    if data is None:
        raise FileNotFoundError(f"{benchmark} wants --prompts=FOLDER with {names[0]}; {told}")
    data = Path(data)
    if data.is_file():
        return data
    for folder in (data, data / benchmark):
        for name in names:
            if (folder / name).exists():
                return folder / name
    raise FileNotFoundError(
        f"{data} has no {' or '.join(names)}, and no {benchmark}/{names[0]}; {told}"
    )


def text_of(values: Any, key: str, where: str) -> str:
    """A text that a row must have.

    Raises:
      ValueError: it has none, named by `where`.
    """
    value = values.get(key) if isinstance(values, dict) else None
    if not isinstance(value, str) or not value.strip():
        has = f"keys {', '.join(map(str, values))}" if isinstance(values, dict) else repr(values)
        raise ValueError(f"{where}: {key!r} must be a text, and the row has {has}")
    return value


def file_name(name: str, where: str) -> str:
    """The name, if a file can be called so.

    Raises:
      ValueError: it cannot, named by `where`.
    """
    if name != PurePosixPath(name).name or name in (".", "..") or len(name.encode()) > 255:
        raise ValueError(f"{where}: no file can be called {name!r}")
    return name


def distinct(pieces: Iterable[Piece], where: str) -> tuple[Piece, ...]:
    """The pieces, if each has a file of its own.

    Raises:
      ValueError: there are none, or two want one file.
    """
    kept: dict[str, Piece] = {}
    for piece in pieces:
        if piece.path in kept:
            raise ValueError(f"{where}: two prompts want the file {piece.path}")
        kept[piece.path] = piece
    if not kept:
        raise ValueError(f"{where} has no prompts")
    return tuple(kept.values())
