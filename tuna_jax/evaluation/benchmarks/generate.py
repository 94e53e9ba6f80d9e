"""Generates a benchmark's files one by one, so that a run can be killed, resumed and shared among processes.

A sample depends on its prompt's place in the prompt file, on its number and on the seed; it does not depend on the
batch, the process, or existing files (up to rounding).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from tuna_jax.data.media import image
from tuna_jax.data.media.video import write_video
from tuna_jax.evaluation.benchmarks import validate
from tuna_jax.evaluation.benchmarks.spec import Benchmark, Piece
from tuna_jax.evaluation.benchmarks.validate import Size
from tuna_jax.inference.not_finite import NotFiniteError
from tuna_jax.utils import old_names
from tuna_jax.utils.image_grid import contact_sheet
from tuna_jax.utils.text_files import read_json

_THUMBNAIL, _MOST_ON_SHEET = 128, 48


@runtime_checkable
class Draw(Protocol):
    """Generates samples, uint8 [n, height, width, 3], or [n, frames, height, width, 3] of videos.

    `seeds` are pairs as for `batching.keys`; `sources` are the images to edit, uint8 [height, width, 3], or None.
    """

    def __call__(
        self,
        prompts: list[str],
        seeds: list[tuple[int, int]],
        sources: list[np.ndarray] | None,
        size: Size,
    ) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """How files are generated.

    Attributes:
      sizes: (height, width) of a sample; of several, an edit uses the one nearest to its source's aspect ratio.
      frames: per video; 1 for images.
      fps: frames per second of a video file.
      seed: of all samples.
      batch: most samples per call.
      shard: this process's number i and the number n of processes: it generates every n-th prompt, from the i-th.
    """

    sizes: tuple[Size, ...]
    frames: int = 1
    fps: float = 8.0
    seed: int = 0
    batch: int = 16
    shard: tuple[int, int] = (0, 1)


def fill(
    benchmark: Benchmark,
    folder: str | Path,
    draw: Draw,
    plan: Plan,
    *,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    on_failure: OnFailure | None = None,
) -> tuple[int, int]:
    """Generates the files that are missing or invalid; valid files are kept.

    Next to `folder` it writes `folder.json` with the settings and, when all files exist, `folder.png`, a contact sheet.
    They are not in the folder because scorers read every file in it.

    Args:
      benchmark: the files.
      folder: the folder that its scorer will read; created if absent.
      draw: generates samples.
      plan: sizes, seed and batches.
      settings: everything else that determines the samples, stored in `folder.json`.
      progress: whether to show a bar.
      on_failure: called with the path of a file in the folder, and the reason, if its source cannot be read or its
        samples are not finite; the others go on. None raises the reason.

    Returns:
      The number of files generated, and of files kept.

    Raises:
      ValueError: the folder was generated with other settings; without `on_failure` also the reason of a failure.
    """
    folder, failed = Path(folder), _Failed(on_failure)
    claim(benchmark, folder, plan, settings or {})
    folder.mkdir(parents=True, exist_ok=True)
    number, shards = plan.shard
    with _workshop(folder) as workshop:
        for companion in benchmark.companions:
            path = folder / companion.path
            if companion.place % shards != number:
                continue
            if path.is_file() and not validate.wrong_companion(companion, path):
                continue
            if companion.picture is not None:
                with failed.one(companion.path):
                    workshop(path, image.to_rgb(companion.picture()).save)
            else:
                text = companion.text or ""
                workshop(path, lambda file, text=text: file.write_text(text, encoding="utf-8"))
        own = [piece for piece in benchmark.pieces if piece.place % shards == number]
        missing = [piece for piece in own if not sound(benchmark, piece, folder, plan)]
        kept, total = len(own) - len(missing), len(missing)
        bar = tqdm(total=len(own), initial=kept, unit="file", disable=not progress)
        with bar:
            for size, part in batches(missing, folder, plan, failed):
                for piece, samples in _samples(part, folder, draw, plan, size, failed):
                    workshop(folder / piece.path, _writer(samples, benchmark.clips, plan.fps))
                bar.update(len(part))
        if all((folder / piece.path).is_file() for piece in benchmark.pieces):
            workshop(_next_to(folder, ".png"), sheet(benchmark, folder).save)
    return total - sum(piece.path in failed.paths for piece in missing), kept


OnFailure = Callable[[str, Exception], object]
"""(path of a file in the folder, reason)"""


class _Failed:
    """The files that cannot be generated, by path."""

    def __init__(self, on_failure: OnFailure | None):
        self._on_failure, self.paths = on_failure, set[str]()

    def add(self, path: str, error: Exception) -> None:
        """Records a file; raises the reason if there is no `on_failure`."""
        if self._on_failure is None:
            raise error
        self.paths.add(path)
        self._on_failure(path, error)

    @contextlib.contextmanager
    def one(self, path: str) -> Iterator[None]:
        """Errors inside the block are those of this file."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # Decoders raise almost anything.
            self.add(path, error)


