"""Clips, drawn and understood.

A drawn clip is judged by its track: the centroid of what is not ground tells a move, its area growing and
shrinking, and if neither changes, the angle at which the first frame matches the later ones best tells a turn. The
object is named, as in pictures, in the first and the last frame where it is of a usual size, and after a turn it is put
upright for that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from tuna_jax.emoji.evaluation.images import SEED, Answered
from tuna_jax.emoji.evaluation.judges import JUDGES, ObjectJudge, judge_ground
from tuna_jax.emoji.world.clips import (
    CLIP_KINDS,
    MOTIONS,
    QUARTER,
    Clip,
    ClipSource,
    clip_captions,
    clip_questions,
    ends,
    render_clip,
)
from tuna_jax.emoji.world.scenes import GROUNDS
from tuna_jax.evaluation.metrics.accuracy import Score, commonest_share

Clips = UInt8[np.ndarray, "n frames size size 3"]
DrawClips = Callable[[Sequence[str], int, int], Clips]
AnswerClips = Callable[[Clips, Sequence[str]], Sequence[str]]
STILL = "still"
_MOVED = 16.0  # 64ths of the picture, of the 32 that a move has
_GROWN = 1.5  # of the 2.9 that a growing object's area has


@dataclasses.dataclass(frozen=True)
class DrawnClips:
    """Clips of the test split and what the model drew from their captions."""

    clips: tuple[Clip, ...]
    prompts: tuple[str, ...]
    frames: Clips

    @property
    def strips(self) -> UInt8[np.ndarray, "n size wide 3"]:
        """The frames of each side by side."""
        return strips(self.frames)


def strips(frames: Clips) -> UInt8[np.ndarray, "n size wide 3"]:
    """The frames of each clip side by side, with gaps."""
    gap = np.full((*frames[:, 0].shape[:2], 2, 3), 255, np.uint8)
    parts = [part for i in range(frames.shape[1]) for part in (frames[:, i], gap)]
    return np.concatenate(parts[:-1], axis=2)


def test_clips(count: int, frames: int, seed: int = SEED, size: int = 64) -> tuple[Clip, ...]:
    """The first `count` clips of the test split."""
    source = ClipSource("test", seed, size, frames=frames)
    return tuple(source[i] for i in range(count))


def draw_clips(
    draw: DrawClips, count: int, frames: int, seed: int = SEED, size: int = 64
) -> DrawnClips:
    """Draws `count` held-out clips; the prompts take turns through all phrasings."""
    clips = test_clips(count, frames, seed, size)
    prompts = tuple(known[i % len(known)] for i, known in enumerate(map(clip_captions, clips)))
    drawn = np.asarray(draw(prompts, frames, seed))
    if drawn.shape != (count, frames, size, size, 3) or drawn.dtype != np.uint8:
        raise ValueError(
            f"draw returned {drawn.dtype} of shape {drawn.shape} for {count} prompts; it must be uint8 "
            f"[{count}, {frames}, {size}, {size}, 3]"
        )
    return DrawnClips(clips, prompts, drawn)


def judge_motion(frames: Clips) -> list[str]:
    """What each clip shows: one of MOTIONS, or STILL."""
    grounds = judge_ground(frames[:, 0])
    return [_motion(clip, GROUNDS[name]) for clip, name in zip(frames, grounds, strict=True)]


def _motion(frames: UInt8[np.ndarray, "f size size 3"], ground: tuple[int, int, int]) -> str:
    off = np.abs(frames[[0, -1]].astype(np.float32) - np.array(ground, np.float32)).max(-1)
    weight = np.clip(off - 25, 0, 60)
    size = frames.shape[1]
    along = (np.arange(size) + 0.5) / size * 64
    total = np.maximum(weight.sum((1, 2)), 1e-6)
    x, y = weight.sum(1) @ along / total, weight.sum(2) @ along / total
    across, down = float(x[1] - x[0]), float(y[1] - y[0])
    if max(abs(across), abs(down)) > _MOVED:
        if abs(across) > abs(down):
            return "right" if across > 0 else "left"
        return "down" if down > 0 else "up"
    ratio = float(total[1] / total[0])
    if ratio > _GROWN or ratio < 1 / _GROWN:
        return "grow" if ratio > 1 else "shrink"
    first = Image.fromarray(frames[0])
    errors = {}
    for name, sign in ((STILL, 0), ("turn left", 1), ("turn right", -1)):
        errors[name] = 0.0
        for i in range(1, len(frames)):
            angle = sign * QUARTER * round(i / (len(frames) - 1))
            turned = first.rotate(angle, fillcolor=ground)
            gap = np.asarray(turned, np.float32) - frames[i]
            errors[name] += float(np.mean(gap**2))
    return min(errors, key=lambda name: errors[name])


def clip_verdicts(drawn: DrawnClips, judge: ObjectJudge) -> dict[str, Bool[np.ndarray, " n"]]:
    """By what is asked ('object', 'ground', 'motion'), whether each clip is right."""
    rows, cells, pictures = [], [], []
    for i, clip in enumerate(drawn.clips):
        for frame, end in zip((0, -1), ends(clip.motion), strict=True):
            if end is not None:
                cell, quarters = end
                rows.append(i)
                cells.append(cell)
                pictures.append(np.rot90(drawn.frames[i, frame], -quarters))
    seen = judge(np.stack(pictures), cells, [drawn.clips[i].ground for i in rows])
    right = np.ones(len(drawn.clips), bool)
    for key in JUDGES:
        for i, name in zip(rows, seen[key], strict=True):
            right[i] &= name == drawn.clips[i].name
    ground = np.ones(len(drawn.clips), bool)
    for frame in range(drawn.frames.shape[1]):
        found = judge_ground(drawn.frames[:, frame])
        ground &= np.array([a == clip.ground for a, clip in zip(found, drawn.clips, strict=True)])
    told = judge_motion(drawn.frames)
    motion = np.array([a == clip.motion for a, clip in zip(told, drawn.clips, strict=True)])
    return {"object": right, "ground": ground, "motion": motion}


def clip_scores(
    drawn: DrawnClips, right: dict[str, Bool[np.ndarray, " n"]], names: int
) -> dict[str, Score]:
    """Scores of drawn clips: the object, the ground, the motion (by kind of it), and all three."""
    chance = {"object": 1 / names, "ground": 1 / len(GROUNDS), "motion": 1 / len(MOTIONS)}
    kinds = [clip.motion for clip in drawn.clips]
    by = {
        motion: right["motion"][[kind == motion for kind in kinds]].tolist()
        for motion in MOTIONS
        if motion in kinds
    }
    scores = {
        f"clip_{what}_accuracy": Score.of(
            right[what].tolist(), chance[what], by if what == "motion" else None
        )
        for what in ("motion", "object", "ground")
    }
    whole = right["object"] & right["ground"] & right["motion"]
    scores["clip_accuracy"] = Score.of(whole.tolist(), float(np.prod(list(chance.values()))))
    return scores


def ask_clips(
    answer: AnswerClips, kind: str, count: int, frames: int, *, names: int, seed: int = SEED
) -> tuple[Score, list[Answered]]:
    """Asks one kind of question (`motions.CLIP_KINDS`) about renderings of held-out clips; exact answers count."""
    if kind not in CLIP_KINDS:
        raise KeyError(f"{kind!r} is no kind of question about clips: {', '.join(CLIP_KINDS)}")
    clips, asked = [], []
    for clip in test_clips(2 * count, frames, seed):
        fitting = [item for item in clip_questions(clip) if item.kind == kind]
        if fitting and len(asked) < count:
            clips.append(clip)
            asked.append(fitting[len(asked) % len(fitting)])
    shown = np.stack([render_clip(clip) for clip in clips])
    texts = list(answer(shown, [item.question for item in asked]))
    given = [
        Answered(strip, f"clip: {kind}", item.question, item.answer, text)
        for strip, item, text in zip(strips(shown), asked, texts, strict=True)
    ]
    known = {"motion": 1 / len(MOTIONS), "name": 1 / names, "ground": 1 / len(GROUNDS)}
    chance = known.get(kind, commonest_share([item.answer for item in asked]))
    return Score.of([item.right for item in given], chance), given
