"""Precomputes the latents of a manifest's images and videos, into shards for `precomputed_latents.LatentExamples`.

`shard_writing.py` says who writes which shard. A shard is encoded in its own batches, so that its bytes depend only on
its examples, and not on where a killed run resumed.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import BFloat16, Float, UInt8

from tuna_jax.data.invalid_examples import (
    Fault,
    InvalidExample,
    InvalidExamples,
    report_as_invalid,
)
from tuna_jax.data.media.color import Hdr, check_hdr
from tuna_jax.data.media.image import SMALLEST_SIDE, Encoded, Size, read_image
from tuna_jax.data.media.video import check_frames, read_video
from tuna_jax.data.mixture.bucketing import nearest
from tuna_jax.data.mixture.scan import picture_size
from tuna_jax.data.shard_writing import (
    check_process,
    shard_count,
    write_settings,
    write_shards,
)
from tuna_jax.data.sources.base import VIDEO_KINDS
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.precomputed_latents import SETTINGS_FILE
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.regular_files import with_retries

# Clips -> the posterior's normalised mean and standard deviation; every call of a shape has the same number of clips.
EncodeClips = Callable[
    [UInt8[np.ndarray, "n f h w 3"]],
    tuple[Float[np.ndarray, "n t y x c"], Float[np.ndarray, "n t y x c"]],
]
_RECORD_OPTIONS = (
    "group_size:1,uncompressed"  # Latents do not compress, and examples are read one by one.
)
_POSITION = 0.5  # Frames at a given rate come from the middle of a video.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """The settings that latents depend on, in addition to the manifest; a folder holds latents of one.

    Attributes:
        vae_fingerprint: the VAE's.
        sizes: image sizes; an example takes the nearest, as in a stream with these sizes.
        frames: per video, 1 + 4k.
        fps: frames per second taken from a video; None spreads them over the whole video.
        smallest: the shortest side, in pixels, of a usable image or video.
        hdr: 'tone_map' images and videos in high dynamic range, or 'refuse' them as invalid examples.
        batch_size: images or videos per call of the VAE.
        shard_rows: examples of the manifest per shard.
    """

    vae_fingerprint: str
    sizes: tuple[Size, ...]
    frames: int = 1
    fps: float | None = None
    smallest: int = SMALLEST_SIDE
    hdr: Hdr = "tone_map"
    batch_size: int = 8
    shard_rows: int = 256

    def __post_init__(self) -> None:
        check_frames(self.frames)
        check_hdr(self.hdr)
        if not self.sizes or len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"sizes is {self.sizes}; give each image size once")
        for key in ("batch_size", "shard_rows"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """An example of a shard: `line` of the manifest with its `content`, and its latents [2, n, T, h, w, C]."""

    line: int
    content: str
    size: Size
    frames: int
    moments: BFloat16[np.ndarray, "2 n t h w c"]


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """An example's images or its video, before the VAE."""

    line: int
    content: str
    size: Size
    frames: int
    clips: list[UInt8[np.ndarray, "f h w 3"]]


