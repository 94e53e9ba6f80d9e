"""What a task of a sweep is, and what it tells of its items.

A task has `count` items; item i is the same whatever is asked beside it, and so is the noise that it is drawn from. The
engine asks for some of them at a time, so that a task need not know of batches, devices or interruptions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

DRAWING = ("guidance", "guidance_interval", "steps", "solver", "shift", "size")
"""Settings that bear on what is drawn."""
SHOWING = ("size",)
"""Settings that bear on what is answered about pictures."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a model made of some items, in their order.

    Attributes:
        values: by metric, a number an item; NaN where the metric does not apply to it.
        prompts: the prompt, instruction or question of each item.
        expected: the right answer to each, for tasks that have one.
        texts: what the model said, for tasks of understanding.
        pictures: what it drew, all of one size; a clip as its frames side by side.
        files: of each item, by path, what a scorer outside wants to read; kept in the cell's folder `files`.
    """

    values: Mapping[str, Sequence[float]]
    prompts: Sequence[str]
    expected: Sequence[str] | None = None
    texts: Sequence[str] | None = None
    pictures: UInt8[np.ndarray, "n height width 3"] | None = None
    files: Sequence[Mapping[str, bytes]] | None = None

    def check(self, count: int) -> None:
        """Raises ValueError unless there is as much of everything as there are items."""
        told: dict[str, Any] = {"prompts": self.prompts, **self.values}
        for name in ("expected", "texts", "pictures", "files"):
            if getattr(self, name) is not None:
                told[name] = getattr(self, name)
        for name, rows in told.items():
            if len(rows) != count:
                raise ValueError(f"the task told {len(rows)} of {name!r} for {count} items")


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to measure.

    Attributes:
        kind: its name in the table of tasks.
        version: raised by hand whenever the same outputs of a model would get other values, or other items are asked:
            results of earlier versions are then not taken.
        count: how many items there are.
        options: all else that makes it what it is, as JSON values (a split, a prompt file and its hash).
        uses: names of the sweep's settings that bear on it; it is measured once for all values of the others.
        chance: what a guess would score, by metric; a metric without one is left out.
        run: `(model, items, seed) -> Outcome`. Row j is of items[j] and depends on (seed, items[j]) alone.
        verdict: the metric that says, as 1 or 0, whether an item is right; empty: none does.
        attribution: credit that a report with this task's images must carry.
    """

    kind: str
    version: int
    count: int
    options: Mapping[str, Any]
    uses: tuple[str, ...]
    run: Callable[[Any, Sequence[int], int], Outcome]
    chance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    verdict: str = ""
    attribution: str = ""


def seeds(seed: int, items: Sequence[int]) -> list[tuple[int, int]]:
    """A seed a row, for `rows.keys`: the noise of an item depends on the sweep's seed and the item alone."""
    return [(seed, int(item)) for item in items]
