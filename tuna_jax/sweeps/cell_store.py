"""A cell of a sweep's table: one task on one checkpoint with one choice of settings, in a folder named by a hash.

    KEY/cell.json     everything that determines the results, in readable form
    KEY/items.jsonl   one line per item, appended batch by batch: {"item", "prompt", "expected", "text", "values"}, and
                      "error" with the reason if the item failed
    KEY/0003.png      the generated image of item 3 (or its input image), for the first items
    KEY/files/        files for an external scorer, of tasks that write some

A killed sweep loses only the batch in progress. A truncated line is dropped, and its item is run again.
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
from tuna_jax.utils import old_names
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.text_files import json_line, read_log

FORMAT = 1
FILES = "files"
Record = dict[str, Any]
"""A line of items.jsonl."""


def key_of(determined_by: Mapping[str, Any]) -> str:
    """The name of a cell: a hash of everything that its results depend on, given as JSON values."""
    text = json.dumps({"format": FORMAT, **determined_by}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def determining(
    task: Task, model: Mapping[str, Any], settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Everything that a cell's results depend on.

    Args:
        task: the task.
        model: identifies the parameters: hashes of files, and whether they are averaged.
        settings: the choice of settings; those that the task does not use are left out.
        seed: the sweep's seed.
    """
    return {
        "task": {"kind": task.kind, "version": task.version, "count": task.count},
        "options": dict(task.options),
        "model": dict(model),
        "settings": old_names.hashed_settings(
            {name: settings[name] for name in task.uses if name in settings}
        ),
        "seed": seed,
    }


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell's folder, which need not exist."""

    folder: Path

    def records(self) -> dict[int, Record]:
        """The finished items' records, by item."""
        path, records = self.folder / "items.jsonl", {}
        for record in read_log(path) if path.is_file() else ():
            if "asked" in record:  # The key of earlier versions.
                record["prompt"] = record.pop("asked")
            records[record["item"]] = record
        return dict(sorted(records.items()))

    def pictures(self) -> dict[int, np.ndarray]:
        """The images of the first items, uint8 [height, width, 3]."""
        files = self.files()
        return {item: np.asarray(Image.open(file).convert("RGB")) for item, file in files.items()}

    def files(self) -> dict[int, Path]:
        """The image files, by item."""
        return {int(path.stem): path for path in sorted(self.folder.glob("[0-9]*.png"))}

    def files_entry(self) -> dict[str, str]:
        """The entry `files` of a row of results: the folder of the files for a scorer, if there are any."""
        folder = self.folder / FILES
        return {"files": str(folder)} if folder.is_dir() else {}

    def append(self, items: Sequence[int], outcome: Outcome, saved_items: int) -> None:
        """Adds the first `len(items)` rows of an outcome; images are saved of items below `saved_items`."""
        for row, item in enumerate(items):
            if outcome.pictures is not None and item < saved_items:
                with atomic_file(self.folder / f"{item:04d}.png") as scratch:
                    Image.fromarray(outcome.pictures[row]).save(scratch, format="PNG")
            for path, content in (outcome.files[row] if outcome.files else {}).items():
                with atomic_file(self.folder / FILES / path) as scratch:
                    scratch.write_bytes(content)
        lines = [json_line(_record(item, row, outcome)) for row, item in enumerate(items)]
        with (self.folder / "items.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())

    def begin(self, determined_by: Mapping[str, Any]) -> None:
        """Creates the folder and drops a truncated last line, to which the next one would be appended."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / "cell.json") as scratch:
            scratch.write_text(json.dumps(determined_by, indent=1) + "\n", encoding="utf-8")
        records = self.records()
        with atomic_file(self.folder / "items.jsonl") as scratch:
            lines = [json_line(record) for record in records.values()]
            scratch.write_text("".join(lines), encoding="utf-8")


def _record(item: int, row: int, outcome: Outcome) -> Record:
    values = {name: float(rows[row]) for name, rows in outcome.values.items()}
    record: Record = {"item": int(item), "prompt": outcome.prompts[row]}
    if outcome.expected is not None:
        record["expected"] = outcome.expected[row]
    if outcome.texts is not None:
        record["text"] = outcome.texts[row]
    if outcome.errors is not None and outcome.errors[row]:
        return record | {"values": {}, "error": outcome.errors[row]}
    # JSON has no NaN.
    record["values"] = {name: v if math.isfinite(v) else None for name, v in values.items()}
    return record


def missing(task: Task, cell: Cell) -> list[int]:
    """Items of a task that have no record yet, or whose record says that they failed: their file may be there now."""
    finished = {item for item, record in cell.records().items() if "error" not in record}
    return [item for item in range(task.count) if item not in finished]


def run_missing(
    task: Task,
    cell: Cell,
    model: Any,
    determined_by: Mapping[str, Any],
    *,
    seed: int,
    batch: int,
    parts: int = 1,
    saved_items: int = 8,
    done: Callable[[int], object] = lambda count: None,
) -> None:
    """Runs a task on all items that a cell lacks.

    Every call of the task has the same number of rows, so that few programs are compiled: the last batch is padded with
    its last item, and the results of the padding are discarded.

    Args:
        task: the task.
        cell: where results are stored.
        model: passed to the task.
        determined_by: see `determining`.
        seed: the sweep's seed.
        batch: the most rows per call.
        parts: a number that must divide the rows of a call: the mesh's parts of a batch.
        saved_items: of how many items images are saved.
        done: called after every batch with its number of items.

    Raises:
        ValueError: the task has no items, or returns a number of results that differs from the number of items.
        Exception: any error of the task. Earlier batches are kept.
    """
    if task.count < 1:
        raise ValueError(f"the task {task.kind} has no items")
    cell.begin(determined_by)
    rows = min(batch, -(-task.count // parts) * parts)
    for part in batches(missing(task, cell), rows):
        padded = part + part[-1:] * (rows - len(part))
        outcome = task.run(model, padded, seed)
        outcome.check(len(padded))
        cell.append(part, outcome, saved_items)
        done(len(part))


def batches(items: Sequence[int], size: int) -> Iterable[list[int]]:
    """`items` in parts of `size`; the last may be smaller."""
    return (list(items[start : start + size]) for start in range(0, len(items), size))
