"""Prompt files of every benchmark in the published formats, and its folder drawn with noise."""

import csv
import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tuna_jax.evaluation.benchmarks import registry
from tuna_jax.evaluation.benchmarks.generate import fill

given = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def prompts(tmp_path_factory) -> Path:
    """A data folder with a folder for each benchmark."""
    import pyarrow
    import pyarrow.parquet

    data = tmp_path_factory.mktemp("benchmarks")
    for name in registry.NAMES:
        (data / name).mkdir()
    lines = [json.dumps(row) for row in given.GENEVAL]
    (data / "geneval/evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    (data / "dpg_bench/prompts").mkdir()
    for stem in ("7", "partiprompts12"):
        (data / f"dpg_bench/prompts/{stem}.txt").write_text(f"A long story of {stem}.\n")
    for name, column in (("OneIG-Bench.csv", "prompt_en"), ("OneIG-Bench-ZH.csv", "prompt_cn")):
        with (data / "oneig" / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["category", "id", column, "class"])
            writer.writerows([*row, ""] for row in given.ONEIG)
    (data / "vbench/VBench_full_info.json").write_text(json.dumps(given.VBENCH))
    (data / "imgedit/basic_edit.json").write_text(json.dumps(given.IMGEDIT))
    for place, entry in enumerate(given.IMGEDIT.values()):
        original = data / "imgedit" / entry["id"]
        original.parent.mkdir()
        given.picture(place, (80, 60)).save(original)
    rows = [
        {
            "key": key,
            "task_type": task,
            "instruction": f"do {key}",
            "instruction_language": language,
            "input_image": {"bytes": _encoded(given.picture(place, size)), "path": None},
        }
        for place, (key, task, language, size) in enumerate(given.GEDIT)
    ]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows),
        data / "gedit/train-00000-of-00001.parquet",
        row_group_size=2,
    )
    return data


@pytest.fixture(scope="session")
def drawn(prompts, tmp_path_factory):
    """Each benchmark and its folder, drawn whole."""
    made = {}
    for name in registry.NAMES:
        folder = tmp_path_factory.mktemp("drawn") / name
        benchmark = registry.read(name, prompts)
        clips = benchmark.clips
        fill(
            benchmark,
            folder,
            given.noise_clips if clips else given.noise,
            given.CLIPS if clips else given.PLAN,
            progress=False,
        )
        made[name] = (benchmark, folder)
    return made
