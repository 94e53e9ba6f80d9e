"""Measures how fast each source of examples makes batches, compared with a plain loop that does the same work.

The plain loop for images opens a file with Pillow, scales and crops it, and stacks uint8 arrays; the one for clips
decodes with `av` from the first frame on and keeps the selected frames.

A rate is per core, in wall time, while all cores work: one worker process per core reads the files, and the plain loop
runs in as many processes. Latents, which need little more than reading, come from one thread of the run's own process
and are compared with one plain loop: passing them between processes, or threads that wait for Python's lock, would make
them slower. The library and the plain loop alternate, so that a busy machine affects both; reported are the median over
rounds and the median of the rounds' ratios. The library's window begins when all prefetched batches are consumed, and
the plain loop's when the library has prefetched all that it can and is idle.

The same is reported per second of processor time, of all processes together, which a busy machine changes less: it
counts the work, the first rate also the waiting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
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
from tuna_jax.data.media.video import import_av
from tuna_jax.data.mixture.mixture import Mixture, batches
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.mixture.tokenize_example import Task
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.open import open_source
from tuna_jax.data.sources.tfds import TfdsExamples
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.perf import input_formats as formats
from tuna_jax.perf.input_files import latent_examples, make_materials, prepare_tfds

GOAL, LATENT_GOAL = 0.9, 20.0
PACKAGE_GOAL, REDUCED_GOAL = 1.0, 1.5
_LARGE = 1024  # Pixels of the shorter side from which on reduced decoding is measured.
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_AHEAD = 8  # More batches per core than Grain keeps in all of its buffers.


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
        pictures: sizes of the JPEG files.
        size: of the images in a batch.
        count: files of each size.
        clip: size of the MP4's frames.
        clip_frames: number of frames of the MP4.
        frames: frames per example, 1 + 4k.
        rows: per batch.
        seconds: per window.
        rounds: windows of each source and of its plain loop.
        workers: processes that make batches of files, one core each; 0: threads of the measuring process.
        latent_workers: the same for latents.
        threads: of the measuring process, where there are no workers.
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
    """The rates of a source and of its plain loop, in examples per second and core.

    Attributes:
        source: name of the source.
        makers: the processes or threads that make its batches, such as '2 processes'.
        rate, plain: medians over the rounds.
        ratio: the median of the rounds' ratios.
        work_ratio: the same per second of processor time.
        goal: the least acceptable ratio.
        rounds: (rate, plain) of each round.
    """

    source: str
    makers: str
    rate: float
    plain: float
    ratio: float
    work_ratio: float
    goal: float
    rounds: tuple[tuple[float, float], ...]


def plain_picture(path: Path, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """Opens, scales and crops an image."""
    with Image.open(path) as opened:
        return formats.covered(opened.convert("RGB"), size)


def plain_clip(path: Path, size: Size, frames: int) -> UInt8[np.ndarray, "f h w 3"]:
    """Decodes from the beginning and keeps evenly spaced frames."""
    av = import_av(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        selected = set(np.linspace(0, stream.frames - 1, frames).round().astype(int).tolist())
        images = [
            formats.covered(Image.fromarray(frame.to_ndarray(format="rgb24")), size)
            for number, frame in enumerate(container.decode(stream))
            if number in selected
        ]
    return np.stack(images)


class _PlainLoops:
    """The plain loop in separate processes that run at the same time.

    Args:
        read: makes an example from a path.
        paths: are read in turn.
        rows: per batch.
        processes: number of processes.
    """

    def __init__(
        self, read: Callable[[Path], np.ndarray], paths: list[Path], rows: int, processes: int
    ):
        context = multiprocessing.get_context("spawn")
        start = (context.Barrier(processes),)
        self._pool = ProcessPoolExecutor(processes, context, _wait_at, start)
        self._loop, self._processes = functools.partial(_plain_rate, read, paths, rows), processes
        self.rate(0.0)  # starts the processes

    def rate(self, seconds: float) -> tuple[float, float]:
        """Examples per second of one process, over a window; and per second of processor time."""
        futures = [self._pool.submit(self._loop, seconds) for _ in range(self._processes)]
        rates = [future.result() for future in futures]
        by_clock, by_work = (statistics.mean(values) for values in zip(*rates, strict=True))
        return by_clock, by_work

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown()


_started: list[Any] = []  # In a process of the plain loop: the barrier for all of them.


def _wait_at(barrier: Any) -> None:
    _started[:] = [barrier]


def _plain_rate(
    read: Callable[[Path], np.ndarray], paths: list[Path], rows: int, seconds: float
) -> tuple[float, float]:
    """Examples per second of this process, and per second of its processor time."""
    endless = itertools.cycle(paths)

    def batch() -> np.ndarray:
        return np.stack([read(next(endless)) for _ in range(rows)])

    _started[0].wait()
    batch()
    return _rate(batch, rows, seconds)


def _rate(
    batch: Callable[[], Any], rows: int, seconds: float, cores: int = 1
) -> tuple[float, float]:
    """Examples per second and core, over whole batches, equally many per core, since those arrive at the same time; and
    per second of processor time of this process and its children."""
    begin, work, batches_made = time.perf_counter(), _processor_seconds(), 0
    while batches_made == 0 or time.perf_counter() - begin < seconds:
        for _ in range(cores):
            batch()
        batches_made += 1
    # A window may be shorter than a tick of the clock that counts work.
    work = max(_processor_seconds() - work, 1 / _TICKS)
    return rows * batches_made / (time.perf_counter() - begin), rows * batches_made * cores / work


def _processor_seconds() -> float:
    """Seconds of processor time of this process and its children by now; 0 where Linux's `/proc` is missing."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        try:
            with open(f"/proc/{child.pid}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / _TICKS
        except OSError:
            continue
    return total


@dataclasses.dataclass(frozen=True)
class _Case:
    """A source and the plain loop that it is compared with."""

    source: Any
    task: Task
    plain: Callable[[Path], np.ndarray]
    paths: list[Path]
    workers: int
    goal: float = GOAL
    reduced: bool = False

    def rounds(
        self, settings: Settings, cache: Path
    ) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
        """Endless pairs (library, plain loop) of examples per second and core, and per second of processor time."""
        is_image = self.task == "t2i"
        stream = ExampleStream(
            name="benchmark",
            task=self.task,
            source=self.source,
            weight=1.0,
            rows=settings.rows,
            lengths=(2048 if is_image else 8192,),
            sizes=(settings.size,),
            frames=1 if is_image else settings.frames,
            reduced_decode=self.reduced,
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
                    time.sleep(_AHEAD * settings.rows / rate[0])
                    yield rate, plain.rate(settings.seconds)

    def cores(self, settings: Settings) -> int:
        """Number of cores that make batches."""
        return self.workers or settings.threads

    def makers(self, settings: Settings) -> str:
        """The processes or threads that make the batches."""
        kind = "process" if self.workers else "thread"
        count = self.cores(settings)
        return f"{count} {kind}{'' if count == 1 else 'es' if self.workers else 's'}"


def measure(settings: Settings, folder: Path) -> list[Rate]:
    """Measures all sources, on files that are written below `folder`, which must be empty."""
    cache = folder / "cache"
    materials = make_materials(
        folder, settings.pictures, settings.count, settings.clip, settings.clip_frames
    )
    tfds = prepare_tfds(folder / "tfds", materials.pictures)
    picture = functools.partial(plain_picture, size=settings.size)
    clip = functools.partial(plain_clip, size=settings.size, frames=settings.frames)
    workers, cases = settings.workers, {}
    for size, paths in materials.pictures.items():
        manifest = Manifest(folder / f"{size}.jsonl")
        examples = TfdsExamples(tfds, f"of_{size}", {"image": "image", "caption": "caption"})
        latents = latent_examples(folder / f"latents_{size}", manifest, settings.size)
        sources = {
            "JSONL": manifest,
            "JSON array": formats.json_array(folder, size, paths),
            "TFDS": examples,
            "ArrayRecord": formats.array_record(folder, manifest, size),
        }
        if formats.has("pyarrow"):
            sources["Parquet"] = formats.parquet(folder, size, paths)
        for name, source in sources.items():
            cases[f"{name}, pictures {size}"] = _Case(source, "t2i", picture, paths, workers)
        tar = formats.tar(folder, size, paths)
        source = open_source(tar, index=cache)
        cases[f"WebDataset, pictures {size}"] = _Case(source, "t2i", picture, paths, workers)
        if formats.has("webdataset"):
            package = functools.partial(formats.webdataset_picture, size=settings.size)
            name = f"WebDataset : webdataset, {size}"
            cases[name] = _Case(source, "t2i", package, [tar], workers, PACKAGE_GOAL)
        if min(size.height, size.width) >= _LARGE:
            cases[f"JSONL reduced, pictures {size}"] = _Case(
                manifest, "t2i", picture, paths, workers, REDUCED_GOAL, reduced=True
            )
        cases[f"latents, pictures {size}"] = _Case(
            latents, "t2i", picture, paths, settings.latent_workers, LATENT_GOAL
        )
    clips = Manifest(folder / "clips.jsonl")
    cases[f"JSONL, clips {settings.clip}"] = _Case(clips, "t2v", clip, [materials.clip], workers)

    rates = []
    for name, case in tqdm(cases.items(), desc="sources", disable=None):
        with contextlib.closing(case.rounds(settings, cache)) as endless:
            measured = tuple(itertools.islice(endless, settings.rounds))
        rounds = tuple((library[0], loop[0]) for library, loop in measured)
        rate, plain = (statistics.median(rates_of) for rates_of in zip(*rounds, strict=True))
        by_clock, by_work = (
            statistics.median(library[kind] / loop[kind] for library, loop in measured)
            for kind in (0, 1)
        )
        makers = case.makers(settings)
        rates.append(Rate(name, makers, rate, plain, by_clock, by_work, case.goal, rounds))
    return rates


def table(rates: list[Rate]) -> str:
    """The rates as a table for a terminal."""
    lines = [
        f"{'source':<36}{'made by':>13}{'rows/s per core':>16}{'plain loop':>12}{'ratio':>8}{'of work':>9}{'goal':>7}"
    ]
    for rate in rates:
        verdict = "" if rate.ratio >= rate.goal else "  short"
        lines.append(
            f"{rate.source:<36}{rate.makers:>13}{rate.rate:>16.1f}{rate.plain:>12.1f}{rate.ratio:>8.2f}"
            f"{rate.work_ratio:>9.2f}{rate.goal:>7.1f}{verdict}"
        )
    return "\n".join(lines)


def record(rates: list[Rate], settings: Settings) -> dict[str, Any]:
    """The rates and the machine that they were measured on, for JSON."""
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": cores(),
            "python": platform.python_version(),
            "pillow": Image.__version__,
        },
        "settings": dataclasses.asdict(settings),
        "rates": [dataclasses.asdict(rate) for rate in rates],
    }
