"""The whole evaluation of an emoji model: runs every task, judges the results, and keeps examples for the report.

The model is given as plain functions (`TaskFunctions`), so this module depends on neither networks nor tokenizers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from tuna_jax.emoji.evaluation import clips, combine, continuations, dialogues, edits, images
from tuna_jax.emoji.evaluation.images import (
    AnsweredQuestion,
    GeneratedScenes,
    Reconstruct,
    Sheet,
)
from tuna_jax.emoji.evaluation.judges import ObjectJudge
from tuna_jax.emoji.world.clips import CLIP_KINDS
from tuna_jax.evaluation.metrics.accuracy import Score

# Prompts that a person might try first; the report shows their images without scoring them.
SHOWCASE = (
    "a red apple on a blue background",
    "an owl on a yellow background",
    "a rocket on a purple background",
    "a dog to the left of a cat, on a green background",
    "two red apples to the left of a dog, on a blue background",
    "three penguins on a teal background",
    "a whale below a sailboat, on a pink background",
    "a sunflower in the top right of a grey background",
)


@dataclasses.dataclass(frozen=True)
class TaskFunctions:
    """What a model can do, as functions; None: the model was not trained for the task.

    Attributes:
        generate: prompts and a seed -> images.
        answer: images and questions -> texts.
        edit: images, instructions and a seed -> images.
        generate_clips: prompts, number of frames and a seed -> clips.
        answer_clips: clips and questions -> texts.
        converse: images, questions and their earlier turns -> texts.
        combine: pairs of images, instructions and a seed -> images.
        continue_clips: first frames, texts, number of frames and a seed -> clips.
        frames: frames per clip.
    """

    generate: images.Generate | None = None
    answer: images.Answer | None = None
    edit: edits.EditImages | None = None
    generate_clips: clips.GenerateClips | None = None
    answer_clips: clips.AnswerClips | None = None
    converse: dialogues.Converse | None = None
    combine: combine.CombineImages | None = None
    continue_clips: continuations.ContinueClips | None = None
    frames: int = 4


@dataclasses.dataclass(frozen=True)
class ClipSheet:
    """Clips for an animated sheet, each with a label and whether it was judged right."""

    title: str
    frames: UInt8[np.ndarray, "n frames size size 3"]
    labels: tuple[str, ...]
    right: tuple[bool | None, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of `measure`.

    Attributes:
        scores: by name.
        ceilings: scores that the judges give true renderings after the VAE, by name.
        sheets: image sheets for the report.
        answered: questions with the model's answers.
        vae_psnr_db: PSNR of the VAE's reconstructions, in dB.
        decibels: further PSNRs by name, in dB.
        clips: animated sheets for the report.
        distances: distances from the world's pictures by name; the smaller, the better.
        distance_ceilings: those of true renderings after the VAE: the least that can be expected.
        world: the world's name.
    """

    scores: dict[str, Score]
    ceilings: dict[str, Score]
    sheets: list[Sheet]
    answered: list[AnsweredQuestion]
    vae_psnr_db: float | None
    decibels: dict[str, float] = dataclasses.field(default_factory=dict)
    clips: list[ClipSheet] = dataclasses.field(default_factory=list)
    distances: dict[str, Score] = dataclasses.field(default_factory=dict)
    distance_ceilings: dict[str, Score] = dataclasses.field(default_factory=dict)
    world: str = "scenes"


@dataclasses.dataclass(frozen=True)
class _Options:
    """The arguments of `measure` that all tasks share."""

    judge: ObjectJudge
    reconstruct: Reconstruct | None
    seed: int
    log: Callable[[str], None]


