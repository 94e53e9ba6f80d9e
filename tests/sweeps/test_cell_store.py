"""Cells of a sweep: every item once, whatever the batch, the interruptions and what a kill left behind."""

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
    draw = [np.random.default_rng((seed, item)) for item in items]
    return Outcome(
        {"right": [float(item % 3 == 0) for item in items], "db": [one.normal() for one in draw]},
        prompts=[f"item {item}" for item in items],
        pictures=np.stack([np.full((4, 4, 3), item, np.uint8) for item in items]),
    )


def task(count=10, calls=None, fail_after=None):
    """Items told by their number; keeps what it was called with."""
    calls = [] if calls is None else calls

    def run(model, items, seed):
        calls.append(list(items))
        if fail_after is not None and len(calls) > fail_after:
            raise Interrupted
        return outcome(items, seed)

    return Task("numbers", 1, count, {"of": "all"}, ("guidance",), run, {}, "right")


def fill(one, folder, **options):
    cell_store.run_missing(one, Cell(folder), None, {"a": 1}, seed=SEED, **options)
    return Cell(folder).records()


def test_results_do_not_depend_on_the_batch_and_every_call_has_as_many_rows(tmp_path):
    whole = fill(task(), tmp_path / "whole", batch=10)
    assert list(whole) == list(range(10))
    for batch, parts in ((3, 1), (4, 4), (64, 8)):
        calls = []
        found = fill(task(calls=calls), tmp_path / str(batch), batch=batch, parts=parts)
        assert found == whole
        assert len({len(items) for items in calls}) == 1 and len(calls[0]) % parts == 0
    assert len(calls[0]) == 16, "no more rows than the items want"


def test_finished_items_are_not_run_again(tmp_path):
    with pytest.raises(Interrupted):
        fill(task(fail_after=2), tmp_path, batch=3)
    assert list(Cell(tmp_path).records()) == list(range(6))
    calls, done = [], []
    found = fill(task(calls=calls), tmp_path, batch=5, done=done.append)
    assert calls == [[6, 7, 8, 9, 9]] and done == [4]
    assert found == fill(task(), tmp_path / "other", batch=10)
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


def test_a_metric_that_does_not_apply_is_no_number(tmp_path):
    def run(model, items, seed):
        return Outcome(
            {"x": [float("nan")] * len(items)}, ["?"] * len(items), None, ["yes"] * len(items)
        )

    one = dataclasses.replace(task(2), run=run)
    record = fill(one, tmp_path, batch=2)[0]
    assert record["values"] == {"x": None} and record["text"] == "yes"


def test_a_task_that_returns_too_few_results_is_refused(tmp_path):
    one = dataclasses.replace(task(), run=lambda model, items, seed: outcome(items[:-1]))
    with pytest.raises(ValueError, match="3 entries of 'prompts' for 4 items"):
        fill(one, tmp_path, batch=4)
    with pytest.raises(ValueError, match="numbers has no items"):
        fill(task(0), tmp_path, batch=4)


def test_a_cell_is_named_by_all_that_determines_it():
    settings = {"guidance": 2.0, "steps": 9}

    def key(one=None, model="a", chosen=settings, seed=SEED):
        determined_by = cell_store.determining(one or task(), {"parameters": model}, chosen, seed)
        return cell_store.key_of(determined_by)

    others = [
        key(model="b"),
        key(seed=8),
        key(chosen={**settings, "guidance": 3.0}),
        key(chosen={}),
        key(dataclasses.replace(task(), version=2)),
        key(dataclasses.replace(task(), options={"of": "some"})),
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
    drawing = Task("draw_single", 1, 4, {}, ("guidance", "steps"), lambda *_: None, {}, "object")
    key = cell_store.key_of(
        cell_store.determining(drawing, {"parameters": "x"}, {"guidance": 2.0, "steps": 9}, 7)
    )
    before = {
        "task": {"kind": "draw_single", "version": 1, "count": 4},
        "options": {},
        "model": {"parameters": "x"},
        "settings": {"guidance": 2.0, "points": 10},
        "seed": 7,
    }
    assert key == cell_store.key_of(before)
