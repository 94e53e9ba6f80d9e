"""Tasks of files for sweeps: questions of JSONL and TFDS, and the folders that scorers of published benchmarks read.

Item i of a question task is the file's question i; item i of a benchmark is the i-th file that its scorer reads, drawn
from the noise that `evaluate_generation` draws it from at the same seed.
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
from tuna_jax.evaluation.benchmarks.spec import Benchmark
from tuna_jax.evaluation.benchmarks.validate import Size
from tuna_jax.evaluation.metrics.accuracy import commonest_share
from tuna_jax.evaluation.vqa import datasets
from tuna_jax.evaluation.vqa import run as asking
from tuna_jax.evaluation.vqa.metrics import Item, normalised
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sweeps.task import DRAWING, SHOWING, Outcome, Task


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
    """Questions with known answers, as `evaluate_questions` asks them.

    Metrics: `right` of exact_match (case, spaces and punctuation around it apart) and of multiple_choice;
    `log_likelihood` of log_likelihood, natural logarithm.

    Args:
      file: JSON lines, as `evaluation.vqa.run.read_lines` takes them; or `tfds`.
      style: exact_match, multiple_choice or log_likelihood.
      tfds, split, fields, data_dir, question: a TFDS data set in place of a file; see `read_tfds`.
      choices: of questions without their own.
      count: the first so many; 0 for all.
      template, frames, max_new_tokens: as `evaluation.vqa.run.run`.

    Raises:
      FileNotFoundError: no such file or data set, or a picture that is not there.
      ValueError: neither a file nor a data set, an unknown style, or lines that are no questions.
    """
    if style not in asking.TASKS:
        raise ValueError(f"unknown style {style!r}; choose one of {', '.join(asking.TASKS)}")
    if bool(file) == bool(tfds):
        raise ValueError("give either file='questions.jsonl' or tfds='name'")
    if file:
        items = datasets.read_lines(file, choices)
    else:
        more: dict[str, Any] = {"question": question, "choices": choices, "data_dir": data_dir}
        items = datasets.read_tfds(tfds, split, fields or {}, count=count or None, **more)
    items = items[: count or len(items)]
    if style == "exact_match":
        chance = {"right": commonest_share([normalised(item.answers[0]) for item in items])}
    elif style == "multiple_choice":
        chance = {"right": float(np.mean([1 / max(len(item.choices), 1) for item in items]))}
    else:
        chance = {}

    def run(model: Tuna, wanted: Sequence[int], seed: int) -> Outcome:
        del seed  # Answers are greedy.
        some = [items[i] for i in wanted]
        options: dict[str, Any] = {"template": template, "frames": frames, "batch_size": len(some)}
        options["max_new_tokens"] = max_new_tokens
        rows = asking.run(model, some, style, **options)[1]
        metric = "log_likelihood" if style == "log_likelihood" else "right"
        return Outcome(
            {metric: [float(row[metric]) for row in rows]},
            [item.question for item in some],
            [item.answers[0] for item in some],
            [row["reply"] for row in rows] if metric == "right" else None,
            np.stack([_first_shown(model, item, frames) for item in some]),
        )

    known = {"style": style, "content": _digest(_content(items)), "template": template}
    known |= {"frames": frames, "max_new_tokens": max_new_tokens}
    verdict = "" if style == "log_likelihood" else "right"
    return Task("questions", 2, len(items), known, SHOWING, run, chance, verdict)


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
    """A published benchmark, drawn into the folder that its scorer reads: `cells/KEY/files`, named in results.jsonl.

    The metric `sound` is the share of files without a fault in the layout. Scores are the official scorer's to give.

    Args:
      benchmark: geneval, dpg_bench, oneig, vbench, imgedit or gedit.
      prompts: its prompt file, or a folder with it.
      count: the first so many prompts, for a trial; 0 for all.
      sizes: (height, width) of a sample; several for edits. Empty: the sweep's `size`, else the model's.
      frames, fps: of clips.
      negative: what not to draw.
      **options: of `evaluation.benchmarks.table.read`: model, language, images, dimensions.

    Raises:
      FileNotFoundError: prompts that are not there; says how to get them.
      ValueError: an unknown benchmark, or a file that is not its own, with the line.
    """
    whole = registry.read(benchmark, prompts, **options)
    if count:
        whole = whole.first(count)
    fixed = tuple((int(height), int(width)) for height, width in sizes)

    def run(model: Tuna, wanted: Sequence[int], seed: int) -> Outcome:
        some, chosen = whole.some(wanted), fixed or (model.size,)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "files"
            more: dict[str, Any] = {"negative": negative} if negative else {}
            benchmarks.run(
                model,
                some,
                folder,
                sizes=chosen,
                seed=seed,
                frames=frames,
                fps=fps,
                batch_size=len(wanted),
                progress=False,
                **more,
            )
            problems = validate.check(some, folder, chosen, frames if whole.clips else 1)
            faulty = {problem.path for problem in problems}
            pieces = [whole.pieces[i] for i in wanted]
            beside = {
                place: {one.path: (folder / one.path).read_bytes() for one in some.companions if one.place == place}
                for place in {piece.place for piece in pieces}
            }  # fmt: skip
            files = [
                {piece.path: (folder / piece.path).read_bytes(), **beside[piece.place]}
                for piece in pieces
            ]
            return Outcome(
                {"sound": [float(not faulty & set(own)) for own in files]},
                [piece.prompt for piece in pieces],
                pictures=_thumbnails(folder, [piece.path for piece in pieces], whole.clips),
                files=files,
            )

    known = {"benchmark": benchmark, "content": _digest(_drawn_from(whole)), "negative": negative}
    known |= {"sizes": [list(size) for size in fixed], "frames": frames, "fps": fps}
    return Task("benchmark", 2, len(whole.pieces), known, DRAWING, run)


_SHOWN = 128


def _first_shown(model: Tuna, item: Item, frames: int) -> np.ndarray:
    """The first picture of a question, or the first frame of its clip; white where nothing is shown."""
    if not item.shown:
        return np.full((*model.size, 3), 255, np.uint8)
    return model.load_media(item.shown[:1], frames)[0][0]


def _thumbnails(folder: Path, paths: Sequence[str], clips: bool) -> np.ndarray:
    """A square of each file, of a clip its middle frame."""
    squares = []
    for path in paths:
        pixels = validate.pixels_of(folder / path, clips)
        square = Image.fromarray(pixels[len(pixels) // 2]).resize((_SHOWN, _SHOWN))
        squares.append(np.asarray(square))
    return np.stack(squares)


def _digest(parts: Iterable[bytes]) -> str:
    """A hash of parts, of which each counts for itself."""
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:20]


def _content(items: Sequence[Item]) -> Iterable[bytes]:
    for item in items:
        yield repr((item.question, item.answers, item.choices)).encode()
        for one in item.shown:
            yield _bytes(one, item.where)


def _drawn_from(whole: Benchmark) -> Iterable[bytes]:
    yield whole.digest().encode()
    for piece in whole.pieces:
        if piece.source is not None and piece.source.is_absolute():
            yield _bytes(piece.source, piece.path)
    for companion in whole.companions:
        if companion.picture is not None:
            yield companion.picture().tobytes()


def _bytes(shown: Any, where: str) -> bytes:
    if isinstance(shown, bytes):
        return shown
    if isinstance(shown, np.ndarray):
        return shown.tobytes()
    if not Path(shown).is_file():
        raise FileNotFoundError(f"{where}: no file at {shown}")
    return Path(shown).read_bytes()
