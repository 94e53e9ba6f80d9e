"""Every benchmark's folder has exactly what its scorer reads; invalid prompt files are named."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tuna_jax.evaluation.benchmarks import registry, text_to_video, validate


def _read(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name(name))))


published, scorers = _read("published.py"), _read("scorers.py")
SHARED = Path(__file__).parents[3].parent / "shared/benchmarks"


@pytest.mark.parametrize("name", registry.NAMES)
def test_generated_folders_pass_the_checker(generated, name):
    benchmark, folder = generated[name]
    assert validate.check(benchmark, folder, [(published.SIDE, published.SIDE)]) == []
    assert {path.name for path in folder.parent.iterdir()} == {name, f"{name}.json", f"{name}.png"}


def test_geneval_is_read_by_its_scorer(generated):
    judged = scorers.geneval(generated["geneval"][1])
    assert len(judged) == 8
    for name, metadata in judged:
        assert metadata == published.GENEVAL[int(name.split("/")[0])]
    assert {name.split("/")[-1] for name, _ in judged} == {f"{i:04d}.png" for i in range(4)}


def test_dpg_bench_is_cut_into_its_four_samples(generated):
    judged = scorers.dpg_bench(generated["dpg_bench"][1], published.SIDE)
    assert set(judged) == {"7", "partiprompts12"}
    for place, stem in enumerate(("7", "partiprompts12")):
        prompts, seeds = [f"A long story of {stem}."] * 4, [(0, place * 64 + i) for i in range(4)]
        for crop, sample in zip(
            judged[stem],
            published.noise(prompts, seeds, None, (published.SIDE, published.SIDE)),
            strict=True,
        ):
            np.testing.assert_array_equal(np.asarray(crop), sample)


def test_oneig_has_one_file_of_four_samples_per_prompt(generated):
    folders = {"Portrait": "human", "Text_Rendering": "text"}
    for category, key, _ in published.ONEIG:
        tiles = scorers.oneig(generated["oneig"][1], folders[category], "tuna", key)
        assert [tile.size for tile in tiles] == [(published.SIDE, published.SIDE)] * 4


def test_vbench_finds_every_clip(generated):
    folder = generated["vbench"][1]
    judged = scorers.vbench(folder, [row["prompt_en"] for row in published.VBENCH])
    assert len(judged) == 2
    assert (
        len(list(folder.iterdir())) == 25 + 5
    )  # 25 of temporal flickering; one prompt occurs twice


def test_imgedit_finds_original_and_result(generated, prompts):
    judged = scorers.imgedit(generated["imgedit"][1], published.IMGEDIT, prompts / "imgedit")
    assert set(judged) == set(published.IMGEDIT)


def test_gedit_finds_source_and_result(generated):
    judged = scorers.gedit(generated["gedit"][1], "tuna", published.GEDIT)
    assert len(judged) == len(published.GEDIT)
    for place, (key, task, language, size) in enumerate(published.GEDIT):
        source, result = judged[key, task, language]
        assert source.size == result.size == size
        np.testing.assert_array_equal(
            np.asarray(source), np.asarray(published.picture(place, size))
        )


def test_gedit_is_read_from_what_datasets_saves_too(prompts, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(prompts / "gedit/train-00000-of-00001.parquet")
    (tmp_path / "train").mkdir()
    with (
        pyarrow.OSFile(str(tmp_path / "train/data-00000-of-00001.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, rows.schema) as writer,
    ):
        writer.write_table(rows)
    benchmark, again = registry.read("gedit", prompts), registry.read("gedit", tmp_path)
    assert again.pieces == benchmark.pieces
    assert again.companions[2].picture().tobytes() == benchmark.companions[2].picture().tobytes()


def test_vbench_may_come_from_its_package(tmp_path, monkeypatch):
    package = tmp_path / "vbench"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it must not be imported')")
    (package / "VBench_full_info.json").write_text(json.dumps(published.VBENCH))
    assert text_to_video.packaged() is None or "vbench" in str(text_to_video.packaged())
    monkeypatch.syspath_prepend(str(tmp_path))
    benchmark = registry.read("vbench", dimensions=["temporal_style"])
    assert [piece.path for piece in benchmark.pieces] == [
        f"a cat, oil painting-{i}.mp4" for i in range(5)
    ]
    with pytest.raises(ValueError, match="no dimension 'beauty'"):
        registry.read("vbench", dimensions=["beauty"])


def test_oneig_in_chinese_has_its_own_table(prompts):
    benchmark = registry.read("oneig", prompts, language="zh", model="mine")
    assert benchmark.published == 1320
    assert benchmark.own == ("human/mine", "text/mine")


def _wrong(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("geneval", "evaluation_metadata.jsonl", '{"tag": "x"\n', r"metadata.jsonl:1: not JSON"),
        (
            "geneval",
            "evaluation_metadata.jsonl",
            '{"text": "a cat"}\n',
            r":1: 'prompt' must be a text",
        ),
        ("geneval", "evaluation_metadata.jsonl", "", "has no prompts"),
        ("dpg_bench", "prompts/1.txt", "\n", r"1.txt: .*no prompt"),
        ("dpg_bench", "prompts/1.5.txt", "a cat", r"up to its first dot"),
        (
            "oneig",
            "OneIG-Bench.csv",
            "category,id\nPortrait,000\n",
            r":2: 'prompt_en' must be a text",
        ),
        (
            "oneig",
            "OneIG-Bench.csv",
            "category,id,prompt_en\nCars,000,a\n",
            r":2: 'Cars'",
        ),
        ("vbench", "VBench_full_info.json", "{}", "a list of prompts"),
        ("vbench", "VBench_full_info.json", '[{"prompt_en": "a"}]', "entry 0: 'dimension' must be"),
        (
            "vbench",
            "VBench_full_info.json",
            '[{"prompt_en": "a/b", "dimension": []}]',
            "entry 0: 'a/b-0.mp4'",
        ),
        (
            "imgedit",
            "basic_edit.json",
            '{"1": {"id": "a.jpg"}}',
            "key '1': 'prompt' must be a text",
        ),
    ],
)
def test_a_wrong_prompt_file_is_named(tmp_path, name, file, text, message):
    with pytest.raises(ValueError, match=message):
        registry.read(name, _wrong(tmp_path, file, text))


@pytest.mark.parametrize("name", registry.NAMES)
def test_absent_prompts_are_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"(github|package|Hugging Face)"):
        registry.read(name, tmp_path)


def test_an_absent_original_is_named(tmp_path):
    entry = {"1": {"id": "a.jpg", "prompt": "p", "edit_type": "add"}}
    with pytest.raises(FileNotFoundError, match=r"key '1': no original at .*--images="):
        registry.read("imgedit", _wrong(tmp_path, "basic_edit.json", json.dumps(entry)))


def test_columns_of_another_data_set_are_named(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"key": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'task_type'"):
        registry.read("gedit", tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the published prompts are not in {SHARED}")
def test_the_published_prompt_files_are_read_completely():
    geneval, dpg = registry.read("geneval", SHARED), registry.read("dpg_bench", SHARED)
    assert (geneval.prompts, len(geneval.pieces)) == (553, 2212)
    assert geneval.pieces[-1].path == "00552/samples/0003.png"
    assert (dpg.prompts, len(dpg.pieces)) == (1065, 1065)
