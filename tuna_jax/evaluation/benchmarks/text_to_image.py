"""Benchmarks of text to image: GenEval, DPG-Bench, OneIG-Bench.

Layouts are those that the scorers' own code reads: djghosh13/geneval at af4902f (evaluation/evaluate_images.py),
TencentQQGYLab/ELLA at 3c228f1 (dpg_bench/compute_dpg_bench.py), OneIG-Bench/OneIG-Benchmark at 41b4983
(scripts/utils/utils.py, scripts/*/*_score.py).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from tuna_jax.evaluation.benchmarks.spec import (
    Benchmark,
    Companion,
    Piece,
    distinct,
    file_name,
    find,
    text_of,
)
from tuna_jax.utils.text_files import numbered_lines, parse_json, read_text

_FOUR = (0, 1, 2, 3)
# Categories of OneIG-Bench's table, and its folders.
_ONEIG_FOLDERS = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
# Its tables: file, column of the prompt, number of prompts.
_ONEIG_TABLES = {
    "en": ("OneIG-Bench.csv", "prompt_en", 1120),
    "zh": ("OneIG-Bench-ZH.csv", "prompt_cn", 1320),
}


def geneval(data: str | Path | None) -> Benchmark:
    """GenEval: `00000/metadata.jsonl`, the N-th line of the prompt file, and `00000/samples/0000.png` to `0003.png`.

    The scorer takes every folder of digits, and every file in `samples` whose name begins like a number's PNG.

    Raises:
      FileNotFoundError: there is no `evaluation_metadata.jsonl`.
      ValueError: an invalid line, named by its number.
    """
    hint = "it is prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval"
    path = find(data, "geneval", ["evaluation_metadata.jsonl"], hint)
    pieces, companions = [], []
    for number, (place, line) in enumerate(numbered_lines(path)):
        where = f"{path}:{place}"
        row = parse_json(line, where)
        prompt = text_of(row, "prompt", where)
        text_of(row, "tag", where)
        if not isinstance(row.get("include"), list):
            raise ValueError(f"{where}: 'include' must be a list of what the image must show")
        folder = f"{number:05d}"
        companions.append(Companion(f"{folder}/metadata.jsonl", number, text=line + "\n"))
        for sample in _FOUR:
            pieces.append(
                Piece(f"{folder}/samples/{sample:04d}.png", prompt, number, samples=(sample,))
            )
    return Benchmark(
        "geneval",
        distinct(pieces, str(path)),
        prompts=len(companions),
        published=553,
        scorer="python evaluation/evaluate_images.py {folder} --outfile results.jsonl --model-path DETECTOR",
        companions=tuple(companions),
        tolerated=("*/grid.png",),
    )


def dpg_bench(data: str | Path | None) -> Benchmark:
    """DPG-Bench: `STEM.png` for each `STEM.txt`, four samples in a 2x2 grid.

    The scorer opens every file in the folder, and splits a grid by the side length of a sample that it is given.

    Raises:
      FileNotFoundError: there is no folder of prompts.
      ValueError: it has no prompts, or an empty one.
    """
    hint = "they are dpg_bench/prompts/*.txt of github.com/TencentQQGYLab/ELLA"
    folder = find(data, "dpg_bench", ["prompts", "dpg_bench/prompts"], hint)
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; dpg_bench requires the folder of prompts: {hint}")
    pieces = []
    files = [file for file in folder.glob("*.txt") if not file.name.startswith(".")]
    for place, path in enumerate(sorted(files, key=lambda file: file.name)):
        if "." in path.stem:
            raise ValueError(f"{path}: the scorer takes a name up to its first dot; rename it")
        prompt = read_text(path).strip()
        if not prompt:
            raise ValueError(f"{path}: it has no prompt")
        pieces.append(Piece(f"{path.stem}.png", prompt, place, samples=_FOUR))
    return Benchmark(
        "dpg_bench",
        distinct(pieces, str(folder)),
        prompts=len(pieces),
        published=1065,
        scorer="PIC_NUM=4 bash dpg_bench/dist_eval.sh {folder} {side}",
        tolerated=("*.txt",),  # The scorer writes its results there by default.
    )


def oneig(data: str | Path | None, *, model: str = "tuna", language: str = "en") -> Benchmark:
    """OneIG-Bench: `CATEGORY/MODEL/ID.webp`, four samples in a 2x2 grid.

    The scorer requires exactly one file whose name begins with the id, and skips samples that are completely black.

    Args:
      data: where `OneIG-Bench.csv` or `OneIG-Bench-ZH.csv` is.
      model: the name of its folders; folders of other models may exist next to them.
      language: 'en' or 'zh'.

    Raises:
      FileNotFoundError: the table does not exist.
      ValueError: an invalid row, named by its line.
    """
    if language not in _ONEIG_TABLES:
        raise ValueError(f"OneIG-Bench is in {' and '.join(_ONEIG_TABLES)}, not {language!r}")
    name, column, published = _ONEIG_TABLES[language]
    path = find(data, "oneig", [name], f"it is {name} of github.com/OneIG-Bench/OneIG-Benchmark")
    model = file_name(model, "--name")
    pieces, folders = [], set()
    for place, (where, row) in enumerate(_table(path)):
        category, key = text_of(row, "category", where), text_of(row, "id", where)
        if category not in _ONEIG_FOLDERS:
            raise ValueError(f"{where}: {category!r} is not one of {', '.join(_ONEIG_FOLDERS)}")
        folder = f"{_ONEIG_FOLDERS[category]}/{model}"
        folders.add(folder)
        target = f"{folder}/{file_name(key, where)}.webp"
        pieces.append(Piece(target, text_of(row, column, where), place, samples=_FOUR))
    return Benchmark(
        "oneig",
        distinct(pieces, str(path)),
        prompts=len(pieces),
        published=published,
        scorer=f'./run_overall.sh with MODE={language.upper()} IMAGE_DIR={{folder}} MODEL_NAMES=("{model}") '
        f'IMAGE_GRID=("2,2")',
        own=tuple(sorted(folders)),
    )


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """('FILE:LINE', row) of a CSV file."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from error
