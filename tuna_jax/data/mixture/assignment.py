"""The buckets of a stream's examples, kept for large sources, so that a start maps them in place of sorting again.

A file `buckets-HASH.safetensors` in the cache folder has the numbers of each bucket's examples, 4 bytes each, which all
processes of a host share. HASH is of the scan and of the stream's shapes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from tuna_jax.data.invalid_examples import InvalidExample
from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.bucketing import Bucket, assign, count_cut
from tuna_jax.data.mixture.metadata import ExampleMetadata
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.sources.stored_index import MappedArrays, MappedSlice, find, write
from tuna_jax.sequence import Grid

KEEP_FROM = 1 << 18
"""Examples from which on the buckets of a source are kept in a file."""
_VERSION = 1

Members = Integer[np.ndarray, " _"] | MappedSlice


@dataclasses.dataclass(frozen=True)
class Assignment:
    """The buckets of a stream.

    Attributes:
        buckets: those that have examples, in order.
        members: the numbers of each one's examples, ascending.
        invalid: the examples that cannot be used, those of the scan first.
        cut: the number of texts that are truncated.
    """

    buckets: Sequence[Bucket]
    members: Sequence[Members]
    invalid: Sequence[InvalidExample]
    cut: int


def assignment(
    metadata: ExampleMetadata, stream: ExampleStream, grids: Sequence[Grid], folder: Path
) -> Assignment:
    """Sorts a stream's examples into buckets, or maps how they were sorted.

    Args:
        metadata: of the examples.
        stream: the stream.
        grids: the latent extent of each of its sizes.
        folder: where the buckets of a large source are kept; on a disk of this host, since they are read at random.

    Raises:
        ValueError: the file of the buckets is damaged; it is named.
    """
    if len(metadata) < KEEP_FROM or not metadata.identity:
        return _sorted(metadata, stream, grids)
    about = {
        "version": _VERSION,
        "scan": metadata.identity,
        "changes": metadata.version,
        "examples": len(metadata),
        "task": stream.task,
        "sizes": [[size.height, size.width] for size in stream.picture_sizes],
        "slots": list(stream.slot_counts),
        "lengths": list(stream.lengths),
        "grids": [dataclasses.astuple(grid) for grid in grids],
    }
    kept = find(folder, "buckets", about)
    if kept is None:
        kept = _write(folder, about, _sorted(metadata, stream, grids), len(metadata.invalid))
    return _opened(kept, metadata, stream)


def _sorted(metadata: ExampleMetadata, stream: ExampleStream, grids: Sequence[Grid]) -> Assignment:
    shapes: dict[str, Any] = {
        "sizes": stream.picture_sizes,
        "lengths": stream.lengths,
        "grids": grids,
    }
    buckets, members, invalid = assign(
        metadata, stream.source, stream.task, slots=stream.slot_counts, **shapes
    )
    return Assignment(buckets, members, invalid, count_cut(metadata, stream.task, **shapes))


def _write(folder: Path, about: dict[str, Any], made: Assignment, scanned: int) -> MappedArrays:
    unfit = [[row.line, row.kind, row.reason] for row in made.invalid[scanned:]]
    arrays = {
        "members": np.concatenate([np.zeros(0, np.uint32), *(rows[:] for rows in made.members)]),
        "counts": np.array([len(members) for members in made.members], np.int64),
        "invalid": np.frombuffer(json.dumps(unfit).encode(), np.uint8),
    }
    buckets = [[b.size.height, b.size.width, b.slots, b.length] for b in made.buckets]
    return write(folder, "buckets", about, arrays, {"buckets": buckets, "cut": made.cut})


def _opened(kept: MappedArrays, metadata: ExampleMetadata, stream: ExampleStream) -> Assignment:
    ends = np.cumsum(kept["counts"]).tolist()
    members = [
        MappedSlice(kept, "members", begin, end)
        for begin, end in zip([0, *ends], ends, strict=False)
    ]
    buckets = [Bucket(Size(h, w), slots, length) for h, w, slots, length in kept.about["buckets"]]
    unfit = [
        InvalidExample(kind, stream.source.name, line, reason)
        for line, kind, reason in json.loads(kept["invalid"].tobytes())
    ]
    return Assignment(buckets, members, [*metadata.invalid.values(), *unfit], kept.about["cut"])
