"""One self-contained report.html, with summary.json and the sheets as PNG beside it."""

from __future__ import annotations

import html
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuna_jax.emoji.evaluation import loss_curves
from tuna_jax.emoji.evaluation.images import AnsweredQuestion, Sheet
from tuna_jax.emoji.evaluation.suite import ClipSheet, Evaluation
from tuna_jax.evaluation.html import inline, percent, png, whole_page
from tuna_jax.evaluation.metrics.accuracy import Score
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.image_grid import contact_sheet

ATTRIBUTION = (
    "Emoji art: Twemoji, © Twitter, Inc and other contributors, CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/)."
)

# What each score asks, in the order of the report. HEADLINE are the tiles at the top.
MEANING = {
    "single_object_accuracy": ("One object drawn right", "the named object, in the named place"),
    "two_object_accuracy": ("Two objects drawn right", "both present, in any arrangement"),
    "position_accuracy": ("Two objects, rightly placed", "both present, each on its side"),
    "naming_accuracy": ("Object named right", "“what is this?”, exact text"),
    "ground_colour_accuracy": ("Ground colour drawn right", "of one-object pictures"),
    "place_accuracy": ("Place drawn right", "whatever the object is"),
    "counted_objects_accuracy": ("Two to four of a kind", "every one of them, each in its cell"),
    "ground_answer_accuracy": ("Answer: ground colour", "“what colour is the background?”"),
    "where_answer_accuracy": ("Answer: where", "“where is the …?”"),
    "count_answer_accuracy": ("Answer: how many", "“how many objects are there?”"),
    "relation_answer_accuracy": ("Answer: what is beside", "“what is to the left of the …?”"),
    "list_answer_accuracy": ("Answer: what is there", "“what can you see?”, both objects"),
    "caption_accuracy": ("Caption, word for word", "“describe the picture.”"),
    "edit_accuracy": ("Edits", "all kinds: the target’s objects and ground, and nothing else"),
    "edit_replace_accuracy": ("Edit: replace", "“replace the dog with a cat”"),
    "edit_recolour_accuracy": ("Edit: recolour", "“make the background blue”"),
    "edit_move_accuracy": ("Edit: move", "“move the dog to the top left”"),
    "edit_remove_accuracy": ("Edit: remove", "“remove the cat”"),
    "clip_accuracy": ("Clips drawn right", "object, ground and motion"),
    "clip_motion_accuracy": ("Clip: motion drawn", "direction, or growing, shrinking, turning"),
    "clip_object_accuracy": ("Clip: object drawn", "where it is of a usual size, both judges"),
    "clip_ground_accuracy": ("Clip: ground drawn", "in every frame"),
    "clip_motion_answer_accuracy": ("Clip answer: what it does", "“what does the dog do?”"),
    "clip_direction_answer_accuracy": ("Clip answer: which way", "“which way does it move?”"),
    "clip_name_answer_accuracy": ("Clip answer: object", "“what is this?”"),
    "clip_ground_answer_accuracy": ("Clip answer: ground", "“what colour is the background?”"),
    "clip_describe_answer_accuracy": ("Clip caption, word for word", "“describe the clip.”"),
    "dialogue_accuracy": ("Conversations", "two to four turns, each exact"),
    "dialogue_turn_accuracy": ("Turns of conversations", "after the model’s own answers"),
    "dialogue_name_accuracy": ("Turn: name", "“what is this?”"),
    "dialogue_ground_accuracy": ("Turn: ground", "“what colour is the background?”"),
    "dialogue_where_accuracy": ("Turn: where", "“where is the …?”"),
    "dialogue_count_accuracy": ("Turn: how many", "“how many objects are there?”"),
    "dialogue_relation_accuracy": ("Turn: what is beside", "“what is on the left?”"),
    "dialogue_list_accuracy": ("Turn: what is there", "“what can you see?”"),
    "dialogue_describe_accuracy": ("Turn: caption", "“describe the picture.”"),
    "dialogue_follow_accuracy": ("Turn that needs the one before", "“and on the right?”"),
}
# GenEval's names of the scores that ask what its sub-scores ask.
GENEVAL = {
    "single_object": "single_object_accuracy",
    "two_object": "two_object_accuracy",
    "counting": "counted_objects_accuracy",
    "colors": "ground_colour_accuracy",
    "position": "position_accuracy",
}
# What `experiments/emoji/all_tasks.py` is meant to reach.
GOALS = {
    "single_object_accuracy": 0.95,
    "two_object_accuracy": 0.85,
    "position_accuracy": 0.85,
    "counted_objects_accuracy": 0.75,
    "ground_colour_accuracy": 0.98,
    **dict.fromkeys((name for name in MEANING if "answer" in name or "caption" in name), 0.9),
    "naming_accuracy": 0.9,
    "dialogue_turn_accuracy": 0.9,
    **dict.fromkeys((name for name in MEANING if name.startswith("edit_")), 0.75),
    "clip_motion_accuracy": 0.9,
}
HEADLINE = (
    *tuple(MEANING)[:5],
    "edit_accuracy",
    "clip_accuracy",
    "clip_motion_answer_accuracy",
    "dialogue_accuracy",
)


