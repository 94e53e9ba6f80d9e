"""Measures what goes beyond pictures with captions and questions: edits, clips, conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from tuna_jax.emoji.evaluation import clips, dialogues, edits, images
from tuna_jax.emoji.evaluation.images import Reconstruct, Sheet
from tuna_jax.emoji.evaluation.judges import ObjectJudge
from tuna_jax.emoji.evaluation.suite import ClipSheet, Evaluation
from tuna_jax.emoji.world.clips import CLIP_KINDS


@dataclasses.dataclass(frozen=True)
class TaskFunctions:
    """What a model can do beside drawing and answering; None: it was not trained for it.

    Attributes:
        edit: pictures, instructions and a seed -> pictures.
        draw_clips: prompts, frames and a seed -> clips.
        answer_clips: clips and questions -> texts.
        converse: pictures, questions and the turns before them -> texts.
        frames: pictures a clip.
    """

    edit: edits.ChangePictures | None = None
    draw_clips: clips.DrawClips | None = None
    answer_clips: clips.AnswerClips | None = None
    converse: dialogues.Converse | None = None
    frames: int = 4


def add(
    found: Evaluation,
    abilities: TaskFunctions,
    *,
    judge: ObjectJudge | None = None,
    reconstruct: Reconstruct | None = None,
    drawings: int = 256,
    answers: int = 256,
    shown: int = 24,
    seed: int = images.SEED,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """An evaluation with the scores, sheets and answers of these abilities added.

    Args:
        found: what `measure` returned.
        abilities: the model.
        judge: a judge to use again.
        reconstruct: pictures through the VAE, for the judges' ceilings.
        drawings: edits, and half as many clips, that are drawn.
        answers: questions about clips; motion gets them all, the others half, as many dialogues.
        shown: pictures a sheet.
        seed: chooses what is asked, and noise.
        say: told what is being done.
    """
    judge = judge or ObjectJudge()
    scores, ceiling = dict(found.scores), dict(found.ceilings)
    sheets, answered = list(found.sheets), list(found.answered)
    decibels, moving = dict(found.decibels), list(found.clips)
    if abilities.edit:
        say(f"making {drawings} held-out edits")
        made = edits.change(abilities.edit, drawings, seed)
        right = edits.verdicts(made, judge)
        scores |= edits.edit_scores(made, right)
        decibels |= {f"edit_{k}_untouched_db": v for k, v in edits.untouched_db(made).items()}
        title = "Edits never trained: source, result, what it should be"
        told = made.instructions[:shown]
        sheets.append(Sheet(title, made.strips[:shown], told, _verdicts(right[:shown])))
        if reconstruct is not None:
            best = dataclasses.replace(made, results=reconstruct(made.targets))
            ceiling |= edits.edit_scores(best, edits.verdicts(best, judge))
            decibels |= {
                f"edit_{k}_untouched_db_ceiling": v for k, v in edits.untouched_db(best).items()
            }
    if abilities.draw_clips:
        count = max(1, drawings // 2)
        say(f"drawing {count} held-out clips")
        drawn = clips.draw_clips(abilities.draw_clips, count, abilities.frames, seed)
        by = clips.clip_verdicts(drawn, judge)
        scores |= clips.clip_scores(drawn, by, len(judge.names))
        whole = _verdicts((by["object"] & by["ground"] & by["motion"])[:shown])
        title = "Clips never trained, frame by frame"
        sheets.append(Sheet(title, drawn.strips[:shown], drawn.prompts[:shown], whole))
        moving.append(ClipSheet("Clips", drawn.frames[:shown], drawn.prompts[:shown], whole))
        if reconstruct is not None:
            real = np.stack([clips.render_clip(clip) for clip in drawn.clips])
            again = reconstruct(real.reshape(-1, *real.shape[2:])).reshape(real.shape)
            best = dataclasses.replace(drawn, frames=again)
            ceiling |= clips.clip_scores(best, clips.clip_verdicts(best, judge), len(judge.names))
    if abilities.answer_clips:
        for kind in CLIP_KINDS:
            count = answers if kind == "motion" else max(1, answers // 2)
            say(f"asking {count} questions about clips: {kind}")
            score, given = clips.ask_clips(
                abilities.answer_clips,
                kind,
                count,
                abilities.frames,
                names=len(judge.names),
                seed=seed,
            )
            scores[f"clip_{kind}_answer_accuracy"] = score
            answered += given
    if abilities.converse:
        count = max(3, answers // 2)
        say(f"holding {count} conversations")
        more, said = dialogues.converse_scores(abilities.converse, count, seed=seed)
        scores |= more
        answered += said
    return dataclasses.replace(
        found,
        scores=scores,
        ceilings=ceiling,
        sheets=sheets,
        answered=answered,
        decibels=decibels,
        clips=moving,
    )


def _verdicts(right: np.ndarray) -> tuple[bool, ...]:
    return tuple(bool(value) for value in right)
