"""VBench: clips from text.

The layout is what the package's own code reads: vbench 0.1.5 (`VBench.build_full_info_json`, mode `vbench_standard`),
and github.com/Vchitect/VBench at 45e79ec (static_filter.py; prompts/README.md asks for 25 clips of flickering).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection
from pathlib import Path

from tuna_jax.evaluation.benchmarks.spec import Benchmark, Piece, distinct, file_name, find, text_of

_FILE = "VBench_full_info.json"
_CLIPS, _FLICKERING_CLIPS = 5, 25


def vbench(data: str | Path | None = None, *, dimensions: Collection[str] = ()) -> Benchmark:
    """VBench: `PROMPT-0.mp4` to `PROMPT-4.mp4`, to `-24` for prompts of temporal flickering.

    The scorer takes the suffix of all clips from the first file that it finds, so nothing else may lie there.

    Args:
      data: where `VBench_full_info.json` is; None takes the one in the package `vbench`, which is not imported.
      dimensions: prompts of these alone; empty for all.

    Raises:
      FileNotFoundError: no such file, and no such package.
      ValueError: a row that is not VBench's, or an unknown dimension.
    """
    path = packaged() if data is None else None
    told = "it is in the package vbench: pip install --no-deps vbench, or unpack its wheel"
    path = path or find(data, "vbench", [_FILE], told)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a list of prompts is wanted, and it is a {type(rows).__name__}")
    asked: dict[str, tuple[int, set[str]]] = {}  # two prompts stand twice in it
    for number, row in enumerate(rows):
        where = f"{path}, entry {number}"
        prompt = text_of(row, "prompt_en", where)
        named = row.get("dimension")
        if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
            raise ValueError(f"{where}: 'dimension' must be a list of names")
        asked.setdefault(prompt, (number, set()))[1].update(named)
    known = set().union(*(named for _, named in asked.values()))
    if unknown := sorted(set(dimensions) - known):
        raise ValueError(f"{path}: no dimension {unknown[0]!r}; it has {', '.join(sorted(known))}")
    pieces, prompts = [], 0
    for prompt, (number, named) in asked.items():
        if dimensions and not named & set(dimensions):
            continue
        prompts += 1
        for sample in range(_FLICKERING_CLIPS if "temporal_flickering" in named else _CLIPS):
            name = file_name(f"{prompt}-{sample}.mp4", f"{path}, entry {number}")
            pieces.append(Piece(name, prompt, number, samples=(sample,)))
    return Benchmark(
        "vbench",
        distinct(pieces, str(path)),
        prompts=prompts,
        published=944,  # of 946 entries
        scorer="python evaluate.py --videos_path {folder} --dimension ... (for flickering static_filter.py first)",
        clips=True,
    )


def packaged() -> Path | None:
    """The prompt file in the installed package `vbench`, which is not imported. None if there is none."""
    found = importlib.util.find_spec("vbench")
    path = Path(found.origin).with_name(_FILE) if found and found.origin else None
    return path if path and path.is_file() else None
