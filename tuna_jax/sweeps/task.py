"""A task of a sweep, and its results.

A task has `count` items. Item i and its noise do not depend on the other items of a call. The runner calls a task with
some items at a time, so a task need not handle batches, devices or interruptions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

GENERATION_SETTINGS = ("guidance", "guidance_interval", "steps", "solver", "shift", "size")
"""Settings that affect generated images and videos."""
UNDERSTANDING_SETTINGS = ("size",)
"""Settings that affect answers about images."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of some items, in their order.

    Attributes:
        values: by metric, one number per item; NaN if the metric does not apply to it.
        prompts: the prompt, instruction or question of each item.
        expected: the expected answers, for tasks that have some.
        texts: the model's answers, for tasks of understanding.
        pictures: generated or input images, all of one size; a video as its frames side by side.
        files: for each item, files for an external scorer by path; stored in the cell's folder `files`.
        errors: for each item, why it failed; '' if it did not. The values of an item that failed do not count.
    """

    values: Mapping[str, Sequence[float]]
    prompts: Sequence[str]
    expected: Sequence[str] | None = None
    texts: Sequence[str] | None = None
    pictures: UInt8[np.ndarray, "n height width 3"] | None = None
    files: Sequence[Mapping[str, bytes]] | None = None
    errors: Sequence[str] | None = None

    def check(self, count: int) -> None:
        """Raises ValueError unless every field has one entry per item, and no value is infinite."""
        fields: dict[str, Any] = {"prompts": self.prompts, **self.values}
        for name in ("expected", "texts", "pictures", "files", "errors"):
            if getattr(self, name) is not None:
                fields[name] = getattr(self, name)
        for name, rows in fields.items():
            if len(rows) != count:
                raise ValueError(
                    f"the task returned {len(rows)} entries of {name!r} for {count} items"
                )
        for name, values in self.values.items():
            if np.isinf(np.asarray(values, float)).any():
                raise ValueError(f"the task returned an infinite {name!r}, which is no score")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of a sweep.

    Attributes:
        kind: its name in the registry.
        version: raised by hand whenever the items, or the values of the same model outputs, change: results of earlier
            versions are then not reused.
        count: the number of items.
        options: everything else that defines it, as JSON values (a split, a prompt file and its hash).
        uses: names of the sweep's settings that affect it; it runs once for all values of the others.
        chance: the expected score of guesses, by metric; metrics without one are left out.
        run: `(model, items, seed) -> Outcome`. Row j belongs to items[j] and depends only on (seed, items[j]).
        verdict: the metric that says, as 1 or 0, whether an item is right; empty if there is none.
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
    """One seed per row, for `batching.keys`: the noise of an item depends only on the sweep's seed and the item."""
    return [(seed, int(item)) for item in items]
