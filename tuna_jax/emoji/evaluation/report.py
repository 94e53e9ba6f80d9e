"""One self-contained report.html, with summary.json and the sheets as PNG and GIF files next to it."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuna_jax.emoji.evaluation import loss_curves
from tuna_jax.emoji.evaluation.images import AnsweredQuestion
from tuna_jax.emoji.evaluation.suite import ClipSheet, Evaluation
from tuna_jax.evaluation.html import percent, render
from tuna_jax.evaluation.metrics.accuracy import Score
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.image_grid import contact_sheet
from tuna_jax.utils.text_files import json_text

ATTRIBUTION = (
    "Emoji art: Twemoji, © Twitter, Inc and other contributors, CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/)."
)

# Title and meaning of each score, in the order of the report. HEADLINE are the tiles at the top.
MEANING = {
    "single_object_accuracy": (
        "One object generated right",
        "the named object, in the named place",
    ),
    "two_object_accuracy": ("Two objects generated right", "both present, in any arrangement"),
    "position_accuracy": ("Two objects in the right places", "both present, each on its side"),
    "naming_accuracy": ("Object named right", "“what is this?”, exact text"),
    "ground_colour_accuracy": ("Ground colour generated right", "of one-object images"),
    "place_accuracy": ("Place generated right", "whatever the object is"),
    "counted_objects_accuracy": (
        "Two to four of a kind",
        "every one of them, each in its grid cell",
    ),
    "ground_answer_accuracy": ("Answer: ground colour", "“what colour is the background?”"),
    "where_answer_accuracy": ("Answer: where", "“where is the …?”"),
    "count_answer_accuracy": ("Answer: how many", "“how many objects are there?”"),
    "relation_answer_accuracy": ("Answer: what is next to it", "“what is to the left of the …?”"),
    "list_answer_accuracy": ("Answer: what is there", "“what can you see?”, both objects"),
    "caption_accuracy": ("Caption, word for word", "“describe the picture.”"),
    "edit_accuracy": ("Edits", "all kinds: the target’s objects and ground, and nothing else"),
    "edit_replace_accuracy": ("Edit: replace", "“replace the dog with a cat”"),
    "edit_recolour_accuracy": ("Edit: recolour", "“make the background blue”"),
    "edit_move_accuracy": ("Edit: move", "“move the dog to the top left”"),
    "edit_remove_accuracy": ("Edit: remove", "“remove the cat”"),
    "combine_accuracy": (
        "Two pictures in one",
        "both objects, each on its side, on the first picture’s ground, and nothing else",
    ),
    "combine_unnamed_accuracy": (
        "Two pictures, objects not named",
        "“put the objects on the left and on the right”",
    ),
    "clip_accuracy": ("Videos generated right", "object, ground and motion"),
    "clip_motion_accuracy": ("Video: motion", "direction, or growing, shrinking, turning"),
    "clip_object_accuracy": ("Video: object", "at its usual size, both judges"),
    "clip_ground_accuracy": ("Video: ground", "in every frame"),
    "i2v_accuracy": (
        "First frame continued",
        "the given frame, its object and ground, and the motion of the text",
    ),
    "i2v_choice_accuracy": (
        "First frame continued: by the text",
        "of frames that three motions begin with",
    ),
    "i2v_object_accuracy": ("First frame continued: object", "at its usual size, both judges"),
    "i2v_ground_accuracy": ("First frame continued: ground", "in every frame"),
    "i2v_motion_accuracy": ("First frame continued: motion", "that of the text"),
    "i2v_first_frame_accuracy": (
        "First frame continued: kept",
        "the given frame, at 22 dB or more",
    ),
    "clip_motion_answer_accuracy": ("Video answer: what it does", "“what does the dog do?”"),
    "clip_direction_answer_accuracy": ("Video answer: which way", "“which way does it move?”"),
    "clip_name_answer_accuracy": ("Video answer: object", "“what is this?”"),
    "clip_ground_answer_accuracy": ("Video answer: ground", "“what colour is the background?”"),
    "clip_describe_answer_accuracy": ("Video caption, word for word", "“describe the clip.”"),
    "dialogue_accuracy": ("Conversations", "two to four turns, each exact"),
    "dialogue_turn_accuracy": ("Turns of conversations", "after the model’s own answers"),
    "dialogue_name_accuracy": ("Turn: name", "“what is this?”"),
    "dialogue_ground_accuracy": ("Turn: ground", "“what colour is the background?”"),
    "dialogue_where_accuracy": ("Turn: where", "“where is the …?”"),
    "dialogue_count_accuracy": ("Turn: how many", "“how many objects are there?”"),
    "dialogue_relation_accuracy": ("Turn: what is next to it", "“what is on the left?”"),
    "dialogue_list_accuracy": ("Turn: what is there", "“what can you see?”"),
    "dialogue_describe_accuracy": ("Turn: caption", "“describe the picture.”"),
    "dialogue_follow_accuracy": ("Turn that refers to the previous one", "“and on the right?”"),
    "hard_full_accuracy": (
        "Full captions",
        "objects, sizes, colours, places and ground, all right",
    ),
    "hard_partial_accuracy": (
        "Captions that leave things open",
        "everything that is named, and no other object",
    ),
    "hard_object_accuracy": ("Objects", "the named ones in their numbers, and no others"),
    "hard_binding_accuracy": ("Attributes bound to objects", "size and colour of each of two"),
    "hard_unseen_colour_accuracy": ("Unseen colour of a noun", "“a green teapot”, never trained"),
    "hard_size_accuracy": ("Sizes", "every named one"),
    "hard_place_accuracy": ("Places", "every named one"),
    "hard_relation_accuracy": ("Relations", "left, right, above, below, between"),
    "hard_count_accuracy": ("Two to five of a kind", "all of them, and no other object"),
    "hard_ground_accuracy": ("Ground colour", "where it is named"),
    "hard_diversity": ("Diversity", "entropy of what is left open, of the largest possible"),
    "hard_commonest_share": ("Commonest value", "of what is left open; the smaller, the better"),
    "hard_name_answer_accuracy": ("Answer: name", "“what is in the top left?”"),
    "hard_colour_answer_accuracy": ("Answer: colour", "“what colour is the car?”"),
    "hard_size_answer_accuracy": ("Answer: size", "“what size is the car?”"),
    "hard_where_answer_accuracy": ("Answer: where", "“where is the car?”"),
    "hard_count_answer_accuracy": ("Answer: how many", "of a name, or in all"),
    "hard_relation_answer_accuracy": ("Answer: relation", "“what is between the car and the dog?”"),
    "hard_which_answer_accuracy": ("Answer: which", "“what is red?”"),
    "hard_ground_answer_accuracy": ("Answer: ground", "“what colour is the background?”"),
    "hard_describe_answer_accuracy": ("Full caption, word for word", "“describe the picture.”"),
    "hard_frechet_distance": ("Fréchet distance", "from the world's pictures, of partial captions"),
}
EXPLANATION = {
    "scenes": "Every combination in these prompts was held out of training: triples of name, ground and place; "
    "unordered pairs of names; triples of name, ground and count. A generated image is right if two judges that were "
    "never trained agree: nearest neighbour on pixels, and on edge orientations, which colour alone does not satisfy. "
    "The grey band is the 95 % interval, the red mark is chance. The ceiling is the judges’ score on true renderings "
    "after the VAE.",
    "hard": "Every scene has a combination that was held out of training: a colour of a noun; a noun with its colour, "
    "size and ground; two names; a number of objects. A judge that was never trained reads each picture back into "
    "objects, and a picture is right if it has everything that its caption names and no other object. The grey band is "
    "the 95 % interval; the red mark is chance, a model that gives perfect pictures of other captions. The ceiling is "
    "the score of true renderings after the VAE, if there is one.",
}
# GenEval's sub-scores that correspond to ours.
GENEVAL = {
    "single_object": "single_object_accuracy",
    "two_object": "two_object_accuracy",
    "counting": "counted_objects_accuracy",
    "colors": "ground_colour_accuracy",
    "position": "position_accuracy",
}
# Targets of `experiments/emoji/all_tasks.py`, and of `more_tasks.py` for combinations and continued frames.
GOALS = {
    "single_object_accuracy": 0.95,
    "two_object_accuracy": 0.85,
    "position_accuracy": 0.85,
    "counted_objects_accuracy": 0.75,
    "ground_colour_accuracy": 0.98,
    **dict.fromkeys(
        (
            name
            for name in MEANING
            if ("answer" in name or "caption" in name) and not name.startswith("hard_")
        ),
        0.9,
    ),
    "naming_accuracy": 0.9,
    "dialogue_turn_accuracy": 0.9,
    **dict.fromkeys((name for name in MEANING if name.startswith("edit_")), 0.75),
    "clip_motion_accuracy": 0.9,
    "combine_accuracy": 0.85,
    "i2v_accuracy": 0.85,
}
HEADLINE = (
    *tuple(MEANING)[:5],
    "edit_accuracy",
    "combine_accuracy",
    "clip_accuracy",
    "i2v_accuracy",
    "clip_motion_answer_accuracy",
    "dialogue_accuracy",
    "hard_full_accuracy",
    "hard_partial_accuracy",
    "hard_relation_accuracy",
    "hard_name_answer_accuracy",
    "hard_relation_answer_accuracy",
)


@dataclasses.dataclass(frozen=True)
class _Tile:
    """A headline number."""

    value: str
    title: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class _ScoreRow:
    """A row of the table of scores; `low` and `high` are the interval in per cent."""

    title: str
    meaning: str
    score: Score
    low: float
    high: float
    ceiling: Score | None


@dataclasses.dataclass(frozen=True)
class _Animation:
    """Generated videos as one GIF file."""

    title: str
    gif: bytes


def _tiles(
    scores: Mapping[str, Score], vae_psnr_db: float | None, minutes: float | None
) -> list[_Tile]:
    tiles = [
        _Tile(
            percent(scores[name].value),
            MEANING[name][0],
            f"chance {percent(scores[name].chance)} · {scores[name].count} cases",
        )
        for name in HEADLINE
        if name in scores
    ]
    if vae_psnr_db is not None:
        tiles.append(
            _Tile(f"{vae_psnr_db:.1f} dB", "VAE reconstruction", "PSNR on held-out scenes")
        )
    if minutes is not None:
        tiles.append(_Tile(f"{minutes:.1f} min", "Wall clock"))
    return tiles


def _score_rows(scores: Mapping[str, Score], ceilings: Mapping[str, Score]) -> list[_ScoreRow]:
    order = list(MEANING)
    rows = []
    for name in sorted(scores, key=lambda n: order.index(n) if n in MEANING else len(order)):
        title, meaning = MEANING.get(name, (name, ""))
        low, high = (100 * bound for bound in scores[name].ci95)
        rows.append(_ScoreRow(title, meaning, scores[name], low, high, ceilings.get(name)))
    return rows


def animation(sheet: ClipSheet, *, columns: int = 8, seconds: float = 0.4) -> bytes:
    """A GIF of the videos side by side, repeated forever; the last frame is held longer."""
    pages = [
        contact_sheet(sheet.frames[:, i], sheet.labels, sheet.right, columns=columns)
        for i in range(sheet.frames.shape[1])
    ]
    times = [int(1000 * seconds)] * (len(pages) - 1) + [int(2500 * seconds)]
    buffer = io.BytesIO()
    first, *rest = [page.quantize(128) for page in pages]
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=times, loop=0)
    return buffer.getvalue()


def _chosen_answers(answered: Sequence[AnsweredQuestion], each: int) -> list[AnsweredQuestion]:
    """At most `each` answers of every kind: wrong ones up to half, the rest right ones."""
    chosen = []
    for kind in dict.fromkeys(item.kind for item in answered):
        of_kind = [item for item in answered if item.kind == kind]
        wrong = [item for item in of_kind if not item.right][: each // 2]
        right = [item for item in of_kind if item.right][: each - len(wrong)]
        chosen += right + wrong
    return chosen


def summary(
    evaluation: Evaluation, minutes: float | None, extra: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The content of summary.json: every score, the VAE's PSNR, the minutes, and `extra`."""
    psnr = evaluation.vae_psnr_db
    return {
        **{name: score.as_json() for name, score in evaluation.scores.items()},
        "vae_psnr_db": None if psnr is None else round(psnr, 2),
        "minutes": None if minutes is None else round(minutes, 2),
        **{name: round(value, 2) for name, value in evaluation.decibels.items()},
        "geneval": {
            theirs: round(evaluation.scores[ours].value, 4)
            for theirs, ours in GENEVAL.items()
            if ours in evaluation.scores
        },
        "judges_ceiling": {name: score.as_json() for name, score in evaluation.ceilings.items()},
        **{name: score.as_json() for name, score in evaluation.distances.items()},
        **{
            f"{name}_ceiling": score.as_json()
            for name, score in evaluation.distance_ceilings.items()
        },
        **(extra or {}),
    }


