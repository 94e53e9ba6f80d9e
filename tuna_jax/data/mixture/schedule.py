"""Which bucket sampler batch n is of, and how many batches of that sampler come before: from (seed, n) only.

Batches come in cycles. In each, every sampler has its share, rounded so that cycles together are exact: with edges E_j
(cumulative shares times the cycle's length) and a phase u in [0, 1) that advances evenly from cycle to cycle, sampler j
has floor(E_j + u) - floor(E_(j-1) + u) batches. No sampler starves, and no range of neighbouring samplers (a stream) is
ever off by more than one batch within a cycle. A seed permutes each cycle.

Weights may change at a batch: earlier batches keep their order and counts, and the samplers continue where they are.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

CYCLE = 128
_GOLDEN = (5**0.5 - 1) / 2  # Its multiples fill [0, 1) most evenly.
_BLOCK = 1024  # Cycles whose counts are kept as one sum.


class _Phase:
    """A range of batches with fixed weights, counted from its own beginning."""

    def __init__(self, weights: Float[np.ndarray, " samplers"], seed: int, begin: int):
        self._arguments = (weights, seed, begin)
        self._edges = np.concatenate([[0.0], np.cumsum(weights / weights.sum()) * CYCLE])
        self._edges[-1] = CYCLE
        self._seed = (seed, begin)
        self._first = float(np.random.default_rng((*self._seed, 0)).random())
        self._order = functools.lru_cache(maxsize=64)(self._make_order)
        self._block = functools.lru_cache(maxsize=1 << 16)(self._sum_block)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes fill their own caches.
        return type(self), self._arguments

    def _counts(self, begin: int, end: int) -> Int[np.ndarray, "cycles samplers"]:
        """Batches of each sampler in cycles begin .. end - 1."""
        phase = (self._first + np.arange(begin, end) * _GOLDEN) % 1.0
        floors = np.floor(self._edges[None] + phase[:, None]).astype(np.int64)
        return np.diff(floors, axis=1)

    def _sum_block(self, block: int) -> Int[np.ndarray, " samplers"]:
        """Batches of each sampler before a block of cycles."""
        if block == 0:
            return np.zeros(len(self._edges) - 1, np.int64)
        begin = (block - 1) * _BLOCK
        return self._block(block - 1) + self._counts(begin, begin + _BLOCK).sum(axis=0)

    def _make_order(self, cycle: int) -> Int[np.ndarray, " cycle"]:
        counts = self._counts(cycle, cycle + 1)[0]
        random = np.random.default_rng((*self._seed, 1, cycle))
        return random.permutation(np.repeat(np.arange(len(counts)), counts))

    def before(self, n: int) -> Int[np.ndarray, " samplers"]:
        """Batches of each sampler among the first n."""
        cycle, offset = divmod(n, CYCLE)
        block = cycle // _BLOCK
        for earlier in range(0, block, 100):  # Step by step: recursion has a limit.
            self._block(earlier)
        counts = self._block(block) + self._counts(block * _BLOCK, cycle).sum(axis=0)
        return counts + np.bincount(self._order(cycle)[:offset], minlength=len(counts))

    def sampler(self, n: int) -> int:
        """The number of batch n's sampler."""
        return int(self._order(n // CYCLE)[n % CYCLE])


class Schedule:
    """The bucket sampler of every batch.

    Args:
        history: (first batch, weights of the samplers) in ascending order; the first is (0, ...). A weight of 0 leaves
            a sampler out.
        seed: determines the order.

    Raises:
        ValueError: the history does not begin at 0 or is not ascending, or weights are negative or all 0.
    """

    def __init__(self, history: Sequence[tuple[int, Sequence[float]]], seed: int):
        self._begins = [begin for begin, _ in history]
        if not history or self._begins[0] != 0 or sorted(set(self._begins)) != self._begins:
            raise ValueError(
                f"the weights' first batches are {self._begins}; they must begin at 0 and ascend"
            )
        for begin, weights in history:
            if min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(
                    f"weights from batch {begin} are {list(weights)}; none may be negative and one must be positive"
                )
        self._phases = [_Phase(np.asarray(w, float), seed, begin) for begin, w in history]
        self._base = [np.zeros(len(history[0][1]), np.int64)]
        for phase, begin, end in zip(self._phases, self._begins, self._begins[1:], strict=False):
            self._base.append(self._base[-1] + phase.before(end - begin))

    def __call__(self, n: int) -> tuple[int, int]:
        """(number of batch n's sampler, batches of that sampler before it)."""
        at = bisect.bisect_right(self._begins, n) - 1
        phase, local = self._phases[at], n - self._begins[at]
        sampler = phase.sampler(local)
        return sampler, int(self._base[at][sampler] + phase.before(local)[sampler])
