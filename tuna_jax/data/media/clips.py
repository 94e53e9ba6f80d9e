"""One way to open a clip, whatever holds it: a container that FFmpeg reads, an animated picture, a folder, an array.

`open_clip` decides by content. A `Clip` knows when each frame is shown, and decodes those that are asked for.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.color import Hdr
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
from tuna_jax.data.media.video_frames import FrameConverter, check_pixels

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
"""Names that count as videos where there is no content to look at."""

_INDEXED_CONTAINERS = {"mov", "matroska"}
_FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_ATTACHED = 0x400 | 0x800  # FFmpeg's dispositions of covers and of thumbnails.
# Formats of FFmpeg that turn text into pictures, or open further files and addresses.
_REFUSED_FORMATS = {"tty", "bin", "adf", "idf", "xbin", "concat", "hls", "dash", "lavfi", "image2"}
# Canvas of an animated picture (8K has 33 million), and of all its frames: each is decoded to reach the next.
_MOST_PIXELS, _MOST_IN_ALL = 1 << 25, 1 << 32
_SHORTEST = 10  # Milliseconds; browsers show animated pictures that ask for less for 100.

# The image, and (height, width) at which it is shown, where its pixels are not square.
Frame = tuple[Image.Image, tuple[float, float] | None]


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


def import_av(path: str | Path) -> Any:
    """The package `av`; ModuleNotFoundError names the video that needs it, and how to install it."""
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{path} is a video, which requires the package av (FFmpeg's libraries): pip install av"
        ) from error
    return av


def is_clip(medium: Path | bytes) -> bool:
    """Whether a file is a video, an animated picture or a folder of frames, rather than a picture: by its content.

    A file that does not exist is judged by its suffix. Sound counts as a clip: opening it says that it has no frames.
    """
    if isinstance(medium, Path) and not medium.is_file():
        return medium.is_dir() or medium.suffix.lower() in SUFFIXES
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
        if isinstance(medium, Path) and medium.suffix.lower() in SUFFIXES:
            return True
        with _container(medium) as container:
            return bool(_stream(container))
    except (Fault, OSError, ModuleNotFoundError):
        return False


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
        motion_jpeg = isinstance(medium, Path) and medium.suffix.lower() in (".mjpg", ".mjpeg")
        if sniff(head) in ("picture", "animation") and not motion_jpeg:
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
            yield _ContainerClip(medium, opened, hdr, least)
        except Fault:
            raise
        # FFmpeg's own MemoryError too: a damaged header asks for more than it ever allocates.
        except (av.FFmpegError, ValueError, TypeError, OverflowError, EOFError) as error:
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
    """Whether a picture is an animation. Pages of a TIFF, layers and a camera's previews (MPO) are none."""
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


# Containers.