def _tiles(scores: Mapping[str, Score], vae_psnr_db: float | None, minutes: float | None) -> str:
    tiles = []
    for name in HEADLINE:
        if name in scores:
            score = scores[name]
            tiles.append(
                f'<div class="tile"><b>{percent(score.value)}</b><span>{MEANING[name][0]}</span>'
                f"<small>chance {percent(score.chance)} · {score.count} cases</small></div>"
            )
    if vae_psnr_db is not None:
        tiles.append(
            f'<div class="tile"><b>{vae_psnr_db:.1f} dB</b><span>VAE reconstruction</span>'
            "<small>PSNR on held-out scenes</small></div>"
        )
    if minutes is not None:
        tiles.append(f'<div class="tile"><b>{minutes:.1f} min</b><span>Wall clock</span></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _score_rows(scores: Mapping[str, Score], ceilings: Mapping[str, Score]) -> str:
    rows = []
    for name in sorted(scores, key=lambda n: list(MEANING).index(n) if n in MEANING else 99):
        score = scores[name]
        title, meaning = MEANING.get(name, (name, ""))
        low, high = (100 * bound for bound in score.ci95)
        by = ", ".join(f"{part} {percent(value)}" for part, value in score.by.items())
        ceiling = percent(ceilings[name].value) if name in ceilings else ""
        bar = (
            f'<div class="bar"><i style="width:{100 * score.value:.1f}%"></i>'
            f'<u style="left:{low:.1f}%;width:{max(high - low, 0.5):.1f}%"></u>'
            f'<s style="left:{100 * score.chance:.1f}%"></s></div>'
        )
        rows.append(
            f'<tr><td><b>{html.escape(title)}</b><br><span class="soft">{html.escape(meaning)}</span></td>'
            f'<td class="number"><b>{percent(score.value)}</b></td><td>{bar}</td>'
            f'<td class="number">{low:.1f} to {high:.1f}</td><td class="number">{percent(score.chance)}</td>'
            f'<td class="number">{score.count}</td><td>{html.escape(by)}</td><td class="number">{ceiling}</td></tr>'
        )
    head = "".join(
        f"<th>{text}</th>"
        for text in (
            "what",
            "right",
            "",
            "95 % interval",
            "chance",
            "cases",
            "by judge",
            "judges’ ceiling",
        )
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _figures(sheet: Sheet) -> str:
    figures = []
    for image, label, verdict in zip(sheet.images, sheet.labels, sheet.right, strict=True):
        kind = {True: "right", False: "wrong", None: "plain"}[verdict]
        text = html.escape(label)
        figures.append(
            f'<figure class="{kind}"><img alt="{text}" src="{inline(png(image))}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    judged = [verdict for verdict in sheet.right if verdict is not None]
    note = (
        f'<p class="soft">{sum(judged)} of these {len(judged)} were judged right.</p>'
        if judged
        else ""
    )
    height, width = sheet.images.shape[1:3]
    wide = f' style="--wide:{128 * width // height}px"' if width != height else ""
    return f'<h2>{html.escape(sheet.title)}</h2>{note}<div class="sheet"{wide}>{"".join(figures)}</div>'


def animation(sheet: ClipSheet, *, columns: int = 8, seconds: float = 0.4) -> bytes:
    """A GIF of the clips side by side, over and over; the last frame stays longer."""
    pages = [
        contact_sheet(sheet.frames[:, i], sheet.labels, sheet.right, columns=columns)
        for i in range(sheet.frames.shape[1])
    ]
    times = [int(1000 * seconds)] * (len(pages) - 1) + [int(2500 * seconds)]
    buffer = io.BytesIO()
    first, *rest = [page.quantize(128) for page in pages]
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=times, loop=0)
    return buffer.getvalue()


def _moving(sheet: ClipSheet, gif: bytes) -> str:
    data = inline(gif, "image/gif")
    title = html.escape(sheet.title)
    return f'<h2>{title}</h2><img class="wide" alt="{title}" src="{data}">'


def _decibels(values: Mapping[str, float]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='number'>{value:.1f} dB</td></tr>"
        for name, value in values.items()
    )
    return f"<h2>What edits leave untouched</h2><table>{rows}</table>"


def _answer_rows(answered: Sequence[AnsweredQuestion], each: int) -> str:
    """Some answers of each kind; of the wrong ones at most half, and at least as many as fit."""
    rows = []
    for kind in dict.fromkeys(item.kind for item in answered):
        of_kind = [item for item in answered if item.kind == kind]
        wrong = [item for item in of_kind if not item.right][: each // 2]
        right = [item for item in of_kind if item.right][: each - len(wrong)]
        for item in right + wrong:
            verdict, word = ("yes", "right") if item.right else ("no", "wrong")
            rows.append(
                f'<tr><td><img alt="" src="{inline(png(item.image))}"></td>'
                f"<td>{html.escape(item.question)}</td><td>{html.escape(item.answer)}</td>"
                f'<td>{html.escape(item.expected)}</td><td class="{verdict}">{word}</td></tr>'
            )
    head = "<tr><th></th><th>question</th><th>answer of the model</th><th>exact answer</th><th></th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def summary(
    evaluation: Evaluation, minutes: float | None, extra: Mapping[str, object] | None = None
) -> dict[str, object]:
    """What summary.json holds: every score, the VAE's PSNR, the minutes, and what the caller adds."""
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
    """Writes report.html, summary.json and sheets/*.png into a folder.

    Args:
        folder: made if it is not there.
        evaluation: what `measure` returned.
        title: the heading.
        lead: a sentence or two below it.
        metrics: the run's metrics.jsonl, for the curves.
        minutes: how long it all took.
        facts: more to say about the run (parameters, steps, machine); shown, and put into summary.json.

    Returns:
        The path of report.html.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="soft">{html.escape(lead)}</p>' if lead else "",
        _tiles(evaluation.scores, evaluation.vae_psnr_db, minutes),
    ]
    scores = (
        "<h2>Scores</h2><p class='soft'>Every combination asked for was held out of training: "
        "triples of name, ground and place; unordered pairs of names; triples of name, ground and "
        "count. A drawing is right if two judges that were never trained agree: nearest neighbour "
        "on pixels, and on edge orientations, which colour alone does not satisfy. The grey band is "
        "the 95 % interval, the red mark is chance. The ceiling is what the judges say of true "
        "renderings after the VAE.</p>" + _score_rows(evaluation.scores, evaluation.ceilings)
    )
    if not evaluation.sheets:
        parts.append(scores)
    for number, sheet in enumerate(evaluation.sheets):
        parts.append(_figures(sheet))
        if number == 0:
            parts.append(scores)
        (folder / "sheets").mkdir(exist_ok=True)
        height, width = sheet.images.shape[1:3]
        columns = max(1, 8 * height // width)
        picture = contact_sheet(sheet.images, sheet.labels, sheet.right, columns=columns)
        picture.save(folder / "sheets" / f"{number}_{_file_name(sheet.title)}.png")
    for number, moving in enumerate(evaluation.clips):
        gif = animation(moving)
        parts.append(_moving(moving, gif))
        (folder / "sheets" / f"{_file_name(moving.title)}_{number}.gif").write_bytes(gif)
    if evaluation.decibels:
        parts.append(_decibels(evaluation.decibels))
    if evaluation.answered:
        parts.append("<h2>Questions and answers</h2>" + _answer_rows(evaluation.answered, each=6))
    drawn = loss_curves.plot(metrics) if metrics is not None else None
    if drawn is not None:
        parts.append(
            f'<h2>Training</h2><img class="wide" alt="training curves" src="{inline(drawn)}">'
        )
    if facts:
        rows = "".join(
            f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
            for key, value in facts.items()
        )
        parts.append(f"<h2>The run</h2><table>{rows}</table>")
    parts.append(f"<footer>{ATTRIBUTION}</footer>")
    with atomic_file(folder / "summary.json") as scratch:
        values = summary(evaluation, minutes, {"facts": dict(facts)} if facts else None)
        scratch.write_text(json.dumps(values, indent=2, default=str) + "\n", encoding="utf-8")
    with atomic_file(folder / "report.html") as scratch:
        scratch.write_text(whole_page(title, "".join(parts)), encoding="utf-8")
    return folder / "report.html"


def _file_name(title: str) -> str:
    kept = "".join(c if c.isalnum() else "_" for c in title.lower())
    return "_".join(filter(None, kept.split("_")))[:40]
