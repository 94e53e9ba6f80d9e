"""The judge of clips: motions, objects and grounds; and questions with exact answers."""

import dataclasses

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import clips
from tuna_jax.emoji.world.clips import MOTIONS, clip_questions, render_clip

COUNT, FRAMES = 64, 4


@pytest.fixture(scope="module")
def generated():
    """Renderings of held-out clips."""
    frames = np.stack([render_clip(clip) for clip in clips.test_clips(COUNT, FRAMES)])
    return clips.generate_split(lambda prompts, count, seed: frames, COUNT, FRAMES)


def with_frames(generated, frames):
    return dataclasses.replace(generated, frames=frames)


def shares(generated, judge):
    scores = clips.clip_scores(generated, clips.judge_clips(generated, judge), 64)
    return {name: score.value for name, score in scores.items()}


def test_true_clips_are_right(generated, judge):
    assert set(shares(generated, judge).values()) == {1.0}
    assert {clip.motion for clip in generated.clips} == set(MOTIONS)
    scores = clips.clip_scores(generated, clips.judge_clips(generated, judge), 64)
    assert scores["clip_motion_accuracy"].chance == 1 / 8 and scores["clip_accuracy"].count == COUNT


def test_reversed_clips_have_another_motion(generated):
    motions = clips.judge_motion(generated.frames[:, ::-1])
    opposite = {
        "right": "left",
        "left": "right",
        "up": "down",
        "down": "up",
        "grow": "shrink",
        "shrink": "grow",
    }
    for clip, motion in zip(generated.clips, motions, strict=True):
        # A reversed turn starts rotated and turns in the other direction.
        other = "turn right" if clip.motion == "turn left" else "turn left"
        assert motion == opposite.get(clip.motion, other)


def test_a_still_clip_has_no_motion(generated):
    still = np.repeat(generated.frames[:, :1], FRAMES, axis=1)
    assert set(clips.judge_motion(still)) == {clips.STILL}


def test_shuffled_clips_score_at_chance(generated, judge):
    values = shares(with_frames(generated, np.roll(generated.frames, 5, axis=0)), judge)
    assert values["clip_object_accuracy"] < 0.1 and values["clip_accuracy"] < 0.05
    assert values["clip_motion_accuracy"] < 0.3 and values["clip_ground_accuracy"] < 0.35


def test_the_object_at_the_end_of_a_turn_is_judged(generated, judge):
    """A turn that ends in a blot has the right motion and the wrong object."""
    frames = generated.frames.copy()
    turns = [i for i, clip in enumerate(generated.clips) if "turn" in clip.motion]
    for i in turns:
        frames[i, 2:, 12:52, 12:52] = frames[i, 0, 12:52, 12:52].mean((0, 1))
    right = clips.judge_clips(with_frames(generated, frames), judge)["object"]
    assert right[turns].mean() < 0.25, "a blot rarely resembles an object"
    assert np.delete(right, turns).all()


def test_the_ceiling_through_the_vae_is_near_full(generated, judge, through_vae):
    flat = through_vae(generated.frames.reshape(-1, 64, 64, 3))
    values = shares(with_frames(generated, flat.reshape(generated.frames.shape)), judge)
    assert min(values.values()) > 0.93


@pytest.mark.parametrize("kind", ["motion", "direction", "name", "ground", "describe"])
def test_only_exact_answers_are_right(kind):
    answers = {}
    for clip in clips.test_clips(60, FRAMES):
        frames = render_clip(clip).tobytes()
        answers |= {(frames, q.question): q.answer for q in clip_questions(clip)}

    def answer(media, questions):
        return [answers[clip.tobytes(), q] for clip, q in zip(media, questions, strict=True)]

    score, answered = clips.ask_clips(answer, kind, 20, FRAMES, names=64)
    assert score.value == 1.0 and score.count == 20 and score.chance < 0.5
    assert len({item.question for item in answered}) >= (
        2 if kind in ("motion", "direction") else 1
    )
    score, _ = clips.ask_clips(
        lambda media, questions: [f"{text}s" for text in answer(media, questions)],
        kind,
        20,
        FRAMES,
        names=64,
    )
    assert score.value == 0.0
