"""How fast each source of rows makes batches, beside a plain loop that does the same work without the library.

The plain loop of pictures opens a file with Pillow, scales and crops it, and stacks uint8 arrays; that of clips decodes
with `av` from the first frame on, and keeps the frames that are wanted.

A rate is of one core, by the clock on the wall, while all the cores in question work: a worker process a core reads
the files, and the plain loop runs in as many processes at once. Latents, which are hardly more than read, come from one
thread of the run's own process, beside one plain loop: handed over between processes, or made by threads that wait for
Python's lock, they would be slower. Library and plain loop take turns, so that a busy machine hits both; what is told
is the median over rounds, and the ratio the median of the rounds' ratios. The library's window begins when what was
made ahead is gone, and the plain loop's when the library has made ahead what it can and rests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from tuna_jax.data import loader
from tuna_jax.data.media.image import Size
from tuna_jax.data.media.video import import_av, write_video
from tuna_jax.data.mixture.mixture import Mixture, batches
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.mixture.tokenize_example import Task
from tuna_jax.data.precompute_latents import Encoding, encode_manifest
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.precomputed_latents import LatentExamples
from tuna_jax.data.sources.tfds import TfdsExamples
from tuna_jax.data.text.tokenizer import Tokenizer

GOAL, LATENT_GOAL = 0.9, 20.0
_AHEAD = 8  # more batches than Grain keeps ready on any core, in all its buffers together
LATENT_CHANNELS = 48  # as the Wan 2.2 VAE has
WORDS = "a photograph of noise in many colours, of the kind that benchmarks are fond of"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        pictures: sizes of the JPEG files.
        size: of a batch's pictures.
        count: files of each size.
        clip: size of the MP4's frames. clip_frames: how many it has. frames: how many a row takes, 1 + 4k.
        rows: a batch. seconds: a window. rounds: windows of each source, and of the plain loop beside it.
        workers: processes that make batches of files, on a core each; 0: threads of the measuring process do.
        latent_workers: the same for latents.
        threads: of the measuring process, where no worker makes batches.
    """

    pictures: tuple[Size, ...] = (Size(480, 640), Size(1024, 1024))
    size: Size = Size(512, 512)
    count: int = 32
    clip: Size = Size(480, 640)
    clip_frames: int = 100
    frames: int = 17
    rows: int = 8
    seconds: float = 2.0
    rounds: int = 11
    workers: int = dataclasses.field(default_factory=cores)
    latent_workers: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        least = {
            "count": 1,
            "rows": 1,
            "rounds": 1,
            "threads": 1,
            "workers": 0,
            "latent_workers": 0,
        }
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ValueError(f"{key} is {getattr(self, key)}; it is at least {value}")


@dataclasses.dataclass(frozen=True)
class Rate:
    """A source beside its plain loop, in rows a second of one core.

    Attributes:
        source: what is measured.
        makers: what makes its batches, '2 processes'.
        rate, plain: medians over the rounds.
        ratio: the median of the rounds' ratios.
        goal: the least ratio that will do.
        rounds: (rate, plain) of each.
    """

    source: str
    makers: str
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
    write_video(clip, np.stack(moving), fps=25.0)
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


