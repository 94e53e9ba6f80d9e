"""Draws a benchmark's files: each on its own, so that a run can be killed, resumed and shared out.

A sample depends on its prompt's place in the prompt file, on its number and on the seed: not on the batch, on the
process, nor on what else is there already (up to rounding).
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
from tuna_jax.utils.image_grid import contact_sheet

_THUMBNAIL, _MOST_ON_SHEET = 128, 48


@runtime_checkable
class Draw(Protocol):
    """Draws samples, uint8 [n, height, width, 3], or [n, frames, height, width, 3] of clips.

    `seeds` are pairs as `rows.keys` takes them; `sources` the pictures to change, uint8 [height, width, 3], or None.
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
    """How files are drawn.

    Attributes:
      sizes: (height, width) of a sample; of several, an edit takes the one whose shape is nearest to its source's.
      frames: of a clip; 1 of pictures.
      fps: frames a second of a written clip.
      seed: of all samples.
      batch: most samples at once.
      shard: this process's number and how many there are: it takes every so many-th prompt.
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
) -> tuple[int, int]:
    """Draws the files that are missing or broken; what is there and sound is kept.

    Beside `folder` it writes `folder.json`, how it was drawn, and `folder.png`, a contact sheet, when all is there:
    scorers list folders, and would take what lies in them.

    Args:
      benchmark: what is wanted.
      folder: what its scorer will read; made if absent.
      draw: draws samples.
      plan: how.
      settings: what else decides how samples look, kept in `folder.json`.
      progress: whether to show a bar.

    Returns:
      How many files were drawn, and how many kept.

    Raises:
      ValueError: the folder was drawn with other settings, or a source cannot be read.
    """
    folder = Path(folder)
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
                workshop(path, image.to_rgb(companion.picture()).save)
            else:
                text = companion.text or ""
                workshop(path, lambda file, text=text: file.write_text(text, encoding="utf-8"))
        own = [piece for piece in benchmark.pieces if piece.place % shards == number]
        wanted = [piece for piece in own if not sound(benchmark, piece, folder, plan)]
        kept, total = len(own) - len(wanted), len(wanted)
        bar = tqdm(total=len(own), initial=kept, unit="file", disable=not progress)
        with bar:
            for size, some in batches(wanted, folder, plan):
                made = _samples(some, folder, draw, plan, size)
                for piece, samples in zip(some, made, strict=True):
                    workshop(folder / piece.path, _writer(samples, benchmark.clips, plan.fps))
                bar.update(len(some))
        if all((folder / piece.path).is_file() for piece in benchmark.pieces):
            workshop(_beside(folder, ".png"), sheet(benchmark, folder).save)
    return total, kept


def claim(
    benchmark: Benchmark, folder: Path, plan: Plan, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes how a folder is drawn beside it, or checks that it was drawn so.

    Raises:
      ValueError: it was drawn otherwise, or nobody knows how.
    """
    decisive = {"sizes": [list(size) for size in plan.sizes], "seed": plan.seed}
    if benchmark.clips:
        decisive |= {"frames": plan.frames, "fps": plan.fps}
    decisive = {"benchmark": benchmark.name, **decisive, **settings}
    path = _beside(folder, ".json")
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for key in (*decisive, *before):
            if before.get(key) != decisive.get(key):
                raise ValueError(
                    f"{folder} was drawn with {key} {before.get(key)!r}, and now {decisive.get(key)!r} is asked for "
                    f"({path}); name another --output, or remove both"
                )
        return decisive
    if any((folder / piece.path).exists() for piece in benchmark.pieces):
        raise ValueError(
            f"{folder} has pictures, and no {path.name} beside it says how they were drawn; name another --output"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    written.write_text(json.dumps(decisive, indent=2) + "\n", encoding="utf-8")
    written.replace(path)
    return decisive


def sound(benchmark: Benchmark, piece: Piece, folder: Path, plan: Plan) -> bool:
    """Whether a file is there and as it should be."""
    path = folder / piece.path
    if not path.is_file():
        return False
    try:
        found = validate.examine(piece, path, benchmark.clips)
    except ValueError:
        return False
    return found.size in plan.sizes and found.frames == plan.frames


def batches(
    pieces: Sequence[Piece], folder: Path, plan: Plan
) -> Iterator[tuple[Size, list[Piece]]]:
    """Pieces of one size, at most `plan.batch` samples together.

    Prompts of like length come together: few programs are compiled, and little is padding.
    """
    by_size: dict[Size, list[Piece]] = {}
    for piece in pieces:
        by_size.setdefault(_nearest(piece, folder, plan.sizes), []).append(piece)
    for size, some in by_size.items():
        some = sorted(some, key=lambda piece: len(piece.prompt))
        step = max(1, plan.batch // len(some[0].samples))
        for start in range(0, len(some), step):
            yield size, some[start : start + step]


def sheet(benchmark: Benchmark, folder: Path) -> Image.Image:
    """A contact sheet of files spread evenly over the benchmark; of clips, their middle frames."""
    step = -(-len(benchmark.pieces) // _MOST_ON_SHEET)
    shown = benchmark.pieces[::step]
    thumbnails = [_thumbnail(folder / piece.path, benchmark.clips) for piece in shown]
    return contact_sheet(np.stack(thumbnails), [piece.prompt for piece in shown], scale=1)


def _nearest(piece: Piece, folder: Path, sizes: Sequence[Size]) -> Size:
    """The size whose shape is nearest to the source's."""
    if piece.source is None or len(sizes) == 1:
        return sizes[0]
    with _open_source(piece, folder) as opened:
        source = image.upright_size(opened)
    ratio = source.width / source.height
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * ratio)))


def _samples(
    pieces: Sequence[Piece], folder: Path, draw: Draw, plan: Plan, size: Size
) -> list[np.ndarray]:
    """The samples of each piece."""
    prompts = [piece.prompt for piece in pieces for _ in piece.samples]
    seeds = [pair for piece in pieces for pair in piece.seeds(plan.seed)]
    sources = None
    if pieces[0].source is not None:
        sources = [_source(piece, folder, size) for piece in pieces for _ in piece.samples]
    drawn = draw(prompts, seeds, sources, size)
    ends = np.cumsum([len(piece.samples) for piece in pieces])[:-1]
    return np.split(drawn, ends)


def _open_source(piece: Piece, folder: Path) -> Image.Image:
    assert piece.source is not None
    try:
        return Image.open(folder / piece.source)
    except OSError as error:
        raise ValueError(
            f"the source of {piece.path} cannot be read: {folder / piece.source}: {error}"
        ) from error


def _source(piece: Piece, folder: Path, size: Size) -> UInt8[np.ndarray, "height width 3"]:
    """The picture to change, stretched to the size: scorers lay the edit over the whole source, so no crop."""
    with _open_source(piece, folder) as opened:
        return image.stretch(image.to_rgb(opened), image.Size(*size))


def _writer(samples: np.ndarray, clips: bool, fps: float) -> Callable[[Path], object]:
    """What writes the samples as one file."""
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
    """Writes files beside the folder and moves them in whole: what is in it was never half written."""
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
        with contextlib.suppress(OSError):  # another process is in it still
            workshop.parent.rmdir()


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _thumbnail(path: Path, clips: bool) -> np.ndarray:
    pixels = validate.pixels_of(path, clips)
    picture = Image.fromarray(pixels[len(pixels) // 2])
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    square = Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), (255, 255, 255))
    square.paste(picture, ((_THUMBNAIL - picture.width) // 2, (_THUMBNAIL - picture.height) // 2))
    return np.asarray(square)