def write(
    folder: str | os.PathLike[str],
    evaluation: Evaluation,
    *,
    title: str = "TUNA in the emoji world",
    lead: str = "",
    metrics: str | os.PathLike[str] | None = None,
    minutes: float | None = None,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Writes report.html, summary.json, and the sheets as PNG and GIF files into a folder.

    Args:
        folder: created if necessary.
        evaluation: what `measure` returned.
        title: the heading.
        lead: a sentence or two below it.
        metrics: the run's metrics.jsonl, for the curves.
        minutes: wall clock of the whole run.
        facts: further properties of the run (parameters, steps, machine), for the page and summary.json.

    Returns:
        The path of report.html.
    """
    folder = Path(folder)
    (folder / "sheets").mkdir(parents=True, exist_ok=True)
    for number, sheet in enumerate(evaluation.sheets):
        height, width = sheet.images.shape[1:3]
        columns = max(1, 8 * height // width)
        image = contact_sheet(sheet.images, sheet.labels, sheet.right, columns=columns)
        image.save(folder / "sheets" / f"{number}_{_file_name(sheet.title)}.png")
    animations = [_Animation(sheet.title, animation(sheet)) for sheet in evaluation.clips]
    for number, moving in enumerate(animations):
        file = folder / "sheets" / f"{_file_name(moving.title)}_{number}.gif"
        file.write_bytes(moving.gif)
    page = render(
        "emoji/evaluation/report.html.j2",
        title=title,
        lead=lead,
        tiles=_tiles(evaluation.scores, evaluation.vae_psnr_db, minutes),
        scores=_score_rows(evaluation.scores, evaluation.ceilings),
        explanation=EXPLANATION[evaluation.world],
        distances=_score_rows(evaluation.distances, evaluation.distance_ceilings),
        sheets=evaluation.sheets,
        animations=animations,
        decibels=evaluation.decibels,
        answers=_chosen_answers(evaluation.answered, each=6),
        curves=loss_curves.plot(metrics) if metrics is not None else None,
        facts=facts or {},
        note=ATTRIBUTION,
    )
    with atomic_file(folder / "summary.json") as scratch:
        values = summary(evaluation, minutes, {"facts": dict(facts)} if facts else None)
        scratch.write_text(json_text(values, indent=2, default=str) + "\n", encoding="utf-8")
    with atomic_file(folder / "report.html") as scratch:
        scratch.write_text(page, encoding="utf-8")
    return folder / "report.html"


def _file_name(title: str) -> str:
    kept = "".join(c if c.isalnum() else "_" for c in title.lower())
    return "_".join(filter(None, kept.split("_")))[:40]