def _latent_rows(folder: Path, manifest: Manifest, settings: Settings) -> LatentExamples:
    """The same pictures as latents of a 48-channel VAE: random numbers, for how fast they are read is asked."""
    random = np.random.default_rng(0)

    def encode(clips: UInt8[np.ndarray, "n f h w 3"]) -> tuple[np.ndarray, np.ndarray]:
        n, frames, height, width, _ = clips.shape
        shape = (n, 1 + (frames - 1) // 4, height // 16, width // 16, LATENT_CHANNELS)
        mean = random.standard_normal(shape, np.float32)
        return mean, np.full_like(mean, 0.05)

    encoding = Encoding(vae_fingerprint="benchmark", sizes=(settings.size,))
    encode_manifest(manifest, folder, encode, encoding, progress=False)
    return LatentExamples(folder)


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


class _PlainLoops:
    """The plain loop in processes of its own, which work at the same time when they are asked.

    Args:
        read: makes a row of a path.
        paths: that it takes in turn.
        rows: a batch.
        processes: how many.
    """

    def __init__(
        self, read: Callable[[Path], np.ndarray], paths: list[Path], rows: int, processes: int
    ):
        context = multiprocessing.get_context("spawn")
        start = (context.Barrier(processes),)
        self._pool = ProcessPoolExecutor(processes, context, _wait_at, start)
        self._loop, self._processes = functools.partial(_plain_rate, read, paths, rows), processes
        self.rate(0.0)  # they are there then

    def rate(self, seconds: float) -> float:
        """Rows a second of one process, over a window."""
        asked = [self._pool.submit(self._loop, seconds) for _ in range(self._processes)]
        return statistics.mean(one.result() for one in asked)

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown()


_started: list[Any] = []  # in a process of the plain loop: where it waits for the others


def _wait_at(barrier: Any) -> None:
    _started[:] = [barrier]


def _plain_rate(
    read: Callable[[Path], np.ndarray], paths: list[Path], rows: int, seconds: float
) -> float:
    """Rows a second of this process."""
    endless = itertools.cycle(paths)

    def batch() -> np.ndarray:
        return np.stack([read(next(endless)) for _ in range(rows)])

    _started[0].wait()
    batch()
    return _rate(batch, rows, seconds)


def _rate(batch: Callable[[], Any], rows: int, seconds: float, cores: int = 1) -> float:
    """Rows a second of one core, over whole batches: equally many of each core, for they come at the same time."""
    begin, made = time.perf_counter(), 0
    while made == 0 or time.perf_counter() - begin < seconds:
        for _ in range(cores):
            batch()
        made += 1
    return rows * made / (time.perf_counter() - begin)


@dataclasses.dataclass(frozen=True)
class _Case:
    """A source and what it is measured beside."""

    source: Any
    task: Task
    plain: Callable[[Path], np.ndarray]
    paths: list[Path]
    workers: int
    goal: float = GOAL

    def rounds(self, settings: Settings, cache: Path) -> Iterator[tuple[float, float]]:
        """(library, plain loop), in rows a second of one core, endlessly."""
        picture = self.task == "t2i"
        stream = ExampleStream(
            name="benchmark",
            task=self.task,
            source=self.source,
            weight=1.0,
            rows=settings.rows,
            lengths=(2048 if picture else 8192,),
            sizes=(settings.size,),
            frames=1 if picture else settings.frames,
        )
        dataset = batches(Mixture([stream], Tokenizer(), directory=cache))
        used, threads = self.cores(settings), 1 if self.workers else settings.threads
        library = loader.iterate(dataset, threads=threads, ahead=2 * used, workers=self.workers)
        with contextlib.closing(library):
            plain = _PlainLoops(self.plain, self.paths, settings.rows, used)
            with contextlib.closing(plain):
                while True:
                    for _ in range(_AHEAD * used):
                        next(library)
                    rate = _rate(lambda: next(library), settings.rows, settings.seconds, used)
                    time.sleep(_AHEAD * settings.rows / rate)
                    yield rate, plain.rate(settings.seconds)

    def cores(self, settings: Settings) -> int:
        """That make batches."""
        return self.workers or settings.threads

    def makers(self, settings: Settings) -> str:
        """What makes the batches."""
        kind = "process" if self.workers else "thread"
        many = self.cores(settings)
        return f"{many} {kind}{'' if many == 1 else 'es' if self.workers else 's'}"


def measure(settings: Settings, folder: Path) -> list[Rate]:
    """All sources, on files that are written below `folder`, which must be empty."""
    made, cache = make_materials(folder, settings), folder / "cache"
    tfds = _prepare_tfds(folder / "tfds", made.pictures)
    picture = functools.partial(plain_picture, size=settings.size)
    clip = functools.partial(plain_clip, size=settings.size, frames=settings.frames)
    workers, cases = settings.workers, {}
    for size, paths in made.pictures.items():
        manifest = Manifest(folder / f"{size}.jsonl")
        examples = TfdsExamples(tfds, f"of_{size}", {"image": "image", "caption": "caption"})
        latents = _latent_rows(folder / f"latents_{size}", manifest, settings)
        for name, source in {"JSONL": manifest, "TFDS": examples}.items():
            cases[f"{name}, pictures {size}"] = _Case(source, "t2i", picture, paths, workers)
        cases[f"latents, pictures {size}"] = _Case(
            latents, "t2i", picture, paths, settings.latent_workers, LATENT_GOAL
        )
    clips = Manifest(folder / "clips.jsonl")
    cases[f"JSONL, clips {settings.clip}"] = _Case(clips, "t2v", clip, [made.clip], workers)

    rates = []
    for name, case in tqdm(cases.items(), desc="sources", disable=None):
        with contextlib.closing(case.rounds(settings, cache)) as endless:
            rounds = tuple(itertools.islice(endless, settings.rounds))
        rate, plain = (statistics.median(side) for side in zip(*rounds, strict=True))
        ratio = statistics.median(mine / base for mine, base in rounds)
        rates.append(Rate(name, case.makers(settings), rate, plain, ratio, case.goal, rounds))
    return rates


def table(rates: list[Rate]) -> str:
    """The rates for a person."""
    lines = [
        f"{'source':<30}{'made by':>13}{'rows/s a core':>15}{'plain loop':>12}{'ratio':>8}{'goal':>7}"
    ]
    for one in rates:
        verdict = "" if one.ratio >= one.goal else "  short"
        lines.append(
            f"{one.source:<30}{one.makers:>13}{one.rate:>15.1f}{one.plain:>12.1f}{one.ratio:>8.2f}"
            f"{one.goal:>7.1f}{verdict}"
        )
    return "\n".join(lines)


def record(rates: list[Rate], settings: Settings) -> dict[str, Any]:
    """The rates with what they were measured on, for JSON."""
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": cores(),
            "python": platform.python_version(),
            "pillow": Image.__version__,
        },
        "settings": dataclasses.asdict(settings),
        "rates": [dataclasses.asdict(one) for one in rates],
    }
