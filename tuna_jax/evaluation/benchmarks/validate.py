"""What is wrong with a benchmark's folder, before someone spends scorer time on it."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuna_jax.data.media import image
from tuna_jax.data.media.video import import_av
from tuna_jax.evaluation.benchmarks.spec import Benchmark, Companion, Piece

Size = tuple[int, int]  # height, width
_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with a file.

    Attributes:
      kind: 'missing', 'surplus', 'unreadable', 'size', 'frames', 'blank' or 'companion'.
      path: the file, in the folder.
      reason: what is wrong.
    """

    kind: str
    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Found:
    """A file that can be read: (height, width) of one sample, frames, and whether a sample is one colour throughout."""

    size: Size
    frames: int
    blank: bool


def check(
    benchmark: Benchmark,
    folder: str | Path,
    sizes: Collection[Size] | None = None,
    frames: int | None = None,
) -> list[Problem]:
    """All that is wrong with a folder, in the order of the benchmark's files; surplus files come last.

    Args:
      benchmark: what has to be there.
      folder: what its scorer will read.
      sizes: (height, width) that a sample may have; None: all have the commonest one (edits may have any).
      frames: of a clip; None: all have the commonest number.

    Raises:
      FileNotFoundError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    there = files_in(folder, benchmark)
    problems, found = [], {}
    for companion in benchmark.companions:
        if companion.path not in there:
            problems.append(Problem("missing", companion.path, "is missing"))
        elif reason := wrong_companion(companion, folder / companion.path):
            problems.append(Problem("companion", companion.path, reason))
    for piece in benchmark.pieces:
        if piece.path not in there:
            problems.append(Problem("missing", piece.path, "is missing"))
            continue
        try:
            found[piece.path] = examine(piece, folder / piece.path, benchmark.clips)
        except ValueError as error:
            problems.append(Problem("unreadable", piece.path, str(error)))
    if sizes is None and not benchmark.edits:
        sizes = _commonest([one.size for one in found.values()])
    lengths = _commonest([one.frames for one in found.values()]) if frames is None else [frames]
    for path, one in found.items():
        if sizes is not None and one.size not in sizes:
            wanted = " or ".join(_said(size) for size in sizes)
            reason = f"its samples are {_said(one.size)}, and {wanted} is wanted (height x width)"
            problems.append(Problem("size", path, reason))
        if one.frames not in lengths:
            reason = f"it has {one.frames} frames, and {lengths[0]} are wanted"
            problems.append(Problem("frames", path, reason))
        if one.blank:
            reason = "it, or a sample in it, is one colour throughout: the model drew nothing"
            problems.append(Problem("blank", path, reason))
    known = {one.path for one in (*benchmark.pieces, *benchmark.companions)}
    for path in sorted(there - known):
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in benchmark.tolerated):
            problems.append(Problem("surplus", path, "does not belong here"))
    return problems


def report(problems: Collection[Problem], folder: str | Path) -> str:
    """The problems as text: a line each, the first of every kind, and how many there are."""
    if not problems:
        return f"{folder}: nothing is wrong"
    counts = Counter(problem.kind for problem in problems)
    lines = []
    for kind, count in counts.items():
        of_kind = [problem for problem in problems if problem.kind == kind]
        lines += [f"{Path(folder) / one.path}: {one.reason}" for one in of_kind[:_SHOWN]]
        if count > _SHOWN:
            lines.append(f"... and {count - _SHOWN} more like it ({kind})")
    total = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return "\n".join([*lines, f"{folder}: {len(problems)} problems: {total}"])


def files_in(folder: Path, benchmark: Benchmark) -> set[str]:
    """All files in the benchmark's own parts of a folder, as the file system spells them, and empty folders."""
    there = set()
    for part in benchmark.own:
        for path in (folder / part).rglob("*"):
            if not path.is_dir() or not any(path.iterdir()):
                there.add(path.relative_to(folder).as_posix())
    return there


def examine(piece: Piece, path: Path, clips: bool) -> Found:
    """Reads a file whole.

    Raises:
      ValueError: it cannot be read, or cannot be cut into its samples.
    """
    pixels = pixels_of(path, clips)
    rows, columns = piece.grid
    count, height, width = pixels.shape[:3]
    if height % rows or width % columns:
        raise ValueError(f"{height}x{width} pixels are no grid of {rows}x{columns} samples")
    size = (height // rows, width // columns)
    cut = pixels.reshape(count, rows, size[0], columns, size[1], 3)
    darkest, brightest = cut.min((0, 2, 4)), cut.max((0, 2, 4))
    return Found(size, count, bool((darkest == brightest).all(-1).any()))


def pixels_of(path: Path, clips: bool) -> UInt8[np.ndarray, "frames height width 3"]:
    """A picture, as one frame, or a clip.

    Raises:
      ValueError: it cannot be read.
    """
    return _frames(path) if clips else _picture(path)[None]


def wrong_companion(companion: Companion, path: Path) -> str:
    """What is wrong with a file that lies beside the pieces; empty if nothing is."""
    if companion.text is not None:
        # What the scorer calls: json.load, which takes one value.
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            return f"is not one line of JSON: {error}"
        if value != (wanted := json.loads(companion.text)):
            return f"is of another prompt: {_differing(value, wanted)}"
        return ""
    assert companion.picture is not None
    try:
        size = image.Size(*_picture(path).shape[:2])
        expected = image.upright_size(companion.picture())
    except ValueError as error:
        return str(error)
    return "" if size == expected else f"is {size} pixels, and the data set's image is {expected}"


def _differing(value: object, wanted: Mapping[str, object]) -> str:
    if not isinstance(value, dict):
        return f"{value!r} where {wanted} is wanted"
    key = next(key for key in (*wanted, *value) if value.get(key) != wanted.get(key))
    return f"{key!r} is {value.get(key)!r}, and {wanted.get(key)!r} is wanted"


def _commonest(values: list) -> list:
    return [value for value, _ in Counter(values).most_common(1)]


def _said(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as opened:
            return np.asarray(image.to_rgb(opened))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read as a picture: {error}") from error


def _frames(path: Path) -> np.ndarray:
    av = import_av(path)
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"cannot be read as a clip: {error}") from error
    if not frames:
        raise ValueError("has no frames")
    return np.stack(frames)
