"""Parameters as Orbax checkpoints, with the commands."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tuna_jax import convert
from tuna_jax.config import preset
from tuna_jax.conversion import checkpoint_source, convert_checkpoint, weight_map
from tuna_jax.conversion.readers import SourceError
from tuna_jax.models import tuna
from tuna_jax.training import state, weights_file
from tuna_jax.training.checkpoints import Checkpoints, DamagedCheckpointError

TINY = preset("tiny")
SMALL = dataclasses.replace(TINY, language=dataclasses.replace(TINY.language, vocabulary=256))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(folder with weights and config, official state dict in bfloat16)."""
    folder = tmp_path_factory.mktemp("theirs")
    random = np.random.default_rng(0)
    shapes = weight_map.torch_shapes(SMALL, convert_checkpoint.parameter_shapes(SMALL))
    numbers = {
        key: random.normal(size=shape).astype(convert_checkpoint.DTYPES["bfloat16"])
        for key, shape in shapes.items()
    }
    for key, source in weight_map.aliases(SMALL).items():
        numbers[key] = numbers[source]
    save_file(numbers, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SMALL.to_dict()))
    return folder, numbers


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours") / "orbax"
    source, config = str(theirs[0] / "model.safetensors"), str(theirs[0] / "config.json")
    arguments = ["from_torch", source, str(folder), "--config", config, "--format", "orbax"]
    assert convert.main(arguments) == 0
    return folder, arguments


def test_a_round_trip_keeps_every_bit(theirs, ours, tmp_path):
    assert convert.main(["to_torch", str(ours[0]), f"{tmp_path}/again.safetensors"]) == 0
    tensors = load_file(tmp_path / "again.safetensors")
    assert set(tensors) == set(theirs[1])
    for key, tensor in theirs[1].items():
        assert tensors[key].dtype == tensor.dtype
        assert tensors[key].tobytes() == tensor.tobytes(), key


def test_an_existing_checkpoint_is_not_overwritten(ours, capsys):
    assert convert.main(ours[1]) == 1
    assert str(ours[0]) in capsys.readouterr().err
    assert checkpoint_source.open_parameters(ours[0])[0] == SMALL


def test_inspect_describes_it(ours, capsys):
    assert convert.main(["inspect", str(ours[0])]) == 0
    output = capsys.readouterr().out
    assert "parameters of tuna_jax" in output
    assert "bfloat16" in output
    assert "its own configuration: no tensor is missing" in output


def test_averaged_parameters_of_a_run_are_read(tmp_path):
    """From the newest checkpoint of a workdir, which has no VAE."""
    import jax
    import optax

    run = state.initial(lambda key: tuna.init(TINY, key), optax.sgd(1.0), {}, seed=0, average=True)
    run = run._replace(ema=jax.tree.map(lambda x: x + 1, run.params))
    saved = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (5, 7):
        saved.save(step, run, config={"model": {"preset": "tiny"}})
    saved.close()
    assert convert.main(["to_torch", str(tmp_path), f"{tmp_path}/out.safetensors"]) == 0
    tensors = load_file(tmp_path / "out.safetensors")
    np.testing.assert_array_equal(
        tensors["siglip_proj.1.weight"], np.asarray(run.averaged["connector"]["up"]["kernel"]).T
    )
    assert not any(key.startswith("vae.") for key in tensors)
    # The exported model has the same parameters.
    weights_file.export_model(
        tmp_path / "m" / weights_file.MODEL_FILE, run.averaged, {"model": {"preset": "tiny"}}, 7
    )
    assert convert.main(["to_torch", f"{tmp_path}/m", f"{tmp_path}/more.safetensors"]) == 0
    assert (tmp_path / "more.safetensors").read_bytes() == (
        tmp_path / "out.safetensors"
    ).read_bytes()


def test_a_damaged_checkpoint_is_an_error(tmp_path):
    saved = Checkpoints(tmp_path, keep=2)
    saved.save(3, {"params": {"a": np.zeros(3)}}, config={})
    saved.close()
    with pytest.raises(SourceError, match="00000003.*config"):
        checkpoint_source.open_parameters(tmp_path)
    for file in (tmp_path / "00000003" / "state").glob("_METADATA"):
        file.unlink()
    with pytest.raises(DamagedCheckpointError, match="00000003"):
        checkpoint_source.open_parameters(tmp_path)