def _container(medium: Path | bytes) -> Any:
    """An open container, of a format that holds frames."""
    av = import_av(describe(medium))
    opened = open_medium(medium)  # Raises missing_file, which av does not distinguish.
    if isinstance(medium, Path):
        opened.close()
        # With its protocol, a name with a colon is a file's and no address.
        opened = f"file:{medium}"
    try:
        # Tags in other encodings than UTF-8 are common in old files.
        container = av.open(opened, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        with open_medium(medium) as file:
            head = file.read(HEAD)
        reason = explain(head, "video", error)
        raise Fault("corrupt_video", f"{describe(medium)}: {reason}") from error
    if _REFUSED_FORMATS & set(container.format.name.split(",")):
        name = container.format.name
        container.close()
        raise Fault("corrupt_video", f"{describe(medium)} is no video (FFmpeg reads it as {name})")
    return container


def _stream(container: Any) -> Any:
    """The first stream of moving pictures; a song's cover and a film's thumbnails are none. None without one."""
    for stream in container.streams.video:
        disposition = getattr(stream, "disposition", 0)
        if not int(getattr(disposition, "value", disposition)) & _ATTACHED:
            return stream
    return None


class _Decoder:
    """The frames of a stream in order, from the beginning or from a key frame.

    Frames without time stamps are numbered. Alpha of WebM is decoded by libvpx: FFmpeg's own decoder leaves it out.
    """

    def __init__(self, av: Any, container: Any, stream: Any, stamped: bool):
        self.container, self.stream, self._stamped, self._last = container, stream, stamped, -1
        codec = stream.codec_context
        codec.thread_count = 1  # Grain's threads already share the cores.
        self._codec = None
        name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(codec.name)
        alpha = stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE"))
        if name and alpha == "1" and name in av.codecs_available:
            self._codec = av.CodecContext.create(name, "r")
        self.restart()

    def restart(self) -> None:
        """Goes on from where the container is."""
        self._count, self._next = 0, None
        if self._codec is not None:
            self._codec.flush_buffers()
        self._frames = self._decoded()

    def _decoded(self) -> Iterator[Any]:
        if self._codec is None:
            yield from self.container.decode(self.stream)
            return
        for packet in self.container.demux(self.stream):
            yield from self._codec.decode(packet if packet.size else None)

    def _pull(self) -> tuple[int, Any] | None:
        frame = next(self._frames, None)
        if frame is None:
            return None
        stamp = self._count
        if self._stamped:
            stamp = frame.pts if frame.pts is not None else frame.dts
            stamp = self._last + 1 if stamp is None else stamp
        self._count, self._last = self._count + 1, stamp
        return stamp, frame

    def until(self, stamp: int, current: tuple[int, Any] | None) -> tuple[int, Any] | None:
        """The last frame that appears at `stamp` or before; `current`, if there is none after it."""
        while current is None or current[0] != stamp:
            self._next = self._next or self._pull()
            if self._next is None or (current is not None and self._next[0] > stamp):
                return current
            if current is None and self._next[0] > stamp:
                return None
            current, self._next = self._next, None
        return current

    @property
    def first(self) -> tuple[int, Any] | None:
        """The frame that comes next; it stays the next one."""
        self._next = self._next or self._pull()
        return self._next

    @property
    def count(self) -> int:
        """Frames decoded since the last start."""
        return self._count


class FewerFrames(Exception):
    """A file without time stamps has fewer frames than packets: `count`."""

    def __init__(self, count: int):
        super().__init__(count)
        self.count = count


class _ContainerClip:
    """A file that FFmpeg reads. Opening it reads the time stamps of all packets, and decodes nothing."""

    timed = True

    def __init__(
        self,
        medium: Path | bytes,
        opened: contextlib.ExitStack,
        hdr: Hdr,
        least: Size | None,
    ):
        self._medium, self._opened, self._where = medium, opened, describe(medium)
        self._av = import_av(self._where)
        self._container, self._stream = self._open()
        shape = (least.height, least.width) if least else None
        self._converter = FrameConverter(self._av, self._stream, self._where, hdr, shape)
        self._used = False  # Whether the container was read from.
        self._stamps: list[int] = []
        self._keys: list[int] = []
        self._stamped, self._starts, self._end = True, [], 0.0

    def _open(self) -> tuple[Any, Any]:
        container = self._opened.enter_context(_container(self._medium))
        stream = _stream(container)
        if stream is None:
            what = "only sound and a cover" if container.streams.video else "no video stream"
            raise Fault("no_frames", f"{self._where} has {what}")
        codec = stream.codec_context
        if codec is None:
            raise Fault(
                "corrupt_video", f"{self._where}: FFmpeg knows no decoder for its video stream"
            )
        check_pixels(codec.width or 0, codec.height or 0, self._where)
        return container, stream

    def size(self) -> Size:
        # Before the packets are read, which takes the container to its end.
        container, stream = self._open() if self._used else (self._container, self._stream)
        self._used = True
        first = _Decoder(self._av, container, stream, False).first
        if first is None:
            raise Fault("no_frames", f"{self._where} has a video stream without frames")
        check_pixels(first[1].width, first[1].height, self._where)
        height, width = self._converter.shown_size(first[1])
        return Size(max(round(height), 1), max(round(width), 1))

    def _scan(self) -> None:
        """Reads the packets' time stamps."""
        if self._stamps:
            return
        if self._used:
            self._container, self._stream = self._open()
        self._used = True
        stream = self._stream
        packets = [
            (packet.pts, packet.duration or 0, packet.is_keyframe, packet.is_discard)
            for packet in self._container.demux(stream)
            if packet.size
        ]
        if not packets:
            raise Fault("no_frames", f"{self._where} has a video stream without frames")
        unit = float(stream.time_base or 0)
        # An edit list hides packets that are only decoded; of a pair of fields the second may have no time.
        shown = [(pts, duration) for pts, duration, _, hidden in packets if not hidden]
        stamped = {pts: duration for pts, duration in shown if pts is not None}
        self._stamped = bool(unit) and 2 * len(stamped) >= max(len(shown), 1) and bool(stamped)
        if not self._stamped:
            self.number(len(shown) or len(packets))
            return
        self._stamps = sorted(stamped)
        self._keys = sorted(pts for pts, _, key, _ in packets if key and pts is not None)
        last = self._stamps[-1]
        duration = stamped[last] * unit
        if duration <= 0:
            gaps = np.diff(self._stamps)
            duration = statistics.median(gaps.tolist()) * unit if len(gaps) else 1.0
        self._starts = [stamp * unit for stamp in self._stamps]
        self._end = max(self._starts[-1] + duration, self._end_of_file())

    def _end_of_file(self) -> float:
        """When a Matroska file without sound ends, which shows its last frame until then; else minus infinity.

        Its packets name no durations; those of other files do.
        """
        container = self._container
        if "matroska" not in container.format.name or len(container.streams) > 1:
            return -np.inf
        return (container.duration or 0) / self._av.time_base

    def number(self, count: int) -> None:
        """Frame numbers in place of time stamps, at the stream's rate."""
        rate = float(self._stream.average_rate or 25)
        self._stamped, self._keys, self._stamps = False, [], list(range(count))
        self._starts, self._end = [i / rate for i in range(count)], count / rate

    @property
    def starts(self) -> Sequence[float]:
        self._scan()
        return self._starts

    @property
    def end(self) -> float:
        self._scan()
        return self._end

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Decoding starts at the key frame before each, and skips stretches without a chosen frame."""
        self._scan()
        # Opening takes as long as decoding a dozen frames; formats with an index can seek back instead.
        indexed = bool(_INDEXED_CONTAINERS & set(self._container.format.name.split(",")))
        ended = bool(self._keys) and indexed
        if not ended:
            self._container, self._stream = self._open()
        decoder = _Decoder(self._av, self._container, self._stream, self._stamped)
        current: tuple[int, Any] | None = None
        for index in indices:
            stamp = self._stamps[index]
            before = bisect.bisect_right(self._keys, stamp) - 1
            skips = before > 0 and (current is None or self._keys[before] > current[0])
            if ended or skips:
                target = self._keys[max(before, 0)] if self._keys else self._stamps[0]
                self._container.seek(target, stream=self._stream)
                decoder.restart()
                current, ended = None, False
                if decoder.first is None or decoder.first[0] > stamp:
                    # The index leads to the wrong place.
                    self._container, self._stream = self._open()
                    decoder = _Decoder(self._av, self._container, self._stream, self._stamped)
            current = decoder.until(stamp, current) or decoder.first
            if current is None:
                raise Fault("no_frames", f"{self._where} has packets, but no frame can be decoded")
            if not self._stamped and current[0] < stamp:
                raise FewerFrames(decoder.count)
            image, shown = self._converter.image(current[1]), self._converter.shown_size(current[1])
            square = abs(shown[0] * image.width - shown[1] * image.height) < 1e-6
            yield image, None if square else shown
