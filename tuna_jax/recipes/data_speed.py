"""How fast each source of rows makes batches, beside a plain loop that does the same work without the library.

The plain loop of pictures opens a file with Pillow, scales and crops it, and stacks uint8 arrays; that of clips decodes
with `av` from the first frame on, and keeps the frames that are wanted. Both run in rounds that take turns, so that a
busy machine hits both; what is told is the median over rounds, and the ratio the median of the rounds' ratios.

A rate is of a steady state: the clock begins when a batch has just been handed over, and ends when another one has.
The clock is the processor time of this process, all of its threads together: what one core does in a second, whatever
else the machine is doing. With worker processes it is the time on the wall, shared by their number of cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from tuna_jax.data import pipeline
from tuna_jax.data.clips import write_clip
from tuna_jax.data.latent_encoding import Encoding, encode_manifest
from tuna_jax.data.latent_records import LatentRows
from tuna_jax.data.layouts import Task
from tuna_jax.data.manifests import Manifest
from tuna_jax.data.media import Size
from tuna_jax.data.mixture import Mixture, batches
from tuna_jax.data.streams import RowStream
from tuna_jax.data.tfds_rows import TfdsRows
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.data.video import import_av

GOAL, LATENT_GOAL = 0.9, 20.0
LATENT_CHANNELS = 48  # as the Wan 2.2 VAE has
WORDS = "a photograph of noise in many colours, of the kind that benchmarks are fond of"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        pictures: sizes of the JPEG files.
        size: of a batch's pictures.
        count: files of each size.
        clip: size of the MP4's frames. clip_frames: how many it has. frames: how many a row takes, 1 + 4k.
        rows: a batch. seconds: that each source is timed in each round. rounds: how often the sources take turns.
        threads: that make batches, in each process that does. workers: processes; 0: the measuring one.
    """

    pictures: tuple[Size, ...] = (Size(480, 640), Size(1024, 1024))
    size: Size = Size(512, 512)
    count: int = 32
    clip: Size = Size(480, 640)
    clip_frames: int = 100
    frames: int = 17
    rows: int = 8
    seconds: float = 2.0
    rounds: int = 5
    threads: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        for key in ("count", "rows", "rounds", "threads"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it is at least 1")

    @property
    def cores(self) -> int:
        """Cores that make batches; the plain loop uses one."""
        return self.threads * max(self.workers, 1)


@dataclasses.dataclass(frozen=True)
class Rate:
    """A source beside its plain loop, in rows a second of one core.

    Attributes:
        source: what is measured.
        rate, plain: medians over the rounds.
        ratio: the median of the rounds' ratios.
        goal: the least ratio that will do.
        rounds: (rate, plain) of each.
    """

    source: str
    rate: float
    plain: float
    ratio: float
    goal: float
    rounds: tuple[tuple[float, float], ...]


def noise_picture(size: Size, random: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Colour noise with a spectrum that falls like a photograph's, 1/f: so that JPEG has about as much to do."""
    total = np.zeros((size.height, size.width, 3), np.float32)
    side = 4
    while side <= min(size.height, size.width):
        # Photographs have as much contrast at every scale, and most of it in brightness.
        grain = random.integers(0, 256, (side, side, 1), np.uint8) // 4 * 3
        grain = grain + random.integers(0, 64, (side, side, 3), np.uint8)
        grown = Image.fromarray(grain).resize((size.width, size.height), Image.Resampling.BICUBIC)
        total += np.asarray(grown, np.float32) - 127.5
        side *= 2
    return np.clip(128 + total * (45 / total.std()), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Materials:
    """Files to read: per picture size the paths, and a clip."""

    folder: Path
    pictures: dict[Size, list[Path]]
    clip: Path


def make_materials(folder: Path, settings: Settings) -> Materials:
    """Writes the JPEG files (quality 90), their manifests, and the MP4 (H.264)."""
    random = np.random.default_rng(0)
    pictures: dict[Size, list[Path]] = {}
    for size in settings.pictures:
        (folder / str(size)).mkdir(parents=True)
        pictures[size] = [folder / str(size) / f"{i}.jpg" for i in range(settings.count)]
        for path in pictures[size]:
            Image.fromarray(noise_picture(size, random)).save(path, quality=90)
        rows = [{"image": f"{size}/{path.name}", "caption": WORDS} for path in pictures[size]]
        _write_manifest(folder / f"{size}.jsonl", rows)
    clip, size = folder / "clip.mp4", settings.clip
    wide = noise_picture(Size(size.height, size.width + 2 * settings.clip_frames), random)
    moving = [wide[:, 2 * i : 2 * i + size.width] for i in range(settings.clip_frames)]
    write_clip(clip, np.stack(moving), fps=25.0)
    _write_manifest(
        folder / "clips.jsonl", [{"video": "clip.mp4", "caption": WORDS}] * settings.count
    )
    return Materials(folder, pictures, clip)


def _write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _prepare_tfds(folder: Path, pictures: dict[Size, list[Path]]) -> Path:
    """The same pictures as a data set of TFDS, prepared as ArrayRecord, with a split for each size; its folder."""
    import tensorflow_datasets as tfds  # takes seconds

    class TunaBenchmark(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The benchmark's pictures."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            image, text = tfds.features.Image(encoding_format="jpeg"), tfds.features.Text()
            features = tfds.features.FeaturesDict({"image": image, "caption": text})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager
            return {
                f"of_{size}": self._generate_examples(paths) for size, paths in pictures.items()
            }

        def _generate_examples(self, paths: list[Path]) -> Iterator[Any]:
            for i, path in enumerate(paths):
                yield i, {"image": io.BytesIO(path.read_bytes()), "caption": WORDS}

    tfds.disable_progress_bar()
    builder = TunaBenchmark(data_dir=folder, file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # it would tell of downloads
        builder.download_and_prepare()
    return Path(builder.data_path)


def _latent_rows(folder: Path, manifest: Manifest, settings: Settings) -> LatentRows:
    """The same pictures as latents of a 48-channel VAE: random numbers, for how fast they are read is asked."""
    random = np.random.default_rng(0)

    def encode(clips: UInt8[np.ndarray, "n f h w 3"]) -> tuple[np.ndarray, np.ndarray]:
        n, frames, height, width, _ = clips.shape
        shape = (n, 1 + (frames - 1) // 4, height // 16, width // 16, LATENT_CHANNELS)
        mean = random.standard_normal(shape, np.float32)
        return mean, np.full_like(mean, 0.05)

    encoding = Encoding(vae_fingerprint="benchmark", sizes=(settings.size,))
    encode_manifest(manifest, folder, encode, encoding, progress=False)
    return LatentRows(folder)


def plain_picture(path: Path, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """Open, scale, crop."""
    with Image.open(path) as opened:
        return _covered(opened.convert("RGB"), size)


def _covered(image: Image.Image, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    scale = min(image.width / size.width, image.height / size.height)
    width, height = size.width * scale, size.height * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return np.asarray(
        image.resize((size.width, size.height), Image.Resampling.BICUBIC, box=box), np.uint8
    )


def plain_clip(path: Path, size: Size, frames: int) -> UInt8[np.ndarray, "f h w 3"]:
    """Decode from the beginning, keep the frames that lie evenly."""
    av = import_av(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        wanted = set(np.linspace(0, stream.frames - 1, frames).round().astype(int).tolist())
        taken = [
            _covered(Image.fromarray(frame.to_ndarray(format="rgb24")), size)
            for number, frame in enumerate(container.decode(stream))
            if number in wanted
        ]
    return np.stack(taken)


Batches = Callable[[], Iterator[Any]]


def _plain_batches(read: Callable[[Path], np.ndarray], paths: list[Path], rows: int) -> Batches:
    def run() -> Iterator[np.ndarray]:
        endless = itertools.cycle(paths)
        while True:
            yield np.stack([read(next(endless)) for _ in range(rows)])

    return run


def _library_batches(source: Any, task: Task, settings: Settings, cache: Path) -> Batches:
    stream = RowStream(
        name="benchmark",
        task=task,
        source=source,
        weight=1.0,
        rows=settings.rows,
        lengths=(2048 if task == "t2i" else 8192,),
        sizes=(settings.size,),
        frames=settings.frames if task == "t2v" else 1,
    )
    mixture = Mixture([stream], Tokenizer(), directory=cache)

    def run() -> Iterator[Any]:
        ahead = 2 * settings.cores
        return pipeline.iterate(
            batches(mixture), threads=settings.threads, ahead=ahead, workers=settings.workers
        )

    return run


def _rate(run: Batches, settings: Settings, cores: int) -> float:
    """Rows a second and core; the batches are made by `cores`."""
    clock, shared = (time.perf_counter, cores) if settings.workers else (time.process_time, 1)
    iterator = run()
    for _ in range(
        1 + 2 * cores
    ):  # what was made ahead is gone then, and the maker is never waited for
        next(iterator)
    begin, made = clock(), 0
    while made == 0 or clock() - begin < settings.seconds:
        next(iterator)
        made += 1
    seconds = clock() - begin
    iterator.close()  # pyright: ignore[reportAttributeAccessIssue]  generators and Grain's have it
    while any(thread.name.startswith("grain-prefetch") for thread in threading.enumerate()):
        time.sleep(0.01)  # a batch that was begun is made to its end: not on the next one's account
    return settings.rows * made / seconds / shared


def measure(settings: Settings, folder: Path) -> list[Rate]:
    """All sources, on files that are written below `folder`, which must be empty."""
    made, cache = make_materials(folder, settings), folder / "cache"
    tfds = _prepare_tfds(folder / "tfds", made.pictures)
    plain: dict[str, Batches] = {}
    library: dict[str, tuple[Batches, str, float]] = {}  # with the plain loop's name, and the goal
    for size, paths in made.pictures.items():
        loop = f"pictures {size}"
        plain[loop] = _plain_batches(
            lambda path: plain_picture(path, settings.size), paths, settings.rows
        )
        manifest = Manifest(folder / f"{size}.jsonl")
        sources = {
            "JSONL": (manifest, GOAL),
            "TFDS": (TfdsRows(tfds, f"of_{size}", {"image": "image", "caption": "caption"}), GOAL),
            "latents": (_latent_rows(folder / f"latents_{size}", manifest, settings), LATENT_GOAL),
        }
        for name, (source, goal) in sources.items():
            run = _library_batches(source, "t2i", settings, cache)
            library[f"{name}, pictures {size}"] = run, loop, goal
    plain["clips"] = _plain_batches(
        lambda path: plain_clip(path, settings.size, settings.frames), [made.clip], settings.rows
    )
    clips = _library_batches(Manifest(folder / "clips.jsonl"), "t2v", settings, cache)
    library[f"JSONL, clips {settings.clip}"] = clips, "clips", GOAL

    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in library}
    turns = tqdm(range(settings.rounds), desc="rounds", disable=None)
    for _ in turns:
        base = {name: _rate(run, settings, 1) for name, run in plain.items()}
        for name, (run, loop, _) in library.items():
            rounds[name].append((_rate(run, settings, settings.cores), base[loop]))
    return [
        Rate(
            name,
            statistics.median(rate for rate, _ in rounds[name]),
            statistics.median(base for _, base in rounds[name]),
            statistics.median(rate / base for rate, base in rounds[name]),
            goal,
            tuple(rounds[name]),
        )
        for name, (_, _, goal) in library.items()
    ]


def table(rates: list[Rate]) -> str:
    """The rates for a person."""
    lines = [f"{'source':<30}{'rows/s a core':>14}{'plain loop':>12}{'ratio':>8}{'goal':>7}"]
    for one in rates:
        verdict = "" if one.ratio >= one.goal else "  short"
        lines.append(
            f"{one.source:<30}{one.rate:>14.1f}{one.plain:>12.1f}{one.ratio:>8.2f}{one.goal:>7.1f}{verdict}"
        )
    return "\n".join(lines)


def record(rates: list[Rate], settings: Settings) -> dict[str, Any]:
    """The rates with what they were measured on, for JSON."""
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "python": platform.python_version(),
            "pillow": Image.__version__,
        },
        "settings": dataclasses.asdict(settings),
        "rates": [dataclasses.asdict(one) for one in rates],
    }
