"""Feeds damaged media to everything that decodes files: `python tests/fuzz_media.py --seed=0 --minutes=20`.

Each case takes a small whole file, damages it (bytes flipped, cut, zeroed, inserted, repeated), and reads it as a
picture and as a clip. A decoder must return pixels or raise `Fault` with one line. Cases run in a worker process, so
that a crash and a hang are seen, counted, and do not end the run; memory is compared between the first and the last
cases. The last line is a summary as JSON; the exit status is 1 if anything but pixels and faults was seen.

A case depends on the seed and its number only: `--case=N` runs one again, and keeps its file.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import gc
import io
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# The tree of this file, and not an installed one of another tree.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

HANG = 60.0  # Seconds; a picture of 170 million pixels takes ten on a busy machine.
WARM, EVERY = 2000, 500  # Cases before memory is first compared, and between measurements.
FRAMES, SIDE = 6, 48


def _frames() -> list[np.ndarray]:
    y, x = np.mgrid[:SIDE, : SIDE + 16]
    return [
        np.stack([(4 * x + 20 * i) % 256, 5 * y % 256, (x * y + 9 * i) % 256], -1).astype(np.uint8)
        for i in range(FRAMES)
    ]


def _pictures() -> dict[str, bytes]:
    images = [Image.fromarray(frame) for frame in _frames()]
    first, files = images[0], {}

    def add(name: str, format: str, image: Image.Image = first, **options: Any) -> None:
        file = io.BytesIO()
        image.save(file, format, **options)
        files[name] = file.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rest: dict[str, Any] = {"save_all": True, "append_images": images[1:], "duration": 120}
    add("a.jpg", "JPEG", exif=exif, icc_profile=profile)
    add("progressive.jpg", "JPEG", progressive=True)
    add("cmyk.jpg", "JPEG", first.convert("CMYK"))
    add("a.png", "PNG", icc_profile=profile, exif=exif)
    add("alpha.png", "PNG", first.convert("RGBA"))
    add("palette.png", "PNG", first.convert("P"), transparency=3)
    add("deep.png", "PNG", Image.fromarray(np.asarray(first.convert("L")).astype(np.uint16) * 257))
    add("animated.png", "PNG", **rest)
    add("animated.gif", "GIF", **rest)
    add("a.gif", "GIF")
    add("a.webp", "WEBP", exif=exif, icc_profile=profile)
    add("animated.webp", "WEBP", **rest)
    add("a.bmp", "BMP")
    add("a.tif", "TIFF", exif=exif)
    add("lzw.tif", "TIFF", compression="tiff_lzw")
    add("float.tif", "TIFF", Image.fromarray(np.asarray(first.convert("L")) / np.float32(255)))
    add("a.ppm", "PPM")
    add("a.ico", "ICO")
    add("a.tga", "TGA")
    add("a.jp2", "JPEG2000")
    add("a.avif", "AVIF", exif=exif)
    add("animated.avif", "AVIF", **rest)
    return files


def _videos() -> dict[str, bytes]:
    import av

    files = {}
    for name, codec, pixels in (
        ("h264.mp4", "libx264", "yuv420p"),
        ("h264.mkv", "libx264", "yuv420p"),
        ("h264.ts", "libx264", "yuv420p"),
        ("h264.flv", "libx264", "yuv420p"),
        ("hevc.mp4", "libx265", "yuv420p10le"),
        ("mpeg4.avi", "mpeg4", "yuv420p"),
        ("mpeg2.mpg", "mpeg2video", "yuv420p"),
        ("wmv.wmv", "wmv2", "yuv420p"),
        ("vp9.webm", "libvpx-vp9", "yuv420p"),
        ("vp8.webm", "libvpx", "yuv420p"),
        ("av1.mp4", "libsvtav1", "yuv420p"),
        ("qtrle.mov", "qtrle", "argb"),
        ("mjpeg.mov", "mjpeg", "yuvj420p"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            try:
                with av.open(str(path), "w") as container:
                    stream: Any = container.add_stream(codec, rate=25)
                    stream.width, stream.height, stream.pix_fmt = SIDE + 16, SIDE, pixels
                    stream.options = {"g": "3", "x265-params": "log-level=none"}
                    for frame in _frames():
                        container.mux(
                            stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
                        )
                    container.mux(stream.encode())
            except (av.FFmpegError, ValueError) as error:  # An encoder that this build lacks.
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            files[name] = path.read_bytes()
    return files


def damage(content: bytes, chance: random.Random) -> bytes:
    """A damaged copy."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        if not data:
            break
        how = chance.randrange(7)
        # Headers are where most of a decoder's decisions are.
        most = len(data) if chance.random() < 0.5 else min(len(data), 256)
        at, length = chance.randrange(most), chance.randrange(1, 64)
        if how == 0:
            for _ in range(chance.randrange(1, 20)):
                data[chance.randrange(most)] = chance.randrange(256)
        elif how == 1:
            data[at] ^= 1 << chance.randrange(8)
        elif how == 2:
            del data[chance.randrange(len(data)) :]
        elif how == 3:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif how == 4:
            data[at : at + 4] = chance.choice(
                (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0")
            )
        elif how == 5:
            data[at:at] = chance.randbytes(length)
        else:
            data[at:at] = data[at : at + length] * chance.randrange(1, 8)
    return bytes(data)


def memory() -> int:
    """Resident bytes of this process, without what the allocator keeps of freed memory (glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def read(path: Path) -> list[str]:
    """What each reader made of a file: 'pixels', a kind of fault, or the description of an unexpected error."""
    from tuna_jax.data.invalid_examples import Fault
    from tuna_jax.data.media import image, video

    size = image.Size(32, 32)
    outcomes = []
    for call in (
        lambda: image.image_size(path, smallest=1),
        lambda: image.read_image(path, size, smallest=1),
        lambda: video.video_size(path, smallest=1),
        lambda: video.read_video(path, size, 5, smallest=1),
        lambda: video.read_video(path.read_bytes(), size, 5, fps=8.0, position=0.5, smallest=1),
        lambda: video.is_clip(path),
    ):
        try:
            call()
            outcomes.append("pixels")
        except Fault as fault:
            one_line = "\n" not in fault.reason
            outcomes.append(fault.kind if one_line else f"unexpected: two lines: {fault.reason!r}")
        except Exception as error:
            outcomes.append(f"unexpected: {type(error).__name__}: {error}"[:300])
    return outcomes


def work(seed: int, folder: Path) -> None:
    """The worker: reads numbers of cases, answers with a line of JSON each."""
    import warnings

    warnings.simplefilter("ignore")
    files = sorted(Path(folder, "whole").iterdir())
    for line in sys.stdin:
        number = int(line)
        chance = random.Random(f"{seed} {number}")
        source = files[number % len(files)]
        path = folder / f"case{source.suffix}"
        path.write_bytes(damage(source.read_bytes(), chance))
        outcomes, held = read(path), memory() if number % EVERY == EVERY - 1 else None
        print(json.dumps({"outcomes": outcomes, "memory": held}), flush=True)


class Worker:
    """A worker process."""

    def __init__(self, seed: int, folder: Path):
        command = [sys.executable, __file__, "--worker", str(folder), f"--seed={seed}"]
        # With one arena, memory that grows is memory that leaks.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        )

    def case(self, number: int) -> dict | str:
        """The answer of a case, or 'crash' or 'hang', after which the worker has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], HANG)
        line = self._process.stdout.readline() if ready else b""
        if line.endswith(b"\n"):
            return json.loads(line)
        self.end()
        return "crash" if ready else "hang"

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def main() -> int:
    """Runs the cases; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Feeds damaged media to everything that decodes files."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--case", type=int, help="run one case again, and keep its file here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.seed, Path(options.worker))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "whole").mkdir()
        files = _pictures() | _videos()
        for name, content in files.items():
            (folder / "whole" / name).write_bytes(content)
            for outcome in read(folder / "whole" / name):
                if outcome.startswith("unexpected"):
                    print(f"{name}, whole: {outcome}", file=sys.stderr)
        if options.case is not None:
            name = sorted(files)[options.case % len(files)]
            chance = random.Random(f"{options.seed} {options.case}")
            path = Path(f"case_{options.seed}_{options.case}{Path(name).suffix}")
            path.write_bytes(damage(files[name], chance))
            print(f"{name} -> {path}: {read(path)}")
            return 0
        counts: collections.Counter[str] = collections.Counter()
        first, last, slowest, number = 0, 0, (0.0, 0), 0
        curve: list[int] = []
        worker, begin = Worker(options.seed, folder), time.monotonic()
        while time.monotonic() - begin < 60 * options.minutes:
            start = time.monotonic()
            answer = worker.case(number)
            slowest = max(slowest, (round(time.monotonic() - start, 2), number))
            if isinstance(answer, str):
                counts[answer] += 1
                print(f"case {number}: {answer}", file=sys.stderr, flush=True)
                worker, first = Worker(options.seed, folder), 0
            else:
                last = answer["memory"] or last
                curve += [last >> 20] if answer["memory"] else []
                first = first or (last if number >= WARM else 0)
                for outcome in answer["outcomes"]:
                    counts[outcome.partition(":")[0]] += 1
                    if outcome.startswith("unexpected"):
                        print(f"case {number}: {outcome}", file=sys.stderr, flush=True)
            number += 1
        worker.end()
    summary = {
        "seed": options.seed,
        "minutes": options.minutes,
        "files": len(files),
        "cases": number,
        "outcomes": dict(sorted(counts.items())),
        "slowest": {"seconds": slowest[0], "case": slowest[1]},
        # The curve has up to twenty values at equal distances, of all workers: a leak is a line, a cache a plateau.
        "memory_MB": {
            "start": first >> 20,
            "end": last >> 20,
            "curve": curve[:: len(curve) // 20 + 1],
        },
    }
    print(json.dumps(summary))
    return int(any(counts[bad] for bad in ("crash", "hang", "unexpected")))


if __name__ == "__main__":
    sys.exit(main())
