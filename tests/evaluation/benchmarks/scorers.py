"""What the official scorers read from a folder, reimplemented from their code, which each function names.

Each returns what the scorer would judge, and raises where the scorer would fail or leave something out.
(test_official.py runs the scorers' own functions.)
"""

import json
import os
import re
from pathlib import Path

from PIL import Image


def geneval(folder: Path) -> list[tuple[str, dict]]:
    """djghosh13/geneval at af4902f, evaluation/evaluate_images.py, main: (file, metadata) of every picture."""
    judged = []
    for subfolder in os.listdir(folder):
        if (folder / subfolder).is_dir() and subfolder.isdigit():
            with (folder / subfolder / "metadata.jsonl").open() as file:
                metadata = json.load(file)
            for name in os.listdir(folder / subfolder / "samples"):
                if re.match(r"\d+\.png", name):  # a beginning is enough
                    judged.append((f"{subfolder}/samples/{name}", metadata))
    return judged


def dpg_bench(folder: Path, resolution: int) -> dict[str, list[Image.Image]]:
    """TencentQQGYLab/ELLA at 3c228f1, dpg_bench/compute_dpg_bench.py: four crops of every file."""
    judged = {}
    for name in os.listdir(folder):
        opened = Image.open(folder / name)
        corners = [(x * resolution, y * resolution) for y in (0, 1) for x in (0, 1)]
        judged[name.split(".")[0]] = [
            opened.crop((x, y, x + resolution, y + resolution)) for x, y in corners
        ]
    return judged


def oneig(folder: Path, category: str, model: str, key: str) -> list[Image.Image]:
    """OneIG-Benchmark at 41b4983, alignment_score.py and utils.split_mxn_grid: the samples of one prompt, grid 2,2."""
    files = list((folder / category / model).glob(key + "*"))
    if len(files) != 1:
        raise LookupError(f"{len(files)} files of {key}: the scorer leaves it out")
    opened = Image.open(files[0])
    width, height = opened.width // 2, opened.height // 2
    tiles = [
        opened.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
        for y in (0, 1)
        for x in (0, 1)
    ]
    return [tile for tile in tiles if tile.convert("RGB").getextrema() != ((0, 0),) * 3]


def vbench(folder: Path, prompts: list[str]) -> dict[str, list[str]]:
    """vbench 0.1.5, VBench.build_full_info_json in mode vbench_standard: five clips by prompt."""
    names = os.listdir(folder)
    suffix = Path(names[0]).suffix  # of the first file
    judged = {}
    for prompt in prompts:
        expected = [f"{prompt}-{index}{suffix}" for index in range(5)]
        if missing := [name for name in expected if name not in names]:
            raise LookupError(f"{missing[0]}: the scorer warns and continues without")
        judged[prompt] = expected
    return judged


def imgedit(folder: Path, entries: dict, originals: Path) -> dict[str, tuple[bytes, bytes]]:
    """PKU-YuanGroup/ImgEdit at 547185d, Benchmark/Basic/basic_bench.py: original and result by key, as bytes."""
    return {
        key: ((originals / entry["id"]).read_bytes(), (folder / f"{key}.png").read_bytes())
        for key, entry in entries.items()
    }


def gedit(folder: Path, model: str, rows: list) -> dict[tuple, tuple[Image.Image, Image.Image]]:
    """Step1X-Edit at 570eba6, GEdit-Bench/test_gedit_score.py: source, and result at its size, where both are."""
    judged = {}
    for key, task, language, *_ in rows:
        stem = folder / model / "fullset" / task / language / key
        source, result = stem.with_name(f"{key}_SRCIMG.png"), stem.with_name(f"{key}.png")
        if source.exists() and result.exists():
            raw = Image.open(source)
            judged[key, task, language] = (raw, Image.open(result).convert("RGB").resize(raw.size))
    return judged
