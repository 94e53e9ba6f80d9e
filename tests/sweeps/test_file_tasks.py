"""Questions of files and published benchmarks as tasks of sweeps: what they ask and draw, and what they depend on."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tuna_jax.emoji.evaluation import write_questions
from tuna_jax.evaluation.benchmarks import registry as published_registry
from tuna_jax.evaluation.benchmarks import run, validate
from tuna_jax.evaluation.vqa import datasets
from tuna_jax.evaluation.vqa import run as asking
from tuna_jax.sweeps import cell_store, registry
from tuna_jax.sweeps.cell_store import Cell

pytestmark = pytest.mark.usefixtures("any_words")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    write_questions.write(folder, 4)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    data = tmp_path_factory.mktemp("prompts")
    texts = ("a dog", "a cat on a hill", "two red apples")
    lines = [json.dumps({"tag": "colors", "include": [], "prompt": text}) for text in texts]
    (data / "evaluation_metadata.jsonl").write_text("\n".join(lines))
    entry = {"7": {"id": "a.png", "prompt": "make it blue", "edit_type": "adjust"}}
    (data / "basic_edit.json").write_text(json.dumps(entry))
    random = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(random).save(data / "a.png")
    return data


def made(name, **options):
    return registry.make_task(name, options)


def drawing(tuna):
    chosen = registry.configured(tuna, {"steps": 2, "size": 32, "guidance": 2.0})
    assert chosen.size == (32, 32)
    return chosen


@pytest.mark.parametrize("style", asking.TASKS)
def test_questions_are_put_as_the_command_puts_them(tuna, folder, style):
    file = folder / "pictures.jsonl"
    task = made("questions", file=str(file), style=style)
    items = datasets.read_lines(file)
    assert task.count == len(items) > 3
    rows = asking.run(tuna, items, style)[1]
    got = task.run(tuna, [2, 0, 2], 7)
    got.check(3)
    for place, row in zip((0, 1, 2), (rows[2], rows[0], rows[2]), strict=True):
        assert got.prompts[place] == row["question"] and got.expected[place] == row["answer"]
        if style == "log_likelihood":
            assert abs(got.values["log_likelihood"][place] - row["log_likelihood"]) < 2e-3
        else:
            assert got.texts[place] == row["reply"]
            assert got.values["right"] == [float(rows[i]["right"]) for i in (2, 0, 2)]
    assert np.array_equal(got.pictures[1], tuna.load_media(items[0].media)[0][0])


def test_questions_are_known_by_what_is_in_them(folder, tmp_path):
    name = "pictures.jsonl"
    key = made("questions", file=str(folder / name)).options
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert made("questions", file=str(copy / name)).options == key, "wherever they lie"
    image = datasets.read_lines(copy / name)[0].media[0]
    Image.new("RGB", (32, 32), (9, 9, 9)).save(image)
    changed = made("questions", file=str(copy / name))
    assert changed.options != key
    assert made("questions", file=str(folder / name), style="multiple_choice").options != key
    image.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}:1: no file at .*{image.name}"):
        made("questions", file=str(copy / name))


def test_a_benchmark_becomes_its_scorers_folder(tuna, prompts, tmp_path):
    task = made("benchmark", benchmark="geneval", prompts=str(prompts))
    assert task.count == 12
    cell = Cell(tmp_path / "cell")
    # Rows of a call that do not divide the pieces of a prompt.
    cell_store.run_missing(task, cell, drawing(tuna), {}, seed=5, batch=5, saved_items=2)
    whole, folder = (
        published_registry.read("geneval", prompts),
        tmp_path / "cell" / cell_store.FILES,
    )
    assert validate.check(whole, folder, [(32, 32)]) == []
    assert cell.files_entry() == {"files": str(folder)}
    assert {record["values"]["sound"] for record in cell.records().values()} == {1.0}
    beside = tmp_path / "beside"
    run.run(drawing(tuna), whole, beside, seed=5, batch_size=12, progress=False)
    for piece in whole.pieces:
        pixels = [np.asarray(Image.open(at / piece.path)).astype(int) for at in (folder, beside)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, "rounding of other batches, and no more"
    assert len(cell.pictures()) == 2


def test_faulty_files_are_no_sound_ones(tuna, prompts, monkeypatch):
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    monkeypatch.setattr(
        type(tuna), "generate_image", lambda self, p, **more: grey.repeat(len(p), 0)
    )
    drawn = made("benchmark", benchmark="geneval", prompts=str(prompts)).run(
        drawing(tuna), [0, 1], 0
    )
    assert drawn.values["sound"] == [0.0, 0.0]


def test_edits_are_known_by_their_sources(tuna, prompts, tmp_path):
    task = made("benchmark", benchmark="imgedit", prompts=str(prompts), sizes=[(32, 48)])
    assert task.options["sizes"] == [[32, 48]]
    drawn = task.run(drawing(tuna), [0, 0], 0)
    drawn.check(2)
    assert list(drawn.files[0]) == ["7.png"] and drawn.values["sound"] == [1.0, 1.0]
    copy = shutil.copytree(prompts, tmp_path / "copy")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(copy / "a.png")
    other = made("benchmark", benchmark="imgedit", prompts=str(copy), sizes=[(32, 48)])
    assert other.options["content"] != task.options["content"]


def test_a_trial_has_the_first_prompts(prompts):
    assert made("benchmark", benchmark="geneval", prompts=str(prompts), count=2).count == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"file": "a", "tfds": "b"}, "give either file='questions.jsonl' or tfds='name'"),
        ({}, "give either file="),
        ({"file": "a", "style": "guess"}, "unknown style 'guess'; choose one of exact_match"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        made("questions", **options)