def claim(
    benchmark: Benchmark, folder: Path, plan: Plan, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes a folder's settings next to it, or checks that they are the same.

    Raises:
      ValueError: the settings differ, or the folder has files without settings.
    """
    decisive = {"sizes": [list(size) for size in plan.sizes], "seed": plan.seed}
    if benchmark.clips:
        decisive |= {"frames": plan.frames, "fps": plan.fps}
    decisive = {"benchmark": benchmark.name, **decisive, **settings}
    path = _next_to(folder, ".json")
    if path.is_file():
        before = old_names.stored_sampling(read_json(path))
        for key in (*decisive, *before):
            if before.get(key) != decisive.get(key):
                raise ValueError(
                    f"{folder} was generated with {key}={before.get(key)!r}, and this run has {decisive.get(key)!r} "
                    f"({path}); name another --output, or remove both"
                )
        return decisive
    if any((folder / piece.path).exists() for piece in benchmark.pieces):
        raise ValueError(
            f"{folder} has images, but no {path.name} next to it with their settings; name another --output"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    written.write_text(json.dumps(decisive, indent=2) + "\n", encoding="utf-8")
    written.replace(path)
    return decisive


def sound(benchmark: Benchmark, piece: Piece, folder: Path, plan: Plan) -> bool:
    """Whether a file exists and is valid."""
    path = folder / piece.path
    if not path.is_file():
        return False
    try:
        info = validate.examine(piece, path, benchmark.clips)
    except ValueError:
        return False
    return info.size in plan.sizes and info.frames == plan.frames


def batches(
    pieces: Sequence[Piece], folder: Path, plan: Plan, failed: _Failed | None = None
) -> Iterator[tuple[Size, list[Piece]]]:
    """Pieces of one size, at most `plan.batch` samples per batch.

    Prompts of similar length share a batch: few programs are compiled, and there is little padding.
    """
    by_size: dict[Size, list[Piece]] = {}
    failed = failed or _Failed(None)
    for piece in pieces:
        with failed.one(piece.path):
            by_size.setdefault(_nearest(piece, folder, plan.sizes), []).append(piece)
    for size, of_size in by_size.items():
        ordered = sorted(of_size, key=lambda piece: len(piece.prompt))
        step = max(1, plan.batch // len(ordered[0].samples))
        for start in range(0, len(ordered), step):
            yield size, ordered[start : start + step]


def sheet(benchmark: Benchmark, folder: Path) -> Image.Image:
    """A contact sheet of files spaced evenly over the benchmark; of videos, their middle frames."""
    step = -(-len(benchmark.pieces) // _MOST_ON_SHEET)
    sampled = benchmark.pieces[::step]
    thumbnails = [_thumbnail(folder / piece.path, benchmark.clips) for piece in sampled]
    return contact_sheet(np.stack(thumbnails), [piece.prompt for piece in sampled], scale=1)


def _nearest(piece: Piece, folder: Path, sizes: Sequence[Size]) -> Size:
    """The size nearest to the source's aspect ratio."""
    if piece.source is None or len(sizes) == 1:
        return sizes[0]
    with _source_errors(piece):
        source = image.file_size(folder / piece.source)
    ratio = source.width / source.height
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * ratio)))


