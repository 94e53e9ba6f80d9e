"""A bucket of a stream as an endless sequence of its examples. Every batch comes from one bucket."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from tuna_jax.data.mixture.bucketing import Bucket
from tuna_jax.data.mixture.shared_order import shared_order
from tuna_jax.data.sources.stored_index import MappedSlice
from tuna_jax.sequence import Grid

SHARE_FROM = 1 << 16
"""Examples of a bucket from which on its orders are kept in files."""
_HASHED = 1 << 20  # Members whose numbers are hashed together.


class BucketSampler:
    """The examples of one bucket, in an endless sequence of shuffled epochs.

    Args:
        stream: the number of the stream.
        bucket: its bucket.
        grid: latent extent of its spans.
        members: numbers of its examples in the stream's source.
        key: seeds the order and the random choices of each example.
        folder: where the orders of a large bucket are kept, which the processes of a host share; None keeps none.
    """

    def __init__(
        self,
        stream: int,
        bucket: Bucket,
        grid: Grid,
        members: Integer[np.ndarray, " members"] | MappedSlice,
        key: tuple[int, ...],
        folder: Path | None = None,
    ):
        self.stream, self.bucket, self.grid = stream, bucket, grid
        self.members, self.key, self.folder = members, key, folder
        # At the end of an epoch, threads are in two of them.
        self._order = functools.lru_cache(maxsize=2)(self._order_of)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.stream, self.bucket, self.grid, self.members, self.key, self.folder)
        return type(self), arguments

    def _order_of(self, epoch: int) -> Int[np.ndarray, " members"]:
        count = len(self.members)
        if self.folder is None or count < SHARE_FROM:
            return self._shuffle(epoch)
        return shared_order(self.folder, self.key, epoch, count, lambda: self._shuffle(epoch))

    def _shuffle(self, epoch: int) -> Int[np.ndarray, " members"]:
        random = np.random.default_rng((*self.key, 0, epoch))
        return random.permutation(np.arange(len(self.members), dtype=np.int32))

    def hash_members(self, digest: Any) -> None:
        """Adds the numbers of the members to a hash, as int64."""
        for begin in range(0, len(self.members), _HASHED):
            part = np.asarray(self.members[begin : begin + _HASHED])
            digest.update(part.astype(np.int64).tobytes())

    def member(self, position: int) -> int:
        """The index into `members` at a position of the sequence."""
        epoch, index = divmod(position, len(self.members))
        return int(self._order(epoch)[index])


def seed_words(text: str) -> tuple[int, ...]:
    """A text as numbers for a seed, the same on every machine."""
    digest = hashlib.sha256(text.encode()).digest()
    return tuple(int.from_bytes(digest[at : at + 4], "little") for at in (0, 4))