def measure(
    tasks: TaskFunctions,
    *,
    reconstruct: Reconstruct | None = None,
    judge: ObjectJudge | None = None,
    generations: int = 256,
    questions: int = 256,
    images_per_sheet: int = 40,
    strips_per_sheet: int = 24,
    seed: int = images.SEED,
    log: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Measures a model on every task that it was trained for.

    Args:
        tasks: the model.
        reconstruct: passes images through the VAE; measures its PSNR and the judges' ceilings.
        judge: a judge to reuse; building its galleries takes seconds.
        generations: images per split with one or two objects; a quarter as many with counted objects, as many edits
            and combinations, half as many clips and continued clips.
        questions: questions for naming and for motion; a quarter as many for other questions about images, half as
            many for other questions about clips, half as many dialogues.
        images_per_sheet: images on a sheet.
        strips_per_sheet: edits or clips on a sheet.
        seed: of scenes and noise.
        log: receives progress messages.
    """
    options = _Options(judge or ObjectJudge(), reconstruct, seed, log)
    result = Evaluation({}, {}, [], [], None)
    if tasks.generate:
        _measure_generation(result, tasks.generate, generations, images_per_sheet, options)
    if tasks.answer:
        _measure_answers(result, tasks.answer, questions, options)
    if reconstruct is not None:
        result = dataclasses.replace(result, vae_psnr_db=_measure_vae(result, reconstruct, options))
    if tasks.edit:
        _measure_edits(result, tasks.edit, generations, strips_per_sheet, options)
    if tasks.generate_clips:
        count = max(1, generations // 2)
        _measure_clips(result, tasks.generate_clips, count, tasks.frames, strips_per_sheet, options)
    if tasks.combine:
        _measure_combinations(result, tasks.combine, generations, strips_per_sheet, options)
    if tasks.continue_clips:
        count = max(1, generations // 2)
        _measure_continuations(
            result, tasks.continue_clips, count, tasks.frames, strips_per_sheet, options
        )
    if tasks.answer_clips:
        _measure_clip_answers(result, tasks.answer_clips, questions, tasks.frames, options)
    if tasks.converse:
        count = max(3, questions // 2)
        log(f"holding {count} conversations")
        scores, answered = dialogues.converse_scores(tasks.converse, count, seed=seed)
        result.scores.update(scores)
        result.answered.extend(answered)
    return result


def _measure_generation(
    result: Evaluation, generate: images.Generate, count: int, sheet_size: int, options: _Options
) -> None:
    options.log("generating images of the showcase prompts")
    showcase = np.asarray(generate(SHOWCASE, options.seed))
    unjudged = (None,) * len(SHOWCASE)
    result.sheets.append(Sheet("From prompts", showcase, SHOWCASE, unjudged))
    parts = (
        ("test_single", "One object", count, images.single_scores),
        ("test_pairs", "Two objects", count, images.pair_scores),
        ("test_counts", "Two to four of a kind", count // 4, images.count_scores),
    )
    for split, title, number, score in parts:
        if number == 0:
            continue
        options.log(f"generating images of {number} held-out prompts of {split}")
        generated = images.generate_split(generate, split, number, options.seed)
        scores, right = score(generated, options.judge)
        result.scores.update(scores)
        title = f"{title}, combinations never trained"
        result.sheets.append(_judged_sheet(title, generated, right, sheet_size))


def _judged_sheet(
    title: str, generated: GeneratedScenes, right: np.ndarray, sheet_size: int
) -> Sheet:
    first = slice(sheet_size)
    return Sheet(title, generated.images[first], generated.prompts[first], _verdicts(right[first]))


def _measure_answers(
    result: Evaluation, answer: images.Answer, questions: int, options: _Options
) -> None:
    for task in images.ANSWER_TASKS:
        count = questions if task == "naming_accuracy" else max(1, questions // 4)
        options.log(f"asking {count} questions for {task}")
        result.scores[task], answered = images.ask(answer, task, count, seed=options.seed)
        result.answered.extend(answered)


def _measure_vae(result: Evaluation, reconstruct: Reconstruct, options: _Options) -> float:
    """Adds the judges' ceilings and a sheet; returns the PSNR of the reconstructions in dB."""
    options.log("reconstructing renderings with the VAE")
    psnr, rendered, reconstructed = images.reconstruction(reconstruct, 96, seed=options.seed)
    half = 8
    strip = np.concatenate([rendered[:half], reconstructed[:half]])
    labels = ("rendered",) * half + ("after the VAE",) * half
    title = "The VAE's share of the softness"
    result.sheets.append(Sheet(title, strip, labels, (None,) * 2 * half))
    ceilings = images.ceilings(options.judge, reconstruct, count=96, seed=options.seed)
    result.ceilings.update(ceilings)
    return psnr


def _measure_edits(
    result: Evaluation, edit: edits.EditImages, count: int, sheet_size: int, options: _Options
) -> None:
    options.log(f"making {count} held-out edits")
    edited = edits.edit_split(edit, count, options.seed)
    right = edits.verdicts(edited, options.judge)
    result.scores.update(edits.edit_scores(edited, right))
    for kind, value in edits.untouched_db(edited).items():
        result.decibels[f"edit_{kind}_untouched_db"] = value
    title = "Edits never trained: source, result, target"
    first = slice(sheet_size)
    verdicts = _verdicts(right[first])
    sheet = Sheet(title, edited.strips[first], edited.instructions[first], verdicts)
    result.sheets.append(sheet)
    if options.reconstruct is not None:
        best = dataclasses.replace(edited, results=options.reconstruct(edited.targets))
        scores = edits.edit_scores(best, edits.verdicts(best, options.judge))
        result.ceilings.update(scores)
        for kind, value in edits.untouched_db(best).items():
            result.decibels[f"edit_{kind}_untouched_db_ceiling"] = value


def _measure_combinations(
    result: Evaluation,
    make: combine.CombineImages,
    count: int,
    sheet_size: int,
    options: _Options,
) -> None:
    options.log(f"combining {count} pairs of pictures")
    combined = combine.combine_split(make, count, options.seed)
    right = combine.verdicts(combined, options.judge)
    result.scores.update(combine.combine_scores(combined, right))
    title = "Two pictures in one, never trained: both, result, target"
    first = slice(sheet_size)
    verdicts = _verdicts(right[first])
    result.sheets.append(
        Sheet(title, combined.strips[first], combined.instructions[first], verdicts)
    )
    if options.reconstruct is not None:
        best = dataclasses.replace(combined, results=options.reconstruct(combined.targets))
        scores = combine.combine_scores(best, combine.verdicts(best, options.judge))
        result.ceilings.update(scores)


def _measure_continuations(
    result: Evaluation,
    make: continuations.ContinueClips,
    count: int,
    frames: int,
    sheet_size: int,
    options: _Options,
) -> None:
    options.log(f"continuing the first frame of {count} held-out clips")
    continued = continuations.continue_split(make, count, frames, options.seed)
    right = continuations.verdicts(continued, options.judge)
    result.scores.update(continuations.continuation_scores(continued, right))
    first = slice(sheet_size)
    verdicts = _verdicts(np.logical_and.reduce(list(right.values()))[first])
    generated = continued.generated
    title = "Continued first frames, never trained, frame by frame"
    result.sheets.append(Sheet(title, generated.strips[first], generated.prompts[first], verdicts))
    sheet = ClipSheet("Continued", generated.frames[first], generated.prompts[first], verdicts)
    result.clips.append(sheet)
    if options.reconstruct is not None:
        flat = options.reconstruct(continued.true.reshape(-1, *continued.true.shape[2:]))
        best = continuations.with_frames(continued, flat.reshape(continued.true.shape))
        scores = continuations.continuation_scores(
            best, continuations.verdicts(best, options.judge)
        )
        result.ceilings.update(scores)


def _measure_clips(
    result: Evaluation,
    generate: clips.GenerateClips,
    count: int,
    frames: int,
    sheet_size: int,
    options: _Options,
) -> None:
    options.log(f"generating {count} held-out clips")
    judge, names = options.judge, len(options.judge.names)
    generated = clips.generate_split(generate, count, frames, options.seed)
    right = clips.judge_clips(generated, judge)
    result.scores.update(clips.clip_scores(generated, right, names))
    first = slice(sheet_size)
    verdicts = _verdicts((right["object"] & right["ground"] & right["motion"])[first])
    prompts = generated.prompts[first]
    title = "Clips never trained, frame by frame"
    result.sheets.append(Sheet(title, generated.strips[first], prompts, verdicts))
    result.clips.append(ClipSheet("Clips", generated.frames[first], prompts, verdicts))
    if options.reconstruct is not None:
        rendered = np.stack([clips.render_clip(clip) for clip in generated.clips])
        flat = options.reconstruct(rendered.reshape(-1, *rendered.shape[2:]))
        best = dataclasses.replace(generated, frames=flat.reshape(rendered.shape))
        result.ceilings.update(clips.clip_scores(best, clips.judge_clips(best, judge), names))


def _measure_clip_answers(
    result: Evaluation, answer: clips.AnswerClips, questions: int, frames: int, options: _Options
) -> None:
    for kind in CLIP_KINDS:
        count = questions if kind == "motion" else max(1, questions // 2)
        options.log(f"asking {count} questions about clips: {kind}")
        score, answered = clips.ask_clips(
            answer, kind, count, frames, names=len(options.judge.names), seed=options.seed
        )
        result.scores[f"clip_{kind}_answer_accuracy"] = score
        result.answered.extend(answered)


def _verdicts(right: np.ndarray) -> tuple[bool, ...]:
    return tuple(bool(value) for value in right)