def _samples(
    pieces: Sequence[Piece], folder: Path, draw: Draw, plan: Plan, size: Size, failed: _Failed
) -> list[tuple[Piece, np.ndarray]]:
    """The pieces that can be generated, each with its samples."""
    sources = None
    if pieces[0].source is not None:
        sound, sources = [], []
        for piece in pieces:
            with failed.one(piece.path):
                source = _source(piece, folder, size)
                sources += [source] * len(piece.samples)
                sound.append(piece)
        pieces = sound
    if not pieces:
        return []
    prompts = [piece.prompt for piece in pieces for _ in piece.samples]
    seeds = [pair for piece in pieces for pair in piece.seeds(plan.seed)]
    owner = [index for index, piece in enumerate(pieces) for _ in piece.samples]
    lost: set[int] = set()
    try:
        samples = draw(prompts, seeds, sources, size)
    except NotFiniteError as error:
        samples, lost = error.results, {owner[row] for row in error.rows}
        for index in sorted(lost):
            failed.add(pieces[index].path, NotFiniteError.of("sample"))
    ends = np.cumsum([len(piece.samples) for piece in pieces])[:-1]
    of_piece = zip(pieces, np.split(samples, ends), strict=True)
    return [pair for index, pair in enumerate(of_piece) if index not in lost]


@contextlib.contextmanager
def _source_errors(piece: Piece) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"the source of {piece.path} cannot be read: {error}") from error


def _source(piece: Piece, folder: Path, size: Size) -> UInt8[np.ndarray, "height width 3"]:
    """The image to edit, stretched to the size: scorers compare the edit with the whole source, so no crop."""
    assert piece.source is not None
    with _source_errors(piece):
        return image.stretch(image.load_rgb(folder / piece.source), image.Size(*size))


def _writer(samples: np.ndarray, clips: bool, fps: float) -> Callable[[Path], object]:
    """A function that writes the samples as one file."""
    if clips:
        return lambda path: write_video(path, samples[0], fps)
    grid = samples[0]
    if len(samples) > 1:
        rows = [np.concatenate(samples[i : i + 2], axis=1) for i in range(0, len(samples), 2)]
        grid = np.concatenate(rows)
    # WebP as Pillow writes it by default, as OneIG's own script does.
    return Image.fromarray(grid).save


@contextlib.contextmanager
def _workshop(folder: Path) -> Iterator[Callable[[Path, Callable[[Path], object]], None]]:
    """Writes files next to the folder and moves them in when they are complete."""
    workshop = folder.parent / f"{folder.name}.unfinished" / uuid.uuid4().hex
    workshop.mkdir(parents=True)

    def write(path: Path, writer: Callable[[Path], object]) -> None:
        unfinished = workshop / f"file{path.suffix}"
        writer(unfinished)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.replace(path)

    try:
        yield write
    finally:
        for left in workshop.iterdir():
            left.unlink()
        workshop.rmdir()
        with contextlib.suppress(OSError):  # Another process still uses it.
            workshop.parent.rmdir()


def _next_to(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _thumbnail(path: Path, clips: bool) -> np.ndarray:
    pixels = validate.pixels_of(path, clips)
    picture = Image.fromarray(pixels[len(pixels) // 2])
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    square = Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), (255, 255, 255))
    square.paste(picture, ((_THUMBNAIL - picture.width) // 2, (_THUMBNAIL - picture.height) // 2))
    return np.asarray(square)
