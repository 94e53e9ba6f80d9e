"""Edits: held-out targets, untouched pixels, and instructions."""

import itertools

import numpy as np
import pytest

from tuna_jax.emoji.world.edits import EDITS, EditSource
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import is_held_out

COUNT = 600


@pytest.fixture(scope="module")
def edits():
    source = EditSource()
    return [source[i] for i in range(COUNT)]


def test_an_edit_depends_only_on_its_index(edits):
    again = EditSource(length=1_000)
    assert all(again[i] == edits[i] for i in (599, 0, 7))
    assert EditSource(seed=1)[0] != edits[0] != EditSource("test")[0]
    with pytest.raises(IndexError, match="600"):
        EditSource(length=COUNT)[COUNT]


def test_only_test_targets_are_held_out(edits):
    assert not any(is_held_out(edit.source) or is_held_out(edit.target) for edit in edits)
    test = EditSource("test")
    assert all(is_held_out(test[i].target) for i in range(200))


def test_kinds_have_their_frequencies(edits):
    counts = {kind: sum(edit.kind == kind for edit in edits) / COUNT for kind in EDITS}
    assert abs(counts["replace"] - 0.35) < 0.06 and abs(counts["remove"] - 0.2) < 0.06
    moves = EditSource(weights={"move": 1.0})
    assert {moves[i].kind for i in range(30)} == {"move"}
    with pytest.raises(ValueError, match="edits.*paint"):
        EditSource(weights={"paint": 1.0})


def boxes(scene):
    return {(thing.name, thing.left, thing.top, thing.size) for thing in scene.things}


def test_only_the_edited_part_changes(edits):
    """Outside the boxes of changed objects the images are equal to the pixel; inside they differ."""
    for edit in edits[:200]:
        before, after = render(edit.source), render(edit.target)
        changed = boxes(edit.source) ^ boxes(edit.target)
        same = (before == after).all(-1)
        if edit.kind == "recolour":
            assert not changed and edit.source.ground != edit.target.ground
            assert not same[0, 0] and same.any(), "ground changes, objects stay"
            continue
        assert edit.source.rgb == edit.target.rgb and edit.source.ground == edit.target.ground
        touched = np.zeros_like(same)
        for _, left, top, size in changed:
            touched[top : top + size, left : left + size] = True
        assert same[~touched].all() and not same[touched].all()
        counts = {"replace": (1, 1), "move": (1, 1), "remove": (1, 0)}[edit.kind]
        removed, added = (
            boxes(edit.source) - boxes(edit.target),
            boxes(edit.target) - boxes(edit.source),
        )
        assert (len(removed), len(added)) == counts


def test_instructions_name_the_changed_objects(edits):
    for edit in edits:
        assert len(set(edit.instructions)) >= 3
        old, new = set(edit.source.names), set(edit.target.names)
        for text in edit.instructions:
            if edit.kind == "recolour":
                assert edit.target.ground in text
            if edit.kind == "move":
                assert edit.target.place in text and edit.source.names[0] in text
            if edit.kind in ("replace", "remove"):
                assert all(name in text for name in old ^ new)


def test_source_and_instruction_determine_the_target():
    """Except for the shade of a new ground."""
    targets: dict = {}
    for edit in itertools.islice(map(EditSource().__getitem__, range(3_000)), 3_000):
        for text in edit.instructions:
            key = (boxes(edit.source).__repr__(), edit.source.ground, text)
            assert targets.setdefault(key, boxes(edit.target)) == boxes(edit.target)
