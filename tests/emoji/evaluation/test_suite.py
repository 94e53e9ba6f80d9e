"""All tasks measured together, and the report of edits and clips."""

import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tuna_jax.emoji.evaluation import clips, combine, continuations, edits, report, suite
from tuna_jax.emoji.world.clips import clip_captions, clip_questions, render_clip


@pytest.fixture(scope="module")
def evaluation(judge):
    """Of a model that knows all edits and clips, and no answer in a conversation."""
    rendered, answers = {}, {}
    for clip in clips.test_clips(40, 4):
        frames = render_clip(clip)
        rendered |= dict.fromkeys(clip_captions(clip), frames)
        answers |= {(frames.tobytes(), q.question): q.answer for q in clip_questions(clip)}
    targets = edits.edit_split(lambda images, instructions, seed: images, 12).targets
    tasks = suite.TaskFunctions(
        edit=lambda images, instructions, seed: targets,
        generate_clips=lambda prompts, frames, seed: np.stack([rendered[p] for p in prompts]),
        answer_clips=lambda media, questions: [
            answers[clip.tobytes(), text] for clip, text in zip(media, questions, strict=True)
        ],
        converse=lambda images, questions, histories: ["so?"] * len(questions),
        combine=lambda pairs, instructions, seed: combine.test_items(range(len(pairs))).targets,
        continue_clips=lambda firsts, texts, frames, seed: (
            continuations.test_items(range(len(firsts)), frames).true
        ),
    )
    return suite.measure(
        tasks,
        reconstruct=lambda images: images,
        judge=judge,
        generations=12,
        questions=12,
        strips_per_sheet=5,
    )


def test_every_task_is_measured_with_examples(evaluation):
    assert set(evaluation.scores) <= set(report.MEANING)
    for name, score in evaluation.scores.items():
        assert score.value == (0.0 if name.startswith("dialogue") else 1.0), name
    assert {name.split("_")[0] for name in evaluation.scores} == {
        *("edit", "clip", "dialogue"),
        *("combine", "i2v"),
    }
    made = ("edit", "clip", "combine", "i2v")
    ceilings = {n: s for n, s in evaluation.ceilings.items() if n.startswith(made)}
    assert {name.split("_")[0] for name in ceilings} == set(made)
    assert all(score.value == 1.0 for score in ceilings.values())
    vae, *others = evaluation.sheets
    assert len(vae.images) == 16 and [len(sheet.images) for sheet in others] == [5] * 4
    assert evaluation.clips[0].frames.shape == (5, 4, 64, 64, 3)
    assert "edit_move_untouched_db" in evaluation.decibels


def test_untrained_tasks_are_not_measured(judge):
    empty = suite.Evaluation({}, {}, [], [], None)
    assert suite.measure(suite.TaskFunctions(), judge=judge) == empty


def test_the_report_has_edits_and_animated_clips(evaluation, tmp_path):
    page = report.write(tmp_path, evaluation).read_text()
    assert page.count("data:image/gif") == 2 and "Edit: remove" in page and "untouched" in page
    assert "--wide:" in page
    gif = Image.open(tmp_path / "sheets" / "clips_0.gif")
    frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
    assert len(frames) == 4 and (frames[0] != frames[3]).any()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["edit_remove_accuracy"]["value"] == 1.0
    assert summary["edit_move_untouched_db"] > 50
    assert summary["geneval"] == {}
    evaluation.scores["single_object_accuracy"] = evaluation.scores["edit_accuracy"]
    assert report.summary(evaluation, None)["geneval"] == {"single_object": 1.0}
