"""Edits, clips and conversations measured together, and how the report shows them."""

import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tuna_jax.emoji.evaluation import clips, edits, report, suite, suite_tasks
from tuna_jax.emoji.world.clips import clip_captions, clip_questions, render_clip


@pytest.fixture(scope="module")
def found(judge):
    """A model that knows all edits and clips, and no answer in a conversation."""
    known = {}
    for clip in clips.test_clips(40, 4):
        known |= {text: render_clip(clip) for text in clip_captions(clip)}
        known |= {(render_clip(clip).tobytes(), q[0]): q.answer for q in clip_questions(clip)}
    truth = edits.change(lambda pictures, texts, seed: pictures, 12).targets
    able = suite_tasks.TaskFunctions(
        edit=lambda pictures, texts, seed: truth,
        draw_clips=lambda prompts, frames, seed: np.stack([known[text] for text in prompts]),
        answer_clips=lambda shown, asked: [
            known[clip.tobytes(), text] for clip, text in zip(shown, asked, strict=True)
        ],
        converse=lambda images, asked, histories: ["so?"] * len(asked),
    )
    empty = suite.Evaluation({}, {}, [], [], None)
    options = {"judge": judge, "drawings": 12, "answers": 12, "shown": 5}
    return suite_tasks.add(empty, able, reconstruct=lambda images: images, **options)


def test_everything_is_measured_and_kept_to_show(found):
    assert set(found.scores) <= set(report.MEANING)
    for name, score in found.scores.items():
        assert score.value == (0.0 if name.startswith("dialogue") else 1.0), name
    assert all(score.value == 1.0 for score in found.ceilings.values())
    assert {name.split("_")[0] for name in found.ceilings} == {"edit", "clip"}
    assert [len(sheet.images) for sheet in found.sheets] == [5, 5]
    assert found.clips[0].frames.shape == (5, 4, 64, 64, 3)
    assert "edit_move_untouched_db" in found.decibels


def test_what_is_not_trained_is_not_measured(judge):
    empty = suite.Evaluation({}, {}, [], [], None)
    assert suite_tasks.add(empty, suite_tasks.TaskFunctions(), judge=judge) == empty
    nothing = suite.measure(None, None, judge=judge)
    assert nothing.scores == {} and nothing.sheets == [] and nothing.answered == []


def test_the_report_shows_edits_and_clips_that_move(found, tmp_path):
    page = report.write(tmp_path, found).read_text()
    assert page.count("data:image/gif") == 1 and "Edit: remove" in page and "untouched" in page
    assert "--wide:" in page
    gif = Image.open(tmp_path / "sheets" / "clips_0.gif")
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
    assert len(frames) == 4 and (frames[0] != frames[3]).any()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["edit_remove_accuracy"]["value"] == 1.0
    assert summary["edit_move_untouched_db"] > 50
    assert summary["geneval"] == {}
    found.scores["single_object_accuracy"] = found.scores["edit_accuracy"]
    assert report.summary(found, None)["geneval"] == {"single_object": 1.0}
