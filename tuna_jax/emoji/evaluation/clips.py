"""Evaluation of clips: generation and understanding.

The motion of a generated clip is judged in three stages: the centroid of the foreground detects a move, its area
growing and shrinking, and if neither changes, the rotation of the first frame that matches the later frames best
detects a turn. The object is judged, as in images, in the first and the last frame if it has a standard size there;
after a turn, the frame is first rotated upright.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from tuna_jax.emoji.evaluation.images import SEED, AnsweredQuestion
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
GenerateClips = Callable[[Sequence[str], int, int], Clips]
AnswerClips = Callable[[Clips, Sequence[str]], Sequence[str]]
STILL = "still"
_MOVED = 16.0  # 64ths of the image side; a move covers 32
_GROWN = 1.5  # ratio of areas; a growing object has 2.9


@dataclasses.dataclass(frozen=True)
class GeneratedClips:
    """Clips of the test split, and what the model generated from their captions."""

    clips: tuple[Clip, ...]
    prompts: tuple[str, ...]
    frames: Clips

    @property
    def strips(self) -> UInt8[np.ndarray, "n size wide 3"]:
        """The frames of each clip side by side."""
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


def generate_split(
    generate: GenerateClips, count: int, frames: int, seed: int = SEED, size: int = 64
) -> GeneratedClips:
    """Generates `count` held-out clips; the prompts cycle through all phrasings.

    Raises:
        ValueError: `generate` returned another dtype or shape than uint8 [count, frames, size, size, 3].
    """
    clips = test_clips(count, frames, seed, size)
    phrasings = [clip_captions(clip) for clip in clips]
    prompts = tuple(texts[i % len(texts)] for i, texts in enumerate(phrasings))
    generated = np.asarray(generate(prompts, frames, seed))
    if generated.shape != (count, frames, size, size, 3) or generated.dtype != np.uint8:
        raise ValueError(
            f"generate returned {generated.dtype} of shape {generated.shape} for {count} prompts; it must be uint8 "
            f"[{count}, {frames}, {size}, {size}, 3]"
        )
    return GeneratedClips(clips, prompts, generated)


def judge_motion(frames: Clips) -> list[str]:
    """The motion of each clip: one of MOTIONS, or STILL."""
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


def judge_clips(generated: GeneratedClips, judge: ObjectJudge) -> dict[str, Bool[np.ndarray, " n"]]:
    """Whether each clip is right, by criterion ('object', 'ground', 'motion')."""
    rows, cells, crops = [], [], []
    for i, clip in enumerate(generated.clips):
        for frame, end in zip((0, -1), ends(clip.motion), strict=True):
            if end is not None:
                cell, quarters = end
                rows.append(i)
                cells.append(cell)
                crops.append(np.rot90(generated.frames[i, frame], -quarters))
    seen = judge(np.stack(crops), cells, [generated.clips[i].ground for i in rows])
    right = np.ones(len(generated.clips), bool)
    for key in JUDGES:
        for i, name in zip(rows, seen[key], strict=True):
            right[i] &= name == generated.clips[i].name
    ground = np.ones(len(generated.clips), bool)
    for frame in range(generated.frames.shape[1]):
        grounds = judge_ground(generated.frames[:, frame])
        ground &= np.array(
            [a == clip.ground for a, clip in zip(grounds, generated.clips, strict=True)]
        )
    motions = judge_motion(generated.frames)
    motion = np.array([a == clip.motion for a, clip in zip(motions, generated.clips, strict=True)])
    return {"object": right, "ground": ground, "motion": motion}


def clip_scores(
    generated: GeneratedClips, right: dict[str, Bool[np.ndarray, " n"]], names: int
) -> dict[str, Score]:
    """Scores of generated clips: object, ground, motion (also by kind of motion), and all three together."""
    chance = {"object": 1 / names, "ground": 1 / len(GROUNDS), "motion": 1 / len(MOTIONS)}
    kinds = [clip.motion for clip in generated.clips]
    by = {
        motion: right["motion"][[kind == motion for kind in kinds]].tolist()
        for motion in MOTIONS
        if motion in kinds
    }
    scores = {
        f"clip_{criterion}_accuracy": Score.of(
            right[criterion].tolist(), chance[criterion], by if criterion == "motion" else None
        )
        for criterion in ("motion", "object", "ground")
    }
    whole = right["object"] & right["ground"] & right["motion"]
    scores["clip_accuracy"] = Score.of(whole.tolist(), float(np.prod(list(chance.values()))))
    return scores


def ask_clips(
    answer: AnswerClips, kind: str, count: int, frames: int, *, names: int, seed: int = SEED
) -> tuple[Score, list[AnsweredQuestion]]:
    """Asks one kind of question about renderings of held-out clips; only exact answers are right.

    Args:
        answer: the model.
        kind: one of `CLIP_KINDS`.
        count: number of questions.
        frames: frames per clip.
        names: number of object names, for the chance level.
        seed: of the clips.

    Raises:
        KeyError: an unknown kind.
    """
    if kind not in CLIP_KINDS:
        raise KeyError(
            f"{kind!r} is not a kind of question about clips; the kinds are {', '.join(CLIP_KINDS)}"
        )
    clips, chosen = [], []
    for clip in test_clips(2 * count, frames, seed):
        fitting = [item for item in clip_questions(clip) if item.kind == kind]
        if fitting and len(chosen) < count:
            clips.append(clip)
            chosen.append(fitting[len(chosen) % len(fitting)])
    rendered = np.stack([render_clip(clip) for clip in clips])
    texts = list(answer(rendered, [item.question for item in chosen]))
    answered = [
        AnsweredQuestion(strip, f"clip: {kind}", item.question, item.answer, text)
        for strip, item, text in zip(strips(rendered), chosen, texts, strict=True)
    ]
    chances = {"motion": 1 / len(MOTIONS), "name": 1 / names, "ground": 1 / len(GROUNDS)}
    chance = chances.get(kind, commonest_share([item.answer for item in chosen]))
    return Score.of([item.right for item in answered], chance), answered
