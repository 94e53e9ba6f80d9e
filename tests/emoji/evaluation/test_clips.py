"""The judge of clips: motions told from tracks, and questions with exact answers."""

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import clips
from tuna_jax.emoji.world.clips import MOTIONS, clip_questions, render_clip

COUNT, FRAMES = 64, 4


@pytest.fixture(scope="module")
def drawn():
    """Held-out clips as they are rendered."""
    known = clips.test_clips(COUNT, FRAMES)
    frames = np.stack([render_clip(clip) for clip in known])
    return clips.draw_clips(lambda prompts, count, seed: frames, COUNT, FRAMES)


def again(drawn, frames):
    return clips.DrawnClips(drawn.clips, drawn.prompts, frames)


def shares(drawn, judge):
    scores = clips.clip_scores(drawn, clips.clip_verdicts(drawn, judge), 64)
    return {name: score.value for name, score in scores.items()}


def test_true_clips_are_right(drawn, judge):
    assert set(shares(drawn, judge).values()) == {1.0}
    assert {clip.motion for clip in drawn.clips} == set(MOTIONS)
    found = clips.clip_scores(drawn, clips.clip_verdicts(drawn, judge), 64)
    assert found["clip_motion_accuracy"].chance == 1 / 8 and found["clip_accuracy"].count == COUNT


def test_backwards_every_motion_is_another(drawn):
    backwards = clips.judge_motion(drawn.frames[:, ::-1])
    opposite = {
        "right": "left",
        "left": "right",
        "up": "down",
        "down": "up",
        "grow": "shrink",
        "shrink": "grow",
    }
    for clip, told in zip(drawn.clips, backwards, strict=True):
        # A turn backwards begins turned, and turns the other way.
        other = "turn right" if clip.motion == "turn left" else "turn left"
        assert told == opposite.get(clip.motion, other)


def test_a_still_clip_shows_no_motion(drawn):
    still = np.repeat(drawn.frames[:, :1], FRAMES, axis=1)
    assert set(clips.judge_motion(still)) == {clips.STILL}


def test_shuffled_clips_score_at_chance(drawn, judge):
    found = shares(again(drawn, np.roll(drawn.frames, 5, axis=0)), judge)
    assert found["clip_object_accuracy"] < 0.1 and found["clip_accuracy"] < 0.05
    assert found["clip_motion_accuracy"] < 0.3 and found["clip_ground_accuracy"] < 0.35


def test_what_a_turn_ends_with_is_named_too(drawn, judge):
    """A turned blot has the motion, and not the object."""
    frames = drawn.frames.copy()
    turns = [i for i, clip in enumerate(drawn.clips) if "turn" in clip.motion]
    for i in turns:
        frames[i, 2:, 12:52, 12:52] = frames[i, 0, 12:52, 12:52].mean((0, 1))
    right = clips.clip_verdicts(again(drawn, frames), judge)["object"]
    assert right[turns].mean() < 0.25, "a blot is hardly anything"
    assert np.delete(right, turns).all()


def test_the_ceiling_through_the_vae_is_near_full(drawn, judge, through_vae):
    flat = through_vae(drawn.frames.reshape(-1, 64, 64, 3))
    found = shares(again(drawn, flat.reshape(drawn.frames.shape)), judge)
    assert min(found.values()) > 0.93


@pytest.mark.parametrize("kind", ["motion", "direction", "name", "ground", "describe"])
def test_exact_answers_count(kind):
    known = {}
    for clip in clips.test_clips(60, FRAMES):
        strip = render_clip(clip).tobytes()
        known |= {(strip, q.question): q.answer for q in clip_questions(clip)}

    def answer(shown, questions):
        return [known[clip.tobytes(), q] for clip, q in zip(shown, questions, strict=True)]

    score, given = clips.ask_clips(answer, kind, 20, FRAMES, names=64)
    assert score.value == 1.0 and score.count == 20 and score.chance < 0.5
    assert len({item.question for item in given}) >= (2 if kind in ("motion", "direction") else 1)
    score, _ = clips.ask_clips(
        lambda shown, questions: [f"{text}s" for text in answer(shown, questions)],
        kind,
        20,
        FRAMES,
        names=64,
    )
    assert score.value == 0.0
