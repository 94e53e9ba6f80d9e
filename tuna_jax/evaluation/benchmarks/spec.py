"""The contents of a benchmark's folder: a list of files, each with its prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from tuna_jax.utils.text_files import check_text

# The most samples per prompt that have distinct seeds; VBench requires 25.
SAMPLES = 64


@dataclasses.dataclass(frozen=True)
class Piece:
    """A file to generate.

    Attributes:
      path: of the file in the folder.
      prompt: the prompt, or the instruction of an edit.
      place: the prompt's number in its file, from 0; with the sample's number it determines the seed.
      samples: the numbers of the prompt's samples in the file: one, or four in a grid of two columns, row by row.
      source: the image to edit: an absolute path, or one in the folder (a `Companion`'s); None if it is not an edit.
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
        """A (seed, place) for each sample, see `batching.keys`; no other sample of the benchmark has the same."""
        return [(seed, self.place * SAMPLES + sample) for sample in self.samples]


@dataclasses.dataclass(frozen=True)
class Companion:
    """A file that the scorer needs next to the generated ones: a line of JSON, or the source image of an edit.

    Attributes:
      path: of the file in the folder.
      place: as `Piece.place`.
      text: its content, or None.
      picture: reads its image, or None.
    """

    path: str
    place: int
    text: str | None = None
    picture: Callable[[], Image.Image] | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark as the files that its scorer reads.

    Attributes:
      name: its name in commands.
      pieces: the files to generate.
      companions: further files that the scorer needs.
      prompts: the number of prompts.
      published: the number of prompts of the published benchmark; with another number, scores are not comparable.
      scorer: the command to run next, with the fields `{folder}` and `{side}` (a sample's side in pixels).
      clips: whether pieces are videos.
      own: parts of the folder that belong only to this benchmark and model; other parts are not touched.
      tolerated: patterns of other files that are allowed: those that the scorer writes, or reads if they exist.
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
        """Whether pieces are edits of images."""
        return any(piece.source is not None for piece in self.pieces)

    def first(self, count: int) -> Benchmark:
        """The benchmark with only the first prompts, for a trial."""
        pieces = tuple(piece for piece in self.pieces if piece.place < count)
        companions = tuple(file for file in self.companions if file.place < count)
        prompts = min(count, self.prompts)
        return dataclasses.replace(self, pieces=pieces, companions=companions, prompts=prompts)

    def some(self, numbers: Iterable[int]) -> Benchmark:
        """The benchmark with only these pieces, given by their indices, and their companions."""
        pieces = tuple(self.pieces[number] for number in sorted(set(numbers)))
        places = {piece.place for piece in pieces}
        companions = tuple(file for file in self.companions if file.place in places)
        return dataclasses.replace(self, pieces=pieces, companions=companions, prompts=len(places))

    def digest(self) -> str:
        """A hash of the files and their prompts."""
        entries = [[p.path, p.prompt, p.place, p.samples] for p in self.pieces]
        entries += [[c.path, c.place, c.text] for c in self.companions]
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def find(data: str | Path | None, benchmark: str, names: Sequence[str], hint: str) -> Path:
    """A benchmark's prompt file, or folder of prompts.

    Args:
      data: the file itself, a folder that has it, or a folder with a subfolder of the benchmark's name that has it.
      benchmark: its name.
      names: possible names of the file, the most likely first.
      hint: how to get it, for the message.

    Raises:
      FileNotFoundError: it does not exist.
    """
    if data is None:
        raise FileNotFoundError(f"{benchmark} requires --prompts=FOLDER with {names[0]}; {hint}")
    data = Path(data)
    if data.is_file():
        return data
    for folder in (data, data / benchmark):
        for name in names:
            if (folder / name).exists():
                return folder / name
    raise FileNotFoundError(
        f"{data} has no {' or '.join(names)}, and no {benchmark}/{names[0]}; {hint}"
    )


def text_of(values: Any, key: str, where: str) -> str:
    """A required text of a row.

    Raises:
      ValueError: it is missing, or is not UTF-8; `where` names the row.
    """
    value = values.get(key) if isinstance(values, dict) else None
    if not isinstance(value, str) or not value.strip():
        has = f"keys {', '.join(map(str, values))}" if isinstance(values, dict) else repr(values)
        raise ValueError(f"{where}: {key!r} must be a text, and the row has {has}")
    return check_text(value, f"{where}: {key!r}")


def file_name(name: str, where: str) -> str:
    """The name, if it is a valid file name.

    Raises:
      ValueError: it is not; `where` names the row.
    """
    check_text(name, f"{where}: {name!r}")
    wrong = name != PurePosixPath(name).name or name in (".", "..") or "\0" in name
    if wrong or len(name.encode()) > 255:
        raise ValueError(f"{where}: {name!r} is not a valid file name")
    return name


def distinct(pieces: Iterable[Piece], where: str) -> tuple[Piece, ...]:
    """The pieces, if each has its own file.

    Raises:
      ValueError: there are none, or two have the same file.
    """
    by_path: dict[str, Piece] = {}
    for piece in pieces:
        if piece.path in by_path:
            raise ValueError(f"{where}: two prompts have the same file {piece.path}")
        by_path[piece.path] = piece
    if not by_path:
        raise ValueError(f"{where} has no prompts")
    return tuple(by_path.values())
