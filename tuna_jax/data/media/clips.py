"""One way to open a clip, whatever holds it: a container that FFmpeg reads, an animated picture, a folder, an array.

`open_clip` decides by content. A `Clip` knows when each frame is shown, and decodes those that are requested.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.color import Hdr
from tuna_jax.data.media.containers import ContainerClip, import_av, moving_pictures, open_container
from tuna_jax.data.media.formats import HEAD, explain, is_hidden, sniff
from tuna_jax.data.media.image import (
    Pixels,
    Size,
    decoding_errors,
    describe,
    draft,
    from_array,
    image_size,
    open_medium,
    open_picture,
    to_rgb,
    upright_size,
)
from tuna_jax.data.media.video_frames import Frame
from tuna_jax.utils.buckets import BucketFile

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Names that count as videos where there is no content to look at."""

_FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Canvas of an animated picture (8K has 33 million), and of all its frames: each is decoded to reach the next.
_MOST_PIXELS, _MOST_IN_ALL = 1 << 25, 1 << 32
_SHORTEST = 10  # Milliseconds; browsers show animated pictures that ask for less for 100.


class Clip(Protocol):
    """Frames that can be chosen from."""

    @property
    def starts(self) -> Sequence[float]:
        """When each frame appears, in seconds, ascending; in arrays and folders, its number."""
        ...

    @property
    def end(self) -> float:
        """When the last frame disappears."""
        ...

    @property
    def timed(self) -> bool:
        """Whether the times are seconds."""
        ...

    def size(self) -> Size:
        """The size at which the first frame is shown."""
        ...

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The frames that are on screen at these starts. `indices` ascend, each once.

        Raises:
            FewerFrames: a clip without time stamps has fewer frames than packets; `number` takes their count.
        """
        ...

    def number(self, count: int) -> None:
        """Corrects the number of frames of a clip without time stamps."""
        ...


def is_clip(medium: Path | BucketFile | bytes) -> bool:
    """Whether a file is a video, an animated picture or a folder of frames, rather than a picture: by its content.

    A file that does not exist is judged by its suffix. Sound counts as a clip: opening it says that it has no frames.
    """
    if isinstance(medium, Path) and not medium.is_file():
        return medium.is_dir() or medium.suffix.lower() in SUFFIXES
    if _is_motion_jpeg(medium):
        return True
    try:
        with open_medium(medium) as file:
            kind = sniff(file.read(HEAD))
            if kind in ("video", "sound"):
                return True
            if kind in ("picture", "other"):
                return False
            file.seek(0)
            try:
                with open_picture(file) as opened:
                    return _is_animated(opened)
            except (
                Exception
            ):  # Pillow's plugins raise almost anything on files that are not theirs.
                if kind == "animation":
                    return False
        if isinstance(medium, (Path, BucketFile)) and medium.suffix.lower() in SUFFIXES:
            return True
        with open_container(medium) as container:
            return moving_pictures(container) is not None
    except (Fault, OSError, ModuleNotFoundError):
        return False


def _is_motion_jpeg(medium: Path | BucketFile | bytes) -> bool:
    """Whether a file is JPEGs one after the other. Only its name tells it from one JPEG."""
    named = isinstance(medium, (Path, BucketFile))
    return named and medium.suffix.lower() in (".mjpg", ".mjpeg")


@contextlib.contextmanager
def open_clip(
    medium: Pixels, *, hdr: Hdr = "tone_map", least: Size | None = None
) -> Iterator[Clip]:
    """Opens a clip: pixels, a folder of frames, a picture (animated or not), or a file that FFmpeg reads.

    Args:
        medium: the clip.
        hdr: 'tone_map' or 'refuse' clips in PQ or HLG.
        least: the size that its frames are scaled to, which lets large HDR frames be shrunk before they are converted.

    Raises:
        Fault: missing_file, corrupt_video, no_frames; corrupt_image of pictures. Errors of decoding inside the block
            are turned into these too.
        ModuleNotFoundError: the file needs `av`, which is not installed.
    """
    if isinstance(medium, np.ndarray):
        yield _ArrayClip(medium)
        return
    if isinstance(medium, Path) and medium.is_dir():
        yield _FolderClip(medium, hdr, least)
        return
    with open_medium(medium) as file:
        head = file.read(HEAD)
        if sniff(head) in ("picture", "animation") and not _is_motion_jpeg(medium):
            content = io.BytesIO(head + file.read())
            with decoding_errors(medium, head, "video"), open_picture(content) as opened:
                yield _PictureClip(opened, hdr, least)
            return
    if sniff(head) == "other":
        kind = "corrupt_image" if head[4:8] == b"ftyp" else "corrupt_video"
        raise Fault(kind, f"{describe(medium)}: {explain(head, 'video')}")
    av = import_av(describe(medium))
    with contextlib.ExitStack() as opened:
        try:
            yield ContainerClip(medium, opened, hdr, least)
        except Fault:
            raise
        # FFmpeg's own MemoryError too: a damaged header asks for more than it ever allocates.
        # IndexError: `av` knows no streams that begin in the middle of a file.
        except (
            av.FFmpegError,
            ValueError,
            TypeError,
            OverflowError,
            IndexError,
            EOFError,
        ) as error:
            reason = " ".join(str(error).split())
            raise Fault("corrupt_video", f"{describe(medium)}: {reason}") from error


# Arrays and folders.


def _number_is_known(self: Any, count: int) -> None:
    raise AssertionError(f"{type(self).__name__} counts its frames when it is opened, not {count}")


class _ArrayClip:
    def __init__(self, pixels: np.ndarray):
        if pixels.ndim != 4 or not len(pixels):
            raise Fault(
                "no_frames", f"an array of shape {list(pixels.shape)} is not a video [f, h, w, c]"
            )
        self._pixels = pixels
        count = len(pixels)
        self.starts, self.end, self.timed = [float(i) for i in range(count)], float(count), False

    def size(self) -> Size:
        return image_size(self._pixels[0], smallest=1)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            yield to_rgb(from_array(self._pixels[index])), None

    number = _number_is_known


def natural_order(path: Path) -> tuple[Any, ...]:
    """A key that sorts numbers in names by their value: 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", path.name)
    return ([(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)], path.name)


