"""Cells of a sweep: every item once, for any batch size, after interruptions and after a kill."""

import dataclasses
import json

import numpy as np
import pytest

from tuna_jax.sweeps import cell_store
from tuna_jax.sweeps.cell_store import Cell
from tuna_jax.sweeps.task import Outcome, Task

SEED = 7


class Interrupted(Exception):
    pass


def outcome(items, seed=SEED):
    generators = [np.random.default_rng((seed, item)) for item in items]
    return Outcome(
        {
            "right": [float(item % 3 == 0) for item in items],
            "db": [generator.normal() for generator in generators],
        },
        prompts=[f"item {item}" for item in items],
        pictures=np.stack([np.full((4, 4, 3), item, np.uint8) for item in items]),
    )


def task(count=10, calls=None, fail_after=None):
    """A task whose items are identified by number; `calls` records the items of each call."""
    calls = [] if calls is None else calls

    def run(model, items, seed):
        calls.append(list(items))
        if fail_after is not None and len(calls) > fail_after:
            raise Interrupted
        return outcome(items, seed)

    return Task("numbers", 1, count, {"of": "all"}, ("guidance",), run, {}, "right")


def fill(task, folder, **options):
    cell_store.run_missing(task, Cell(folder), None, {"a": 1}, seed=SEED, **options)
    return Cell(folder).records()


def test_results_do_not_depend_on_the_batch_and_all_calls_have_the_same_size(tmp_path):
    whole = fill(task(), tmp_path / "whole", batch=10)
    assert list(whole) == list(range(10))
    for batch, parts in ((3, 1), (4, 4), (64, 8)):
        calls = []
        records = fill(task(calls=calls), tmp_path / str(batch), batch=batch, parts=parts)
        assert records == whole
        assert len({len(items) for items in calls}) == 1 and len(calls[0]) % parts == 0
    assert len(calls[0]) == 16, "no more rows than the items need"


def test_finished_items_are_not_run_again(tmp_path):
    with pytest.raises(Interrupted):
        fill(task(fail_after=2), tmp_path, batch=3)
    assert list(Cell(tmp_path).records()) == list(range(6))
    calls, done = [], []
    records = fill(task(calls=calls), tmp_path, batch=5, done=done.append)
    assert calls == [[6, 7, 8, 9, 9]] and done == [4]
    assert records == fill(task(), tmp_path / "other", batch=10)
    fill(task(calls=calls), tmp_path, batch=5)
    assert len(calls) == 1


def test_a_truncated_line_is_run_again(tmp_path):
    whole = fill(task(), tmp_path, batch=10)
    path = tmp_path / "items.jsonl"
    text = path.read_text()
    path.write_text(text[: text.index('"item": 7') + 20])
    calls = []
    assert fill(task(calls=calls), tmp_path, batch=10) == whole
    assert calls[0][:3] == [7, 8, 9]
    assert [json.loads(line)["item"] for line in path.read_text().splitlines()] == list(range(10))


def test_pictures_of_the_first_items_are_kept_to_the_bit(tmp_path):
    fill(task(), tmp_path, batch=4, saved_items=3)
    kept = Cell(tmp_path).pictures()
    assert list(kept) == [0, 1, 2]
    np.testing.assert_array_equal(kept[2], outcome([2]).pictures[0])


def test_a_metric_that_does_not_apply_is_null(tmp_path):
    def run(model, items, seed):
        return Outcome(
            {"x": [float("nan")] * len(items)}, ["?"] * len(items), None, ["yes"] * len(items)
        )

    changed = dataclasses.replace(task(2), run=run)
    record = fill(changed, tmp_path, batch=2)[0]
    assert record["values"] == {"x": None} and record["text"] == "yes"


def test_a_task_that_returns_too_few_results_is_refused(tmp_path):
    changed = dataclasses.replace(task(), run=lambda model, items, seed: outcome(items[:-1]))
    with pytest.raises(ValueError, match="3 entries of 'prompts' for 4 items"):
        fill(changed, tmp_path, batch=4)
    with pytest.raises(ValueError, match="numbers has no items"):
        fill(task(0), tmp_path, batch=4)


def test_the_key_of_a_cell_depends_on_all_that_determines_its_results():
    settings = {"guidance": 2.0, "steps": 9}

    def key(changed=None, model="a", chosen=settings, seed=SEED):
        determined_by = cell_store.determining(
            changed or task(), {"parameters": model}, chosen, seed
        )
        return cell_store.key_of(determined_by)

    others = [
        key(model="b"),
        key(seed=8),
        key(chosen={**settings, "guidance": 3.0}),
        key(chosen={}),
        key(dataclasses.replace(task(), version=2)),
        key(dataclasses.replace(task(), options={"of": "few"})),
        key(dataclasses.replace(task(), kind="letters")),
        key(task(11)),
    ]
    assert len({key(), *others}) == len(others) + 1
    assert key(chosen={**settings, "steps": 19}) == key(), "this task does not use steps"


def test_records_of_an_earlier_version_are_read(tmp_path):
    """They had the prompt under another key."""
    old = {"item": 0, "asked": "a dog", "values": {"x": 1.0}}
    (tmp_path / "items.jsonl").write_text(json.dumps(old) + "\n")
    assert Cell(tmp_path).records() == {0: {"item": 0, "prompt": "a dog", "values": {"x": 1.0}}}


def test_results_that_an_earlier_version_stored_are_found():
    """Their key hashed points of the time grid, and the old names of tasks."""
    generation = Task("draw_single", 1, 4, {}, ("guidance", "steps"), lambda *_: None, {}, "object")
    key = cell_store.key_of(
        cell_store.determining(generation, {"parameters": "x"}, {"guidance": 2.0, "steps": 9}, 7)
    )
    before = {
        "task": {"kind": "draw_single", "version": 1, "count": 4},
        "options": {},
        "model": {"parameters": "x"},
        "settings": {"guidance": 2.0, "points": 10},
        "seed": 7,
    }
    assert key == cell_store.key_of(before)
