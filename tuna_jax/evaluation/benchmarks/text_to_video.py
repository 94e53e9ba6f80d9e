"""VBench: text to video.

The layout is what the package's own code reads: vbench 0.1.5 (`VBench.build_full_info_json`, mode `vbench_standard`),
and github.com/Vchitect/VBench at 45e79ec (static_filter.py; prompts/README.md asks for 25 clips of flickering).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path

from tuna_jax.evaluation.benchmarks.spec import Benchmark, Piece, distinct, file_name, find, text_of
from tuna_jax.utils.text_files import read_json

_FILE = "VBench_full_info.json"
_CLIPS, _FLICKERING_CLIPS = 5, 25


def vbench(data: str | Path | None = None, *, dimensions: Collection[str] = ()) -> Benchmark:
    """VBench: `PROMPT-0.mp4` to `PROMPT-4.mp4`, to `-24` for prompts of temporal flickering.

    The scorer takes the suffix of all videos from the first file that it finds, so the folder may hold no other files.

    Args:
      data: where `VBench_full_info.json` is; None uses the one in the package `vbench`, which is not imported.
      dimensions: only prompts of these; empty for all.

    Raises:
      FileNotFoundError: neither the file nor the package exists.
      ValueError: an invalid row, or an unknown dimension.
    """
    path = packaged() if data is None else None
    hint = "it is in the package vbench: pip install --no-deps vbench, or unpack its wheel"
    path = path or find(data, "vbench", [_FILE], hint)
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: it must be a list of prompts, and is a {type(rows).__name__}")
    by_prompt: dict[str, tuple[int, set[str]]] = {}  # Two prompts occur twice.
    for number, row in enumerate(rows):
        where = f"{path}, entry {number}"
        prompt = text_of(row, "prompt_en", where)
        named = row.get("dimension")
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise ValueError(f"{where}: 'dimension' must be a list of names")
        by_prompt.setdefault(prompt, (number, set()))[1].update(named)
    known = set().union(*(named for _, named in by_prompt.values()))
    if unknown := sorted(set(dimensions) - known):
        raise ValueError(f"{path}: no dimension {unknown[0]!r}; it has {', '.join(sorted(known))}")
    pieces, prompts = [], 0
    for prompt, (number, named) in by_prompt.items():
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
    spec = importlib.util.find_spec("vbench")
    path = Path(spec.origin).with_name(_FILE) if spec and spec.origin else None
    return path if path and path.is_file() else None
