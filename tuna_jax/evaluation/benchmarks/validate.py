"""Finds problems in a benchmark's folder before a scorer runs on it."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tuna_jax.data.media import image
from tuna_jax.data.media.video import import_av
from tuna_jax.evaluation.benchmarks.spec import Benchmark, Companion, Piece

Size = tuple[int, int]  # height, width
_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of a file.

    Attributes:
      kind: 'missing', 'surplus', 'unreadable', 'size', 'frames', 'blank' or 'companion'.
      path: the file, in the folder.
      reason: what is wrong.
    """

    kind: str
    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """A readable file: (height, width) of one sample, number of frames, and whether a sample has only one colour."""

    size: Size
    frames: int
    blank: bool


def check(
    benchmark: Benchmark,
    folder: str | Path,
    sizes: Collection[Size] | None = None,
    frames: int | None = None,
) -> list[Problem]:
    """All problems of a folder, in the order of the benchmark's files; surplus files come last.

    Args:
      benchmark: the expected files.
      folder: the folder that its scorer will read.
      sizes: allowed (height, width) of a sample; None requires the most common one (edits may have any).
      frames: per video; None requires the most common number.

    Raises:
      FileNotFoundError: the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    existing = files_in(folder, benchmark)
    problems, infos = [], {}
    for companion in benchmark.companions:
        if companion.path not in existing:
            problems.append(Problem("missing", companion.path, "is missing"))
        elif reason := wrong_companion(companion, folder / companion.path):
            problems.append(Problem("companion", companion.path, reason))
    for piece in benchmark.pieces:
        if piece.path not in existing:
            problems.append(Problem("missing", piece.path, "is missing"))
            continue
        try:
            infos[piece.path] = examine(piece, folder / piece.path, benchmark.clips)
        except ValueError as error:
            problems.append(Problem("unreadable", piece.path, str(error)))
    if sizes is None and not benchmark.edits:
        sizes = _commonest([info.size for info in infos.values()])
    lengths = _commonest([info.frames for info in infos.values()]) if frames is None else [frames]
    for path, info in infos.items():
        if sizes is not None and info.size not in sizes:
            expected = " or ".join(_size_text(size) for size in sizes)
            reason = (
                f"its samples are {_size_text(info.size)}, expected {expected} (height x width)"
            )
            problems.append(Problem("size", path, reason))
        if info.frames not in lengths:
            reason = f"it has {info.frames} frames, expected {lengths[0]}"
            problems.append(Problem("frames", path, reason))
        if info.blank:
            reason = "it, or a sample in it, has only one colour: nothing was generated"
            problems.append(Problem("blank", path, reason))
    expected_paths = {file.path for file in (*benchmark.pieces, *benchmark.companions)}
    for path in sorted(existing - expected_paths):
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in benchmark.tolerated):
            problems.append(Problem("surplus", path, "does not belong here"))
    return problems


def report(problems: Collection[Problem], folder: str | Path) -> str:
    """The problems as text: one line each for the first of every kind, and their numbers."""
    if not problems:
        return f"{folder}: no problems"
    counts = Counter(problem.kind for problem in problems)
    lines = []
    for kind, count in counts.items():
        of_kind = [problem for problem in problems if problem.kind == kind]
        lines += [
            f"{Path(folder) / problem.path}: {problem.reason}" for problem in of_kind[:_LISTED]
        ]
        if count > _LISTED:
            lines.append(f"... and {count - _LISTED} more like it ({kind})")
    total = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return "\n".join([*lines, f"{folder}: {len(problems)} problems: {total}"])


def files_in(folder: Path, benchmark: Benchmark) -> set[str]:
    """All files in the benchmark's own parts of a folder, as the file system spells them, and empty folders."""
    files = set()
    for part in benchmark.own:
        for path in (folder / part).rglob("*"):
            if not path.is_dir() or not any(path.iterdir()):
                files.add(path.relative_to(folder).as_posix())
    return files


def examine(piece: Piece, path: Path, clips: bool) -> FileInfo:
    """Reads a whole file.

    Raises:
      ValueError: it cannot be read, or cannot be split into its samples.
    """
    pixels = pixels_of(path, clips)
    rows, columns = piece.grid
    count, height, width = pixels.shape[:3]
    if height % rows or width % columns:
        raise ValueError(f"{height}x{width} pixels are not a grid of {rows}x{columns} samples")
    size = (height // rows, width // columns)
    samples = pixels.reshape(count, rows, size[0], columns, size[1], 3)
    darkest, brightest = samples.min((0, 2, 4)), samples.max((0, 2, 4))
    return FileInfo(size, count, bool((darkest == brightest).all(-1).any()))


def pixels_of(path: Path, clips: bool) -> UInt8[np.ndarray, "frames height width 3"]:
    """The frames of a video, or an image as one frame.

    Raises:
      ValueError: it cannot be read.
    """
    return _frames(path) if clips else _picture(path)[None]


def wrong_companion(companion: Companion, path: Path) -> str:
    """What is wrong with a companion file; empty if nothing is."""
    if companion.text is not None:
        # The scorer calls json.load, which accepts one value.
        try:
            value = json.loads(path.read_bytes().decode())
        except (ValueError, RecursionError) as error:
            return f"is not one line of JSON: {error}"
        if value != (expected_value := json.loads(companion.text)):
            return f"belongs to another prompt: {_differing(value, expected_value)}"
        return ""
    assert companion.picture is not None
    try:
        size = image.Size(*_picture(path).shape[:2])
        expected = image.upright_size(companion.picture())
    except ValueError as error:
        return str(error)
    return "" if size == expected else f"is {size} pixels, and the data set's image is {expected}"


def _differing(value: object, expected: Mapping[str, object]) -> str:
    if not isinstance(value, dict):
        return f"{value!r}, expected {expected}"
    key = next(key for key in (*expected, *value) if value.get(key) != expected.get(key))
    return f"{key!r} is {value.get(key)!r}, expected {expected.get(key)!r}"


def _commonest(values: list) -> list:
    return [value for value, _ in Counter(values).most_common(1)]


def _size_text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _picture(path: Path) -> np.ndarray:
    try:
        return np.asarray(image.load_rgb(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read as an image: {error}") from error


def _frames(path: Path) -> np.ndarray:
    av = import_av(path)
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"cannot be read as a video: {error}") from error
    if not frames:
        raise ValueError("has no frames")
    return np.stack(frames)
