"""Runs and a converted model of the version before load, generate, evaluate and resume (fixtures/version_0_1)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tuna_jax import Tuna, convert, evaluate, train
from tuna_jax.trainers import multitask
from tuna_jax.training.metrics import read
from tuna_jax.utils import old_names

OLD = Path(__file__).parent / "fixtures" / "version_0_1"
REFERENCE = json.loads((OLD / "reference.json").read_text())

# Its words are not those of the compact vocabulary, and its old names are reported.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the old files, in which commands run: the runs name their manifest relative to it."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    monkeypatch.chdir(folder)
    return folder


def experiment(name: str) -> dict:
    """The experiment of an old run, from the settings in its exported model: old kinds and keys."""
    from safetensors import safe_open

    with safe_open(OLD / f"{name}_finished.safetensors", framework="numpy") as file:
        return json.loads(file.metadata()["settings"])


@pytest.mark.parametrize("name", ["emoji_run", "multitask_run"])
def test_an_exported_model_generates_and_answers_as_before(name):
    model, expected = Tuna.load(OLD / f"{name}_finished.safetensors"), REFERENCE[name]
    assert list(model.size) == expected["size"] and model.template == expected["template"]
    assert model.samples.steps == expected["points"] - 1
    assert model.samples.guidance == expected["guidance"]
    images = model.generate_image(["a dog on a blue background"], seed=3, size=(64, 64))
    np.testing.assert_allclose(images.mean((0, 1, 2)), expected["picture_mean"], atol=0.05)
    image = np.asarray(Image.open(OLD / "files/0.png"))
    assert model.answer(image, "what is this?", max_new_tokens=6) == expected["answer"]


@pytest.mark.parametrize("name", ["emoji_run", "multitask_run"])
def test_a_checkpoint_loads(name):
    model = Tuna.load(OLD / name)
    assert model.template == REFERENCE[name]["template"]
    assert model.generate_image(["a dog"], size=(64, 64)).shape == (1, 64, 64, 3)


@pytest.mark.parametrize("name", ["emoji_run", "multitask_run"])
def test_a_killed_run_resumes_from_its_old_experiment_file(name, old):
    """The losses after the checkpoint, and the model at the end, are those of the old uninterrupted run."""
    values = experiment(name)
    assert values["kind"] in ("tuna", "mixture"), "the file has the old kind and the old keys"
    values.pop("mixture", None)  # The run added it; it is not part of the file.
    if name == "emoji_run":
        file = old / "experiment.py"
        file.write_text(
            "from ml_collections import ConfigDict\n\n"
            f"def get_config():\n    return ConfigDict({values!r})\n"
        )
        assert train.main([f"--config={file}", f"--workdir={old / name}"]) == 0
    else:  # Its streams were not sorted by name, as a ConfigDict sorts them.
        assert multitask.run(old_names.experiment(values), old / name)
    losses = {line["step"]: line["loss"] for line in read(old / name / "metrics.jsonl")}
    expected = json.loads((OLD / f"{name}_losses.json").read_text())
    assert sorted(losses) == list(range(1, 9))
    for step in range(5, 9):
        assert losses[step] == pytest.approx(expected[str(step)], rel=1e-4)
    resumed = load_file(old / name / "model.safetensors")
    finished = load_file(OLD / f"{name}_finished.safetensors")
    assert resumed.keys() == finished.keys()
    for key, value in finished.items():
        np.testing.assert_allclose(resumed[key], value, atol=2e-4, err_msg=key)


def test_a_converted_model_generates_and_goes_back(tmp_path):
    model = Tuna.load(OLD / "converted", tokenizer="emoji")
    assert model.template == "chat"
    assert model.generate_image(["a dog"], steps=1, size=(64, 64)).shape == (1, 64, 64, 3)
    back = tmp_path / "back.safetensors"
    assert convert.main(["to_torch", str(OLD / "converted"), str(back)]) == 0
    again = tmp_path / "again"
    config = tmp_path / "config.json"
    config.write_text(json.dumps(model.config.to_dict()))
    assert convert.main(["from_torch", str(back), str(again), f"--config={config}"]) == 0
    first, second = (
        load_file(folder / "model.safetensors") for folder in (OLD / "converted", again)
    )
    for key, value in first.items():
        np.testing.assert_array_equal(second[key], value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji_run", "multitask_run"])
def test_an_old_run_is_evaluated(name, old, capsys):
    source = old / f"{name}_finished.safetensors"
    (old / name).mkdir(exist_ok=True)
    shutil.copy(source, old / name / "model.safetensors")
    flags = [f"--workdir={old / name}", "--images=4", "--questions=4", "--batches=1"]
    assert evaluate.main(flags) == 0, capsys.readouterr().err
    assert (old / name / "report.html").stat().st_size > 1000
    assert (old / name / "summary.json").is_file()


@pytest.mark.slow
def test_an_old_sweep_file_measures_an_old_run(old, capsys):
    file = old / "sweep.py"
    file.write_text(
        "from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({'name': 'old', 'shown': 1,"
        " 'batch': 2, 'tasks': {'draw_single': {'count': 2}}, 'settings': {'points': (3,)}})\n"
    )
    assert evaluate.main([f"--sweep={file}", f"--workdir={old / 'emoji_run'}"]) == 0
    results = (old / "emoji_run/sweeps/old/results.jsonl").read_text()
    assert '"steps": 2' in results


def test_the_old_names_of_the_command_line_are_reported(capsys):
    with pytest.warns(FutureWarning) as reported:
        assert evaluate.main(["--workdir=nowhere", "--drawings=4", "--points=3"]) == 1
    texts = " ".join(str(warning.message) for warning in reported)
    assert "--images" in texts and "--steps=2" in texts
    assert "nowhere" in capsys.readouterr().err
