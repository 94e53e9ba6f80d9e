"""The scores of the model in the package that pages state are those of its scores.json."""

import json
import re
from pathlib import Path

from tuna_jax.utils import shipped

ROOT = Path(__file__).parents[2]
SCORES = json.loads((shipped.MODELS["emoji"] / "scores.json").read_text())


def percent(fraction):
    return f"{100 * fraction:.1f}"


def test_the_table_has_the_scores_of_the_file():
    page = (ROOT / "docs" / "emoji_demo.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"<!-- (\w+) --> \| ([\d.]+) % \(([\d.]+) to ([\d.]+)\) \| ([\d.]+) % \| (\d+)", page
    )
    assert len(rows) >= 12
    for name, value, low, high, chance, count in rows:
        score = SCORES[name]
        assert [value, low, high] == [percent(v) for v in (score["value"], *score["ci95"])], name
        assert [chance, int(count)] == [percent(score["chance"]), score["count"]], name


def test_the_readme_has_the_scores_of_the_file():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    stated = re.search(
        r"generates ([\d.]+) % of single objects and of pairs correctly, edits ([\d.]+) %, makes ([\d.]+) % of "
        r"clips and names ([\d.]+) %",
        text,
    )
    names = ("single_object_accuracy", "edit_accuracy", "clip_accuracy", "naming_accuracy")
    assert [float(n) for n in stated.groups()] == [
        round(100 * SCORES[name]["value"], 1) for name in names
    ]
    assert SCORES["position_accuracy"]["value"] == SCORES["single_object_accuracy"]["value"]


def test_the_files_in_the_package_are_small():
    files = list(shipped.MODELS["emoji"].iterdir())
    assert {file.name for file in files} == {"model.safetensors", "scores.json"}
    assert sum(file.stat().st_size for file in files) <= 8 * 10**6
