"""A bucket of a stream as an endless sequence of its examples. Every batch comes from one bucket."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from tuna_jax.data.mixture.bucketing import Bucket
from tuna_jax.sequence import Grid

_HASHED = 1 << 20  # Members whose numbers are hashed together.


class BucketSampler:
    """The examples of one bucket, in an endless sequence of shuffled epochs.

    Args:
        stream: the number of the stream.
        bucket: its bucket.
        grid: latent extent of its spans.
        members: numbers of its examples in the stream's source.
        key: seeds the order and the random choices of each example.
    """

    def __init__(
        self,
        stream: int,
        bucket: Bucket,
        grid: Grid,
        members: Integer[np.ndarray, " members"],
        key: tuple[int, ...],
    ):
        self.stream, self.bucket, self.grid = stream, bucket, grid
        self.members, self.key = members, key
        # At the end of an epoch, threads are in two of them.
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stream, self.bucket, self.grid, self.members, self.key)

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
