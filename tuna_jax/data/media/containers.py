"""Clips in containers that FFmpeg reads (the package `av`): their streams, the times of their frames, decoding."""

from __future__ import annotations

import bisect
import contextlib
import statistics
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.color import Hdr
from tuna_jax.data.media.formats import HEAD, explain
from tuna_jax.data.media.image import Size, describe, open_medium
from tuna_jax.data.media.video_frames import Frame, FrameConverter, check_pixels
from tuna_jax.utils.buckets import BucketFile

_INDEXED_CONTAINERS = {"mov", "matroska"}
_ATTACHED = 0x400 | 0x800  # FFmpeg's dispositions of covers and of thumbnails.
# Formats of FFmpeg that turn text into pictures, or open further files and addresses.
_REFUSED_FORMATS = {"tty", "bin", "adf", "idf", "xbin", "concat", "hls", "dash", "lavfi", "image2"}


def import_av(path: str | Path) -> Any:
    """The package `av`; ModuleNotFoundError names the video that needs it, and how to install it."""
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{path} is a video, which requires the package av (FFmpeg's libraries): pip install av"
        ) from error
    return av


def open_container(medium: Path | BucketFile | bytes) -> Any:
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


def moving_pictures(container: Any) -> Any:
    """The first stream of moving pictures; a song's cover and a film's thumbnails do not count. None without one."""
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
        self._frames: Generator[Any, None, None] | None = None
        name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(codec.name)
        alpha = stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE"))
        if name and alpha == "1" and name in av.codecs_available:
            self._codec = av.CodecContext.create(name, "r")
        self.restart()

    def restart(self) -> None:
        """Continues from the current position of the container."""
        self.close()
        self._count, self._next = 0, None
        if self._codec is not None:
            self._codec.flush_buffers()
        self._frames = self._decoded()

    def close(self) -> None:
        """Ends decoding, before the container is closed: frames and packets that outlive it keep FFmpeg's memory."""
        if self._frames is not None:
            self._frames.close()
        self._frames = self._next = None

    def _decoded(self) -> Generator[Any, None, None]:
        # `av`'s generators leak 260 bytes each if they are dropped before their end and not closed. So does
        # `container.decode`, closed or not: it drops the generator of its packets.
        with contextlib.closing(self.container.demux(self.stream)) as packets:
            for packet in packets:
                if self._codec is None:
                    yield from packet.decode()
                else:
                    yield from self._codec.decode(packet if packet.size else None)

    def _pull(self) -> tuple[int, Any] | None:
        assert self._frames is not None
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
        """The last frame that appears at `stamp` or before, which may be `current`."""
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


class _Times(NamedTuple):
    """What a packet says of time, in the stream's units."""

    pts: int | None
    dts: int | None
    duration: int
    key: bool
    hidden: bool


def _times(packet: Any) -> _Times | None:
    """None for a packet without content: the end, or AVI's mark that a frame stays."""
    if not packet.size:
        return None
    duration = packet.duration or 0
    return _Times(packet.pts, packet.dts, duration, packet.is_keyframe, packet.is_discard)


def _usual(stamps: Sequence[int], unit: float, otherwise: float) -> float:
    """The usual time between stamps, in seconds."""
    gaps = np.diff(stamps)
    return statistics.median(gaps.tolist()) * unit if len(gaps) else otherwise


class ContainerClip:
    """A file that FFmpeg reads. Opening it reads the time stamps of all packets, and decodes nothing."""

    timed = True

    def __init__(
        self,
        medium: Path | BucketFile | bytes,
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
        container = self._opened.enter_context(open_container(self._medium))
        stream = moving_pictures(container)
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
        first = self._decoder(container, stream, False).first
        if first is None:
            raise Fault("no_frames", f"{self._where} has a video stream without frames")
        check_pixels(first[1].width, first[1].height, self._where)
        height, width = self._converter.shown_size(first[1])
        return Size(max(round(height), 1), max(round(width), 1))

    def _decoder(self, container: Any, stream: Any, stamped: bool) -> _Decoder:
        decoder = _Decoder(self._av, container, stream, stamped)
        self._opened.callback(decoder.close)
        return decoder

    def _scan(self) -> None:
        """Reads the packets' time stamps."""
        if self._stamps:
            return
        if self._used:
            self._container, self._stream = self._open()
        self._used = True
        stream = self._stream
        packets = [packet for packet in map(_times, self._container.demux(stream)) if packet]
        if not packets:
            raise Fault("no_frames", f"{self._where} has a video stream without frames")
        unit = float(stream.time_base or 0)
        # An edit list hides packets that are only decoded; of a pair of fields the second may have no time.
        shown = [packet for packet in packets if not packet.hidden] or packets
        stamped = {packet.pts: packet.duration for packet in shown if packet.pts is not None}
        # AVI knows only the order of decoding: FFmpeg's times of its B-frames are guesses.
        self._stamped = "avi" not in self._container.format.name.split(",") and (
            unit > 0 and 2 * len(stamped) >= len(shown) and len(stamped) > 0
        )
        if not self._stamped:
            self.number(len(shown))
            order = [packet.dts for packet in shown if packet.dts is not None]
            if unit > 0 and len(order) == len(shown) and (np.diff(order) > 0).all():
                # Frames are shown at the pace at which they are decoded.
                self._starts = [dts * unit for dts in order]
                self._end = self._starts[-1] + _usual(order, unit, self._end / len(order))
            return
        self._stamps = sorted(stamped)
        self._keys = sorted(
            packet.pts for packet in packets if packet.key and packet.pts is not None
        )
        self._starts = [stamp * unit for stamp in self._stamps]
        duration = stamped[self._stamps[-1]] * unit
        if duration <= 0:
            duration = _usual(self._stamps, unit, 1.0)
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
        decoder = self._decoder(self._container, self._stream, self._stamped)
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
                    decoder = self._decoder(self._container, self._stream, self._stamped)
            current = decoder.until(stamp, current) or decoder.first
            if current is None:
                raise Fault("no_frames", f"{self._where} has packets, but no frame can be decoded")
            if not self._stamped and current[0] < stamp:
                raise FewerFrames(decoder.count)
            image, shown = self._converter.image(current[1]), self._converter.shown_size(current[1])
            square = abs(shown[0] * image.width - shown[1] * image.height) < 1e-6
            yield image, None if square else shown
