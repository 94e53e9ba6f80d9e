"""A cell of a sweep: one task on one checkpoint with one choice of settings, in a folder named by what determines it.

    KEY/cell.json     what determines it, for people
    KEY/items.jsonl   a line an item, appended batch by batch: {"item", "prompt", "expected", "text", "values"}
    KEY/0003.png      what was drawn for item 3, for the first items
    KEY/files/        what a scorer outside reads, for tasks that make such files

A killed sweep loses the batch that it was at. A line that a kill cut short is dropped, and its item asked again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tuna_jax.sweeps.task import Outcome, Task
from tuna_jax.utils.atomic_io import atomic_file

FORMAT = 1
FILES = "files"
Record = dict[str, Any]
"""A line of items.jsonl."""


def key_of(determined_by: Mapping[str, Any]) -> str:
    """The name of a cell: a hash of all that its results depend on, given as JSON values."""
    text = json.dumps({"format": FORMAT, **determined_by}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def determining(
    task: Task, model: Mapping[str, Any], settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """All that a cell's results depend on.

    Args:
        task: what is asked.
        model: what identifies the model's numbers: hashes of its files, averaged or not.
        settings: the sweep's choice; what does not bear on the task is left out.
        seed: the sweep's.
    """
    return {
        "task": {"kind": task.kind, "version": task.version, "count": task.count},
        "options": dict(task.options),
        "model": dict(model),
        "settings": {name: settings[name] for name in task.uses if name in settings},
        "seed": seed,
    }


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell's folder, which need not be there."""

    folder: Path

    def records(self) -> dict[int, Record]:
        """What is known, by item."""
        path, found = self.folder / "items.jsonl", {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "asked" in record:  # The key of earlier versions.
                record["prompt"] = record.pop("asked")
            found[record["item"]] = record
        return dict(sorted(found.items()))

    def pictures(self) -> dict[int, np.ndarray]:
        """What was drawn for the first items, uint8 [height, width, 3]."""
        files = self.files()
        return {item: np.asarray(Image.open(file).convert("RGB")) for item, file in files.items()}

    def files(self) -> dict[int, Path]:
        """The files of the pictures."""
        return {int(path.stem): path for path in sorted(self.folder.glob("[0-9]*.png"))}

    def told(self) -> dict[str, str]:
        """What a row of results says of its files: where they are, if there are any."""
        folder = self.folder / FILES
        return {"files": str(folder)} if folder.is_dir() else {}

    def append(self, items: Sequence[int], outcome: Outcome, shown: int) -> None:
        """Adds what the first `len(items)` rows of an outcome tell; pictures of items below `shown` are kept."""
        for row, item in enumerate(items):
            if outcome.pictures is not None and item < shown:
                with atomic_file(self.folder / f"{item:04d}.png") as scratch:
                    Image.fromarray(outcome.pictures[row]).save(scratch, format="PNG")
            for path, content in (outcome.files[row] if outcome.files else {}).items():
                with atomic_file(self.folder / FILES / path) as scratch:
                    scratch.write_bytes(content)
        lines = [
            json.dumps(_record(item, row, outcome), ensure_ascii=False) + "\n"
            for row, item in enumerate(items)
        ]
        with (self.folder / "items.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())

    def begin(self, determined_by: Mapping[str, Any]) -> None:
        """Makes the folder; drops the line that a kill cut short, for the next one would be appended to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / "cell.json") as scratch:
            scratch.write_text(json.dumps(determined_by, indent=1) + "\n", encoding="utf-8")
        known = self.records()
        with atomic_file(self.folder / "items.jsonl") as scratch:
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in known.values()]
            scratch.write_text("".join(lines), encoding="utf-8")


def _record(item: int, row: int, outcome: Outcome) -> Record:
    values = {name: float(rows[row]) for name, rows in outcome.values.items()}
    record: Record = {"item": int(item), "prompt": outcome.prompts[row]}
    if outcome.expected is not None:
        record["expected"] = outcome.expected[row]
    if outcome.texts is not None:
        record["text"] = outcome.texts[row]
    # JSON has no NaN.
    record["values"] = {name: v if math.isfinite(v) else None for name, v in values.items()}
    return record


def missing(task: Task, cell: Cell) -> list[int]:
    """Items of a task that its cell does not know yet."""
    known = cell.records()
    return [item for item in range(task.count) if item not in known]


def fill(
    task: Task,
    cell: Cell,
    model: Any,
    determined_by: Mapping[str, Any],
    *,
    seed: int,
    batch: int,
    parts: int = 1,
    shown: int = 8,
    done: Callable[[int], object] = lambda count: None,
) -> None:
    """Asks a model for all items that a cell lacks.

    Every call of the task has the same number of rows, so that few programs are compiled: the last batch is filled up
    with its last item, and what comes of that is thrown away.

    Args:
        task: what is asked.
        cell: where it is kept.
        model: handed to the task.
        determined_by: see `determining`.
        seed: the sweep's.
        batch: most rows a call.
        parts: what the rows of a call must divide by: the mesh's share of a batch.
        shown: of how many items pictures are kept.
        done: told of every batch how many items it had.

    Raises:
        ValueError: a task that has no items, or tells of another number of them than it was asked for.
        Exception: whatever the task raises. What was done before is kept.
    """
    if task.count < 1:
        raise ValueError(f"the task {task.kind} has no items")
    cell.begin(determined_by)
    rows = min(batch, -(-task.count // parts) * parts)
    for part in batches(missing(task, cell), rows):
        filled = part + part[-1:] * (rows - len(part))
        outcome = task.run(model, filled, seed)
        outcome.check(len(filled))
        cell.append(part, outcome, shown)
        done(len(part))


def batches(items: Sequence[int], size: int) -> Iterable[list[int]]:
    """`items` in parts of `size`; the last may be smaller."""
    return (list(items[start : start + size]) for start in range(0, len(items), size))
