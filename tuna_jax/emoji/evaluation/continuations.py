"""Evaluation of clips that continue a given first frame.

A clip is judged as a generated one is (`clips.py`): object, ground and motion. In addition its first frame must be the
given one. The text says nothing of what the first frame shows but, in half of the phrasings, the object's name; so
object, place and ground come from the picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from tuna_jax.emoji.evaluation import clips
from tuna_jax.emoji.evaluation.clips import Clips, GeneratedClips
from tuna_jax.emoji.evaluation.images import SEED, Images
from tuna_jax.emoji.evaluation.judges import ObjectJudge
from tuna_jax.emoji.world.clips import ClipSource, beginnings, continuations, render_clip
from tuna_jax.evaluation.metrics.accuracy import Score
from tuna_jax.evaluation.metrics.psnr_ssim import psnr

ContinueClips = Callable[[Images, Sequence[str], int, int], Clips]
FIRST_FRAME_DB = 22.0
"""PSNR above which a first frame is the given one: through the VAE it is 25 dB or more, another object on the same
ground 20 dB or less (tests/emoji/evaluation/test_continuations.py)."""


@dataclasses.dataclass(frozen=True)
class ContinuedClips:
    """Clips of the test split, their true frames, and what the model made of the first frame and the text."""

    generated: GeneratedClips
    true: Clips

    @property
    def firsts(self) -> Images:
        """The given frames."""
        return self.true[:, 0]


def test_items(
    indices: Sequence[int], frames: int, seed: int = SEED, size: int = 64
) -> ContinuedClips:
    """These clips of the test split, with the true frames as results; the texts cycle through all phrasings."""
    source = ClipSource("test", seed, size, frames=frames)
    items = tuple(source[i] for i in indices)
    texts = [continuations(clip) for clip in items]
    prompts = tuple(named[i % len(named)] for i, named in zip(indices, texts, strict=True))
    true = np.stack([render_clip(clip) for clip in items])
    return ContinuedClips(GeneratedClips(items, prompts, true), true)


def with_frames(continued: ContinuedClips, frames: Clips) -> ContinuedClips:
    """The same items with other results.

    Raises:
        ValueError: they have another dtype or shape than the true frames.
    """
    if frames.shape != continued.true.shape or frames.dtype != np.uint8:
        raise ValueError(
            f"the continued clips are {frames.dtype} of shape {frames.shape}; they must be uint8 of "
            f"{continued.true.shape}"
        )
    generated = dataclasses.replace(continued.generated, frames=frames)
    return dataclasses.replace(continued, generated=generated)


def continue_split(
    continue_clips: ContinueClips, count: int, frames: int, seed: int = SEED, size: int = 64
) -> ContinuedClips:
    """Continues the first frame of `count` held-out clips; the errors are those of `with_frames`."""
    items = test_items(range(count), frames, seed, size)
    made = continue_clips(items.firsts, items.generated.prompts, frames, seed)
    return with_frames(items, np.asarray(made))


def verdicts(continued: ContinuedClips, judge: ObjectJudge) -> dict[str, Bool[np.ndarray, " n"]]:
    """Whether each clip is right, by criterion ('object', 'ground', 'motion', 'first_frame')."""
    right = clips.judge_clips(continued.generated, judge)
    kept = psnr(continued.generated.frames[:, 0], continued.firsts) > FIRST_FRAME_DB
    return right | {"first_frame": kept}


def chances(continued: ContinuedClips) -> list[float]:
    """Of each clip, the share of its motion among those that begin with its first frame: a motion that continues
    from the frame and ignores the text is right that often."""
    return [1 / len(beginnings(clip.motion)) for clip in continued.generated.clips]


def continuation_scores(
    continued: ContinuedClips, right: dict[str, Bool[np.ndarray, " n"]]
) -> dict[str, Score]:
    """`i2v_accuracy` (all criteria), each criterion's, and `i2v_choice_accuracy`: all criteria, of the clips whose
    first frame leaves several motions, so that the text decides."""
    chance = np.array(chances(continued))
    whole = np.logical_and.reduce(list(right.values()))
    scores = {"i2v_accuracy": Score.of(whole.tolist(), float(chance.mean()))}
    if (chance < 1).any():
        choice = chance < 1
        scores["i2v_choice_accuracy"] = Score.of(
            whole[choice].tolist(), float(chance[choice].mean())
        )
    for criterion, verdict in right.items():
        level = float(chance.mean()) if criterion == "motion" else 0.0
        scores[f"i2v_{criterion}_accuracy"] = Score.of(verdict.tolist(), level)
    return scores
