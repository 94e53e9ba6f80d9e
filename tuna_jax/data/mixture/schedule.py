"""Which cell (stream and bucket) batch n is of, and how many of that cell came before: from (seed, n) alone.

Batches come in cycles. In each, every cell has its share, rounded so that cycles together are exact: with
edges E_j (cumulative shares times the cycle's length) and a phase u in [0, 1) that moves on evenly from cycle to
cycle, cell j has floor(E_j + u) - floor(E_(j-1) + u) batches. No cell starves, and no run of neighbouring cells
(a stream) is ever more than one batch off within a cycle. A seed permutes each cycle.

Weights may change at a batch: what came before keeps its order and its counts, and the cells go on where they were.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

CYCLE = 128
_GOLDEN = (5**0.5 - 1) / 2  # its multiples fill [0, 1) most evenly
_BLOCK = 1024  # cycles whose counts are kept as one sum


class _Phase:
    """A stretch of batches with fixed weights, counted from its own beginning."""

    def __init__(self, weights: Float[np.ndarray, " cells"], seed: int, begin: int):
        self._made_of = (weights, seed, begin)
        self._edges = np.concatenate([[0.0], np.cumsum(weights / weights.sum()) * CYCLE])
        self._edges[-1] = CYCLE
        self._seed = (seed, begin)
        self._first = float(np.random.default_rng((*self._seed, 0)).random())
        self._order = functools.lru_cache(maxsize=64)(self._make_order)
        self._block = functools.lru_cache(maxsize=1 << 16)(self._sum_block)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes fill caches of their own.
        return type(self), self._made_of

    def _counts(self, begin: int, end: int) -> Int[np.ndarray, "cycles cells"]:
        """Batches of each cell in cycles begin .. end - 1."""
        phase = (self._first + np.arange(begin, end) * _GOLDEN) % 1.0
        floors = np.floor(self._edges[None] + phase[:, None]).astype(np.int64)
        return np.diff(floors, axis=1)

    def _sum_block(self, block: int) -> Int[np.ndarray, " cells"]:
        """Batches of each cell before a block of cycles."""
        if block == 0:
            return np.zeros(len(self._edges) - 1, np.int64)
        begin = (block - 1) * _BLOCK
        return self._block(block - 1) + self._counts(begin, begin + _BLOCK).sum(axis=0)

    def _make_order(self, cycle: int) -> Int[np.ndarray, " cycle"]:
        counts = self._counts(cycle, cycle + 1)[0]
        random = np.random.default_rng((*self._seed, 1, cycle))
        return random.permutation(np.repeat(np.arange(len(counts)), counts))

    def before(self, n: int) -> Int[np.ndarray, " cells"]:
        """Batches of each cell among the first n."""
        cycle, place = divmod(n, CYCLE)
        block = cycle // _BLOCK
        for known in range(0, block, 100):  # step by step: recursion has a limit
            self._block(known)
        counts = self._block(block) + self._counts(block * _BLOCK, cycle).sum(axis=0)
        return counts + np.bincount(self._order(cycle)[:place], minlength=len(counts))

    def cell(self, n: int) -> int:
        """The cell of batch n."""
        return int(self._order(n // CYCLE)[n % CYCLE])


class Schedule:
    """The cell of every batch.

    Args:
        history: (batch from which they hold, weights of the cells) in ascending order; the first is (0, ...). A weight
            of 0 leaves a cell out.
        seed: another seed, another order.

    Raises:
        ValueError: the history does not begin at 0 or is not ascending, or weights are negative or all 0.
    """

    def __init__(self, history: Sequence[tuple[int, Sequence[float]]], seed: int):
        self._begins = [begin for begin, _ in history]
        if not history or self._begins[0] != 0 or sorted(set(self._begins)) != self._begins:
            raise ValueError(
                f"weights hold from batches {self._begins}; they begin at 0 and ascend, each batch once"
            )
        for begin, weights in history:
            if min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(
                    f"weights from batch {begin} are {list(weights)}; none is negative and one is positive"
                )
        self._phases = [_Phase(np.asarray(w, float), seed, begin) for begin, w in history]
        self._base = [np.zeros(len(history[0][1]), np.int64)]
        for phase, begin, end in zip(self._phases, self._begins, self._begins[1:], strict=False):
            self._base.append(self._base[-1] + phase.before(end - begin))

    def __call__(self, n: int) -> tuple[int, int]:
        """(cell of batch n, batches of that cell before it)."""
        at = bisect.bisect_right(self._begins, n) - 1
        phase, local = self._phases[at], n - self._begins[at]
        cell = phase.cell(local)
        return cell, int(self._base[at][cell] + phase.before(local)[cell])
