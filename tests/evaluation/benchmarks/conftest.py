"""Prompt files of every benchmark in the published formats, and its folder filled with noise."""

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

published = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))


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
    lines = [json.dumps(row) for row in published.GENEVAL]
    (data / "geneval/evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    (data / "dpg_bench/prompts").mkdir()
    for stem in ("7", "partiprompts12"):
        (data / f"dpg_bench/prompts/{stem}.txt").write_text(f"A long story of {stem}.\n")
    for name, column in (("OneIG-Bench.csv", "prompt_en"), ("OneIG-Bench-ZH.csv", "prompt_cn")):
        with (data / "oneig" / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["category", "id", column, "class"])
            writer.writerows([*row, ""] for row in published.ONEIG)
    (data / "vbench/VBench_full_info.json").write_text(json.dumps(published.VBENCH))
    (data / "imgedit/basic_edit.json").write_text(json.dumps(published.IMGEDIT))
    for place, entry in enumerate(published.IMGEDIT.values()):
        original = data / "imgedit" / entry["id"]
        original.parent.mkdir()
        published.picture(place, (80, 60)).save(original)
    rows = [
        {
            "key": key,
            "task_type": task,
            "instruction": f"do {key}",
            "instruction_language": language,
            "input_image": {"bytes": _encoded(published.picture(place, size)), "path": None},
        }
        for place, (key, task, language, size) in enumerate(published.GEDIT)
    ]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows),
        data / "gedit/train-00000-of-00001.parquet",
        row_group_size=2,
    )
    return data


@pytest.fixture(scope="session")
def generated(prompts, tmp_path_factory):
    """Each benchmark and its complete folder."""
    folders = {}
    for name in registry.NAMES:
        folder = tmp_path_factory.mktemp("generated") / name
        benchmark = registry.read(name, prompts)
        clips = benchmark.clips
        fill(
            benchmark,
            folder,
            published.noise_clips if clips else published.noise,
            published.CLIPS if clips else published.PLAN,
            progress=False,
        )
        folders[name] = (benchmark, folder)
    return folders
