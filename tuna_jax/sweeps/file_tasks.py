"""Sweep tasks from files: questions of JSONL or TFDS, and the folders that scorers of published benchmarks read.

Item i of a question task is the file's question i; item i of a benchmark is the i-th file that its scorer reads,
generated from the same noise as by `tuna_jax.evaluate_generation` at the same seed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tuna_jax.evaluation.benchmarks import registry, validate
from tuna_jax.evaluation.benchmarks import run as benchmarks
from tuna_jax.evaluation.benchmarks.spec import Benchmark, Piece
from tuna_jax.evaluation.benchmarks.validate import Size
from tuna_jax.evaluation.metrics.accuracy import commonest_share
from tuna_jax.evaluation.vqa import datasets
from tuna_jax.evaluation.vqa import run as vqa
from tuna_jax.evaluation.vqa.metrics import Item, normalised
from tuna_jax.inference.media_inputs import of_kind
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sweeps.task import GENERATION_SETTINGS, UNDERSTANDING_SETTINGS, Outcome, Task
from tuna_jax.utils.data_uri import is_data_uri


def questions(
    file: str = "",
    style: str = "exact_match",
    *,
    tfds: str = "",
    split: str = "test",
    fields: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    question: str = "",
    choices: Sequence[str] = (),
    count: int = 0,
    template: str | None = None,
    frames: int = 17,
    max_new_tokens: int = 32,
) -> Task:
    """Questions with known answers, as `tuna_jax.evaluate_vqa` runs them.

    Metrics: `right` for exact_match (ignoring case and surrounding spaces and punctuation) and multiple_choice;
    `log_likelihood` for log_likelihood, in nats.

    Args:
      file: JSON lines, as for `evaluation.vqa.datasets.read_lines`; alternatively `tfds`.
      style: exact_match, multiple_choice or log_likelihood.
      tfds, split, fields, data_dir, question: a TFDS data set in place of a file; see `datasets.read_tfds`.
      choices: for questions without their own.
      count: the number of questions, from the first; 0 for all.
      template, frames, max_new_tokens: as `evaluation.vqa.run.run`.

    Raises:
      FileNotFoundError: the file or the data set does not exist.
      ValueError: neither a file nor a data set is given, an unknown style, or an invalid line.
    """
    if style not in vqa.TASKS:
        raise ValueError(f"unknown style {style!r}; choose one of {', '.join(vqa.TASKS)}")
    if bool(file) == bool(tfds):
        raise ValueError("give either file='questions.jsonl' or tfds='name'")
    if file:
        items = datasets.read_lines(file, choices)
    else:
        more: dict[str, Any] = {"question": question, "choices": choices, "data_dir": data_dir}
        items = datasets.read_tfds(tfds, split, fields or {}, count=count or None, **more)
    items = items[: count or len(items)]
    if style == "exact_match":
        sound = [item for item in items if not item.problem]
        chance = {"right": commonest_share([normalised(item.answers[0]) for item in sound])}
    elif style == "multiple_choice":
        chance = {"right": float(np.mean([1 / max(len(item.choices), 1) for item in items]))}
    else:
        chance = {}

    def run(model: Tuna, indices: Sequence[int], seed: int) -> Outcome:
        del seed  # Answers are greedy.
        batch = [items[i] for i in indices]
        options: dict[str, Any] = {"template": template, "frames": frames, "batch_size": len(batch)}
        options["max_new_tokens"] = max_new_tokens
        rows = vqa.run(model, batch, style, **options)[1]
        metric = "log_likelihood" if style == "log_likelihood" else "right"
        return Outcome(
            {metric: [float(row.get(metric, np.nan)) for row in rows]},
            [item.question for item in batch],
            [item.answers[0] for item in batch],
            [row.get("reply", "") for row in rows] if metric == "right" else None,
            np.stack(
                [
                    _first_image(model, None if "error" in row else item, frames)
                    for item, row in zip(batch, rows, strict=True)
                ]
            ),
            errors=[row.get("error", "") for row in rows],
        )

    task_options = {"style": style, "content": _digest(_content(items)), "template": template}
    task_options |= {"frames": frames, "max_new_tokens": max_new_tokens}
    verdict = "" if style == "log_likelihood" else "right"
    return Task(
        "questions", 2, len(items), task_options, UNDERSTANDING_SETTINGS, run, chance, verdict
    )


def benchmark(
    benchmark: str,
    prompts: str | None = None,
    *,
    count: int = 0,
    sizes: Sequence[Size] = (),
    frames: int = 17,
    fps: float = 8.0,
    negative: str = "",
    **options: Any,
) -> Task:
    """A published benchmark, generated into the folder that its scorer reads: `cells/KEY/files`, see results.jsonl.

    The metric `sound` is the share of files whose layout is valid. Scores come from the official scorer.

    Args:
      benchmark: geneval, dpg_bench, oneig, vbench, imgedit or gedit.
      prompts: its prompt file, or a folder with it.
      count: the number of prompts, from the first, for a trial; 0 for all.
      sizes: (height, width) of a sample; several for edits. Empty uses the sweep's `size`, or the model's.
      frames, fps: of videos.
      negative: the negative prompt.
      **options: of `evaluation.benchmarks.registry.read`: model, language, images, dimensions.

    Raises:
      FileNotFoundError: the prompts do not exist; the message says how to get them.
      ValueError: an unknown benchmark, or an invalid prompt file, with the line.
    """
    whole = registry.read(benchmark, prompts, **options)
    if count:
        whole = whole.first(count)
    fixed = tuple((int(height), int(width)) for height, width in sizes)

    def run(model: Tuna, indices: Sequence[int], seed: int) -> Outcome:
        part, chosen = whole.some(indices), fixed or benchmarks.default_sizes(model, whole)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "files"
            more: dict[str, Any] = {"negative": negative} if negative else {}
            failed: dict[str, str] = {}
            more["on_failure"] = lambda path, error: failed.setdefault(path, f"{path}: {error}")
            benchmarks.run(
                model,
                part,
                folder,
                sizes=chosen,
                seed=seed,
                frames=frames,
                fps=fps,
                batch_size=len(indices),
                progress=False,
                **more,
            )
            problems = validate.check(part, folder, chosen, frames if whole.clips else 1)
            faulty = {problem.path for problem in problems}
            pieces = [whole.pieces[i] for i in indices]
            companions: dict[int, dict[str, bytes]] = {piece.place: {} for piece in pieces}
            for file in part.companions:
                if (folder / file.path).is_file():
                    companions[file.place][file.path] = (folder / file.path).read_bytes()
            files = [
                {}
                if piece.path in failed
                else {piece.path: (folder / piece.path).read_bytes(), **companions[piece.place]}
                for piece in pieces
            ]
            return Outcome(
                {"sound": [float(bool(own) and not faulty & set(own)) for own in files]},
                [piece.prompt for piece in pieces],
                pictures=_thumbnails(folder, pieces, whole.clips, failed),
                files=files,
                errors=[failed.get(piece.path, "") for piece in pieces],
            )

    task_options = {
        "benchmark": benchmark,
        "content": _digest(_inputs(whole)),
        "negative": negative,
    }
    task_options |= {"sizes": [list(size) for size in fixed], "frames": frames, "fps": fps}
    return Task("benchmark", 2, len(whole.pieces), task_options, GENERATION_SETTINGS, run)


_THUMBNAIL_SIDE = 128


def _first_image(model: Tuna, item: Item | None, frames: int) -> np.ndarray:
    """The first image of a question or frame of its video, on white of the model's size; white without either."""
    white = np.full((*model.size, 3), 255, np.uint8)
    if item is None or not item.media:
        return white
    seen = model.load_media(of_kind(item.media[:1], item.kind), frames)[0][0]
    if seen.shape == white.shape:
        return seen
    picture, whole = Image.fromarray(seen), Image.fromarray(white)
    picture.thumbnail((whole.width, whole.height))
    whole.paste(picture, ((whole.width - picture.width) // 2, (whole.height - picture.height) // 2))
    return np.asarray(whole)


def _thumbnails(
    folder: Path, pieces: Sequence[Piece], clips: bool, failed: Mapping[str, str]
) -> np.ndarray:
    """A square thumbnail of each file, of a video its middle frame; white if it failed."""
    squares = []
    for piece in pieces:
        if piece.path in failed:
            squares.append(np.full((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE, 3), 255, np.uint8))
            continue
        pixels = validate.pixels_of(folder / piece.path, clips)
        square = Image.fromarray(pixels[len(pixels) // 2]).resize(
            (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
        )
        squares.append(np.asarray(square))
    return np.stack(squares)


def _digest(parts: Iterable[bytes]) -> str:
    """A hash of parts and of the boundaries between them."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:20]


def _content(items: Sequence[Item]) -> Iterable[bytes]:
    for item in items:
        yield repr((item.question, item.answers, item.choices)).encode()
        for medium in item.media:
            try:
                yield _bytes(medium, item.where)
            except (
                OSError
            ) as error:  # Its item fails; with the file there, the questions are others.
                yield repr(error).encode()


def _inputs(whole: Benchmark) -> Iterable[bytes]:
    yield whole.digest().encode()
    for piece in whole.pieces:
        if piece.source is not None and piece.source.is_absolute():
            try:
                yield _bytes(piece.source, piece.path)
            except OSError as error:
                yield repr(error).encode()
    for companion in whole.companions:
        if companion.picture is not None:
            try:
                yield companion.picture().tobytes()
            except Exception as error:  # Decoders raise almost anything.
                yield repr(error).encode()


def _bytes(medium: Any, where: str) -> bytes:
    if isinstance(medium, bytes):
        return medium
    if isinstance(medium, np.ndarray):
        return medium.tobytes()
    if isinstance(medium, str) and is_data_uri(medium):
        return medium.encode()
    path = Path(medium)
    if path.is_dir():  # The frames of a clip.
        parts = sorted(file for file in path.iterdir() if file.is_file())
        return b"".join(
            part.name.encode("utf-8", "surrogateescape") + part.read_bytes() for part in parts
        )
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no file at {medium}")
    return path.read_bytes()
