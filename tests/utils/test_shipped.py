"""Names of what the package carries: models and experiment files."""

import pytest

from tuna_jax.cli import config_flags
from tuna_jax.utils import shipped


def test_a_model_is_found_by_its_name_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.model_path("emoji") == shipped.MODELS["emoji"]
    assert (shipped.model_path("emoji") / "model.safetensors").is_file()
    (tmp_path / "emoji").mkdir()
    assert shipped.model_path("emoji").resolve() == tmp_path / "emoji"
    assert str(shipped.model_path("runs/none")) == "runs/none"
    assert shipped.is_shipped(shipped.MODELS["emoji"]) and not shipped.is_shipped("emoji")


@pytest.mark.parametrize(
    "name", ["emoji/demo", "emoji/demo.py", "experiments/emoji/demo.py", "experiments/emoji/demo"]
)
def test_an_experiment_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = config_flags.read(name, ["--config.steps=7"])
    assert values["kind"] == "emoji" and values["steps"] == 7


def test_a_file_of_the_user_comes_first_and_takes_its_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "demo.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(arg): return ConfigDict({'mine': arg})\n"
    )
    assert config_flags.read("emoji/demo.py:x") == {"mine": "x"}
    assert config_flags.read("emoji/tuna_2:raster")["model"]["preset"] == "tuna_2_emoji"


@pytest.mark.parametrize("name", ["emoji/dmo", "experiments/emoji/dmo.py", "/emoji/demo", "../x"])
def test_an_unknown_experiment_is_an_error_that_lists_the_nearest(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="emoji/") as caught:
        config_flags.read(name)
    assert name in str(caught.value) and "--config" in str(caught.value)