class _FolderClip:
    """The pictures of a folder, in natural order of their names; hidden files (`._1.png`) are no frames."""

    def __init__(self, folder: Path, hdr: Hdr, least: Size | None):
        listed = [path for path in folder.iterdir() if path.suffix.lower() in _FRAME_SUFFIXES]
        self._files = sorted((f for f in listed if not is_hidden(f)), key=natural_order)
        if not self._files:
            raise Fault("no_frames", f"the folder {folder} has no images ({_FRAME_SUFFIXES})")
        self._hdr: Hdr = hdr
        self._least = least
        count = len(self._files)
        self.starts, self.end, self.timed = [float(i) for i in range(count)], float(count), False

    def size(self) -> Size:
        return image_size(self._files[0], smallest=1)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            with open_medium(self._files[index]) as file:
                head = file.read(HEAD)
                file.seek(0)
                with decoding_errors(self._files[index], head), open_picture(file) as opened:
                    draft(opened, self._least)
                    yield to_rgb(opened, hdr=self._hdr), None

    number = _number_is_known


# Animated pictures.


def _is_animated(opened: Any) -> bool:
    """Whether a picture is an animation. Pages of a TIFF, layers and a camera's previews (MPO) are not frames."""
    animated = opened.format in ("GIF", "PNG", "WEBP", "AVIF") and getattr(
        opened, "is_animated", False
    )
    return bool(animated) and opened.n_frames - _first_frame(opened) > 1


def _first_frame(opened: Any) -> int:
    """1 where the first picture of an APNG is for programs that show no animations, else 0."""
    return int(opened.format == "PNG" and opened.n_frames > 1 and opened.default_image)


class _PictureClip:
    """A picture as a clip of one frame, or of all of an animation's."""

    def __init__(self, opened: Any, hdr: Hdr, least: Size | None):
        self._opened, self._least = opened, least
        self._hdr: Hdr = hdr
        self._size = upright_size(opened)
        animated = _is_animated(opened)
        self._skipped = _first_frame(opened) if animated else 0
        pixels = opened.width * opened.height
        if animated and (pixels > _MOST_PIXELS or pixels * opened.n_frames > _MOST_IN_ALL):
            raise Fault(
                "corrupt_image",
                f"its {opened.n_frames} frames have {opened.width}x{opened.height} pixels, more than are read of an "
                f"animation ({_MOST_PIXELS} per frame, {_MOST_IN_ALL} in all)",
            )
        starts, now = [0.0], 0.0
        if animated:
            for number in range(self._skipped, opened.n_frames):
                try:
                    opened.seek(number)
                    opened.load()  # WebP and AVIF name the duration when they decode.
                except EOFError:  # The header promised more frames.
                    break
                duration = opened.info.get("duration") or 0
                now += (duration if duration > _SHORTEST else 100) / 1000
                starts.append(now)
        self.starts, self.end = (starts[:-1], now) if len(starts) > 1 else ([0.0], 1.0)
        self.timed = animated

    def size(self) -> Size:
        return self._size

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        for index in indices:
            if self.timed:
                self._opened.seek(self._skipped + index)
            else:
                draft(self._opened, self._least)
            yield to_rgb(self._opened, hdr=self._hdr), None

    number = _number_is_known
