"""Generation resumes, is shared by processes, and gives the same files with any batch size."""

import dataclasses
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tuna_jax.evaluation.benchmarks import registry, validate
from tuna_jax.evaluation.benchmarks.generate import fill

published = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class _Counting:
    """Generates noise and counts samples; stops after `dies_after`, as a killed process does."""

    def __init__(self, dies_after: int = 10**9):
        self.generated, self.dies_after = 0, dies_after

    def __call__(self, prompts, seeds, sources, size):
        if self.generated + len(prompts) > self.dies_after:
            raise KeyboardInterrupt
        self.generated += len(prompts)
        return published.noise(prompts, seeds, sources, size)


@pytest.mark.parametrize("name", ["geneval", "dpg_bench", "imgedit", "gedit"])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_files_do_not_depend_on_the_batch(prompts, generated, tmp_path, name, batch):
    plan = dataclasses.replace(published.PLAN, batch=batch)
    benchmark = registry.read(name, prompts)
    fill(benchmark, tmp_path / name, published.noise, plan, progress=False)
    assert _bytes(tmp_path / name) == _bytes(generated[name][1])


def test_an_interrupted_folder_is_finished(prompts, generated, tmp_path):
    benchmark, folder = registry.read("geneval", prompts), tmp_path / "geneval"
    plan = dataclasses.replace(published.PLAN, batch=2)
    first = _Counting(dies_after=4)
    with pytest.raises(KeyboardInterrupt):
        fill(benchmark, folder, first, plan, progress=False)
    assert first.generated == 4
    # A file that something else broke is generated again, too.
    broken = next(folder.rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:100])
    rest = _Counting()
    assert fill(benchmark, folder, rest, plan, progress=False) == (5, 3)
    assert rest.generated == 5
    assert _bytes(folder) == _bytes(generated["geneval"][1])
    assert fill(benchmark, folder, rest, plan, progress=False) == (0, 8)
    assert not (tmp_path / "geneval.unfinished").exists()


def test_shards_fill_one_folder(prompts, generated, tmp_path):
    for name in ("geneval", "gedit"):
        benchmark, folder = registry.read(name, prompts), tmp_path / name
        for number in (1, 0):
            plan = dataclasses.replace(published.PLAN, shard=(number, 2))
            whole = (tmp_path / f"{name}.png").exists()
            fill(benchmark, folder, published.noise, plan, progress=False)
            assert not whole
        assert (tmp_path / f"{name}.png").exists()  # the sheet comes with the last file
        assert _bytes(folder) == _bytes(generated[name][1])


def test_seeds_of_samples_are_all_different(prompts):
    for name in ("geneval", "vbench"):
        pieces = registry.read(name, prompts).pieces
        seeds = [pair for piece in pieces for pair in piece.seeds(7)]
        assert len(set(seeds)) == len(seeds)
        assert {first for first, _ in seeds} == {7}


@pytest.mark.parametrize(
    ("change", "setting", "pattern"),
    [({"seed": 1}, {}, "seed=0.* has 1"), ({}, {"guidance": 3.0}, "guidance=2.0.* has 3.0")],
)
def test_other_settings_are_refused(prompts, tmp_path, change, setting, pattern):
    benchmark = registry.read("geneval", prompts)
    plan = published.PLAN
    fill(
        benchmark, tmp_path / "g", published.noise, plan, settings={"guidance": 2.0}, progress=False
    )
    before = _bytes(tmp_path / "g")
    with pytest.raises(ValueError, match=pattern):
        fill(
            benchmark,
            tmp_path / "g",
            published.noise,
            dataclasses.replace(plan, **change),
            settings={"guidance": 2.0, **setting},
            progress=False,
        )
    assert _bytes(tmp_path / "g") == before
    kept = json.loads((tmp_path / "g.json").read_text())
    assert (kept["benchmark"], kept["seed"], kept["guidance"]) == ("geneval", 0, 2.0)


def test_images_of_unknown_origin_are_refused(prompts, tmp_path):
    benchmark = registry.read("geneval", prompts)
    fill(benchmark, tmp_path / "g", published.noise, published.PLAN, progress=False)
    (tmp_path / "g.json").unlink()
    with pytest.raises(ValueError, match=r"no g\.json"):
        fill(benchmark, tmp_path / "g", published.noise, published.PLAN, progress=False)


def test_an_edit_takes_the_size_nearest_to_its_source_and_sees_all_of_it(prompts, tmp_path):
    plan = dataclasses.replace(published.PLAN, sizes=((32, 32), (32, 48), (48, 32)))
    benchmark = registry.read("gedit", prompts)
    seen = {}

    def draw(texts, seeds, sources, size):
        seen.update(zip(seeds, sources, strict=True))
        return published.noise(texts, seeds, sources, size)

    fill(benchmark, tmp_path / "e", draw, plan, progress=False)
    for place, (key, task, language, size) in enumerate(published.GEDIT):
        with Image.open(tmp_path / "e/tuna/fullset" / task / language / f"{key}.png") as edited:
            assert edited.size == ((48, 32) if size == (60, 40) else (32, 48))
            stretched = published.picture(place, size).resize(edited.size, Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(seen[0, place * 64], np.asarray(stretched))
    assert validate.check(benchmark, tmp_path / "e", plan.sizes) == []


def test_an_unreadable_source_is_named(prompts, tmp_path):
    entry = {"1": {"id": "a.jpg", "prompt": "p", "edit_type": "add"}}
    (tmp_path / "basic_edit.json").write_text(json.dumps(entry))
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    benchmark = registry.read("imgedit", tmp_path)
    with pytest.raises(ValueError, match=r"the source of 1.png cannot be read: .*a.jpg"):
        fill(benchmark, tmp_path / "out", published.noise, published.PLAN, progress=False)


def test_a_trial_is_the_beginning_of_the_whole(prompts, generated, tmp_path):
    benchmark = registry.read("geneval", prompts)
    fill(benchmark.first(1), tmp_path / "g", published.noise, published.PLAN, progress=False)
    trial, whole = _bytes(tmp_path / "g"), _bytes(generated["geneval"][1])
    assert len(trial) == 5
    assert trial.items() <= whole.items()