def encode_manifest(
    manifest: Manifest,
    folder: Path,
    encode: EncodeClips,
    encoding: Encoding,
    *,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 8,
    invalid_examples: InvalidExamples | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Writes those of this host's shards that do not exist yet.

    Shards with examples whose files were missing or unreadable, and can be read now, are written again.

    Args:
        manifest: the examples.
        folder: of the shards; all hosts write into the same.
        encode: the VAE.
        encoding: the settings.
        process_index, process_count: this host, and the number of hosts.
        threads: files that are decoded at the same time.
        invalid_examples: lists invalid examples, and stops when there are too many.
        progress: whether to show a bar.

    Returns:
        The number of examples encoded by this call ('rows'), and of invalid examples by kind.

    Raises:
        ValueError: the folder holds latents of other settings, or the VAE's output is not finite.
        TooManyInvalidExamples: more examples than `invalid_examples` allows cannot be used.
    """
    check_process(process_index, process_count)
    settings = dataclasses.asdict(encoding) | {
        "sizes": [[size.height, size.width] for size in encoding.sizes],
        "manifest": manifest.identity,
        "shards": shard_count(manifest, encoding.shard_rows),
    }
    if encoding.hdr == "tone_map":  # As in folders of earlier versions.
        del settings["hdr"]
    write_settings(folder / SETTINGS_FILE, settings, "latents of other settings")
    return write_shards(
        manifest,
        folder,
        _Latents(manifest, encode, encoding),
        shard_rows=encoding.shard_rows,
        process_index=process_index,
        process_count=process_count,
        threads=threads,
        invalid_examples=invalid_examples,
        progress="encoding" if progress else "",
    )


@dataclasses.dataclass(frozen=True)
class _Latents:
    """The latents of a manifest's examples (`shard_writing.ShardContent`)."""

    manifest: Manifest
    encode: EncodeClips
    encoding: Encoding

    def write(
        self,
        file: Path,
        numbers: range,
        pool: concurrent.futures.Executor,
        done: Callable[[int], object],
    ) -> tuple[dict[str, Any], list[InvalidExample]]:
        """See `ShardContent`."""
        rows, bad = _encode_shard(self.manifest, numbers, self.encode, self.encoding, pool, done)
        return write_records(file, rows), bad

    def is_usable(self, number: int) -> bool:
        """See `ShardContent`."""
        return isinstance(_decode(self.manifest, number, self.encoding), _Decoded)


def _encode_shard(
    manifest: Manifest,
    numbers: range,
    encode: EncodeClips,
    encoding: Encoding,
    pool: concurrent.futures.Executor,
    done: Callable[[int], Any],
) -> tuple[list[EncodedExample], list[InvalidExample]]:
    """The examples of a shard in the manifest's order, and those that cannot be used."""
    rows: dict[int, tuple[_Decoded, list[Any]]] = {}
    bad: list[InvalidExample] = []
    # Clips of one shape that wait for a full batch: (the example's number, slot, clip).
    waiting: dict[tuple[int, ...], list[tuple[int, int, np.ndarray]]] = {}

    def flush(shape: tuple[int, ...]) -> None:
        batch = waiting.pop(shape)
        clips = [clip for _, _, clip in batch]
        clips += clips[-1:] * (encoding.batch_size - len(batch))
        for (number, slot, _), moments in zip(batch, _moments(encode, clips), strict=False):
            rows[number][1][slot] = moments

    def decode(number: int) -> _Decoded | InvalidExample:
        return _decode(manifest, number, encoding)

    for number, decoded in zip(
        numbers, _ahead(pool, decode, numbers, 2 * encoding.batch_size), strict=True
    ):
        done(1)
        if isinstance(decoded, InvalidExample):
            bad.append(decoded)
            continue
        # All pixels of a shard would take many times the memory of its latents.
        rows[number] = dataclasses.replace(decoded, clips=[]), [None] * len(decoded.clips)
        for slot, clip in enumerate(decoded.clips):
            waiting.setdefault(clip.shape, []).append((number, slot, clip))
            if len(waiting[clip.shape]) == encoding.batch_size:
                flush(clip.shape)
    for shape in sorted(waiting):
        flush(shape)
    encoded = [
        EncodedExample(row.line, row.content, row.size, row.frames, np.stack(moments, axis=1))
        for row, moments in rows.values()
    ]
    return encoded, bad


def _ahead(
    pool: concurrent.futures.Executor, work: Callable[[int], Any], items: Sequence[int], most: int
) -> Iterator[Any]:
    """`work(item)` for each item, in order; at most `most` are in progress or waiting."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= most:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _decode(manifest: Manifest, number: int, encoding: Encoding) -> _Decoded | InvalidExample:
    """An example's images or video at the size of its bucket."""
    return with_retries(lambda: _decode_once(manifest, number, encoding))


def _decode_once(manifest: Manifest, number: int, encoding: Encoding) -> _Decoded | InvalidExample:
    try:
        example, line = manifest[number], manifest.line(number)
        with report_as_invalid(manifest.name, line):
            source_size = picture_size(example, encoding.smallest)
            if not example.media:
                raise Fault("wrong_image_count", "the example has no image or video to encode")
            at = nearest(
                np.array([source_size.height]), np.array([source_size.width]), encoding.sizes
            )
            size = encoding.sizes[int(at[0])]
            clips = []
            for medium in example.media:
                assert not isinstance(medium, Encoded)  # A manifest names files.
                if example.kind in VIDEO_KINDS:
                    options = {
                        "fps": encoding.fps,
                        "position": _POSITION,
                        "smallest": encoding.smallest,
                        "hdr": encoding.hdr,
                    }
                    clips.append(read_video(medium, size, encoding.frames, **options))
                else:
                    stills = {"smallest": encoding.smallest, "hdr": encoding.hdr}
                    clips.append(read_image(medium, size, **stills)[None])
            content = manifest.content(number).decode()
            return _Decoded(line, content, size, len(clips[0]), clips)
    except InvalidExample as bad:
        return bad


def _moments(
    encode: EncodeClips, clips: list[UInt8[np.ndarray, "f h w 3"]]
) -> list[BFloat16[np.ndarray, "2 t y x c"]]:
    """Mean and standard deviation of each clip."""
    mean, std = (np.asarray(array) for array in encode(np.stack(clips)))
    if mean.shape != std.shape or mean.ndim != 5 or len(mean) != len(clips):
        raise ValueError(
            f"encode returned {mean.shape} and {std.shape} for {len(clips)} clips; it must be [n, T, h, w, C]"
        )
    moments = np.stack([mean, std], axis=1).astype(ml_dtypes.bfloat16)
    if not np.isfinite(moments).all():
        raise ValueError("the VAE's latents are not finite; check its weights")
    return list(moments)


def write_records(file: Path, rows: list[EncodedExample]) -> dict[str, Any]:
    """Writes the records of a shard, if it has any; returns what its JSON file lists."""
    if rows:
        with atomic_file(file) as scratch:
            writer = ArrayRecordWriter(str(scratch), _RECORD_OPTIONS)
            try:
                for row in rows:
                    size, shape = [row.size.height, row.size.width], list(row.moments.shape[1:])
                    header = {"row": row.content, "size": size, "shape": shape}
                    writer.write(json.dumps(header, ensure_ascii=False).encode())
                    writer.write(row.moments.tobytes())
            finally:
                writer.close()
    kinds = {(row.size, row.frames, row.moments.shape[2:]) for row in rows}
    return {
        "rows": len(rows),
        "lines": [row.line for row in rows],
        "latents": sorted([s.height, s.width, frames, *shape] for s, frames, shape in kinds),
    }
