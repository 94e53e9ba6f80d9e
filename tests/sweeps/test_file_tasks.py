"""Questions of files and published benchmarks as tasks of sweeps: what they ask, generate and depend on."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tuna_jax.emoji.evaluation import write_questions
from tuna_jax.evaluation.benchmarks import registry as published_registry
from tuna_jax.evaluation.benchmarks import run, validate
from tuna_jax.evaluation.vqa import datasets
from tuna_jax.evaluation.vqa import run as vqa_run
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


def make(name, **options):
    return registry.make_task(name, options)


def configured(tuna):
    model = registry.configured(tuna, {"steps": 2, "size": 32, "guidance": 2.0})
    assert model.size == (32, 32)
    return model


@pytest.mark.parametrize("style", vqa_run.TASKS)
def test_questions_are_asked_as_the_command_asks_them(tuna, folder, style):
    file = folder / "pictures.jsonl"
    task = make("questions", file=str(file), style=style)
    items = datasets.read_lines(file)
    assert task.count == len(items) > 3
    rows = vqa_run.run(tuna, items, style)[1]
    outcome = task.run(tuna, [2, 0, 2], 7)
    outcome.check(3)
    for index, row in zip((0, 1, 2), (rows[2], rows[0], rows[2]), strict=True):
        assert (
            outcome.prompts[index] == row["question"] and outcome.expected[index] == row["answer"]
        )
        if style == "log_likelihood":
            assert abs(outcome.values["log_likelihood"][index] - row["log_likelihood"]) < 2e-3
        else:
            assert outcome.texts[index] == row["reply"]
            assert outcome.values["right"] == [float(rows[i]["right"]) for i in (2, 0, 2)]
    assert np.array_equal(outcome.pictures[1], tuna.load_media(items[0].media)[0][0])


def test_questions_are_identified_by_their_content(folder, tmp_path):
    name = "pictures.jsonl"
    key = make("questions", file=str(folder / name)).options
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert make("questions", file=str(copy / name)).options == key, "in any folder"
    image = datasets.read_lines(copy / name)[0].media[0]
    Image.new("RGB", (32, 32), (9, 9, 9)).save(image)
    changed = make("questions", file=str(copy / name))
    assert changed.options != key
    assert make("questions", file=str(folder / name), style="multiple_choice").options != key
    image.unlink()
    missing = make("questions", file=str(copy / name))
    assert missing.options != changed.options, "with the file there again, the item is run again"


def test_a_benchmark_becomes_its_scorers_folder(tuna, prompts, tmp_path):
    task = make("benchmark", benchmark="geneval", prompts=str(prompts))
    assert task.count == 12
    cell = Cell(tmp_path / "cell")
    # The rows of a call do not divide the samples of a prompt.
    cell_store.run_missing(task, cell, configured(tuna), {}, seed=5, batch=5, saved_items=2)
    whole, folder = (
        published_registry.read("geneval", prompts),
        tmp_path / "cell" / cell_store.FILES,
    )
    assert validate.check(whole, folder, [(32, 32)]) == []
    assert cell.files_entry() == {"files": str(folder)}
    assert {record["values"]["sound"] for record in cell.records().values()} == {1.0}
    reference = tmp_path / "reference"
    run.run(configured(tuna), whole, reference, seed=5, batch_size=12, progress=False)
    for piece in whole.pieces:
        pixels = [np.asarray(Image.open(at / piece.path)).astype(int) for at in (folder, reference)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, "other batches differ only by rounding"
    assert len(cell.pictures()) == 2


def test_faulty_files_are_not_sound(tuna, prompts, monkeypatch):
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    monkeypatch.setattr(
        type(tuna), "generate_image", lambda self, p, **more: grey.repeat(len(p), 0)
    )
    outcome = make("benchmark", benchmark="geneval", prompts=str(prompts)).run(
        configured(tuna), [0, 1], 0
    )
    assert outcome.values["sound"] == [0.0, 0.0]


def test_edits_are_identified_by_their_sources(tuna, prompts, tmp_path):
    task = make("benchmark", benchmark="imgedit", prompts=str(prompts), sizes=[(32, 48)])
    assert task.options["sizes"] == [[32, 48]]
    outcome = task.run(configured(tuna), [0, 0], 0)
    outcome.check(2)
    assert list(outcome.files[0]) == ["7.png"] and outcome.values["sound"] == [1.0, 1.0]
    copy = shutil.copytree(prompts, tmp_path / "copy")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(copy / "a.png")
    other = make("benchmark", benchmark="imgedit", prompts=str(copy), sizes=[(32, 48)])
    assert other.options["content"] != task.options["content"]


def test_a_trial_has_the_first_prompts(prompts):
    assert make("benchmark", benchmark="geneval", prompts=str(prompts), count=2).count == 8


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
        make("questions", **options)
