"""Whole checkpoints to our format and back, file to file, with the command."""

import dataclasses
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tuna_jax import convert
from tuna_jax.config import TunaConfig, from_dict, preset
from tuna_jax.conversion import convert_checkpoint, detect_format, weight_map
from tuna_jax.conversion.readers import SourceError, open_files
from tuna_jax.parity import golden_set
from tuna_jax.utils.param_tree import flatten

PUBLIC = Path(__file__).parents[1] / "goldens" / "public"
TINY = preset("tiny")
UNTIED = dataclasses.replace(TINY, language=dataclasses.replace(TINY.language, tied=False))


def random_state(config: TunaConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    """An official state dict of random bits, including NaN."""
    random = np.random.default_rng(0)
    to = convert_checkpoint.DTYPES[dtype]
    state = {}
    for key, shape in weight_map.torch_shapes(
        config, convert_checkpoint.parameter_shapes(config)
    ).items():
        count = int(np.prod(shape)) * to.itemsize
        state[key] = random.integers(0, 256, count, np.uint8).view(to).reshape(shape)
    for key, source in weight_map.aliases(config).items():
        state[key] = state[source]
    return state


def config_file(config: TunaConfig, folder: Path) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return str(path)


def assert_equal(tensors: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(tensors) == set(expected)
    for key, tensor in expected.items():
        assert tensors[key].dtype == tensor.dtype, key
        assert tensors[key].shape == tensor.shape, key
        assert tensors[key].tobytes() == tensor.tobytes(), key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
def test_a_round_trip_keeps_every_bit(tmp_path, config, dtype):
    state = random_state(config, dtype)
    save_file(state, tmp_path / "theirs.safetensors")
    arguments = ["from_torch", f"{tmp_path}/theirs.safetensors", f"{tmp_path}/ours"]
    arguments += ["--config", config_file(config, tmp_path), "--shard_gb", "1e-4"]
    assert convert.main(arguments) == 0
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 5
    carried, ours = convert_checkpoint.open_parameters(tmp_path / "ours")
    assert carried == config
    assert {entry.dtype for entry in ours.entries.values()} == {convert_checkpoint.DTYPES[dtype]}
    assert convert.main(["to_torch", f"{tmp_path}/ours", f"{tmp_path}/again.safetensors"]) == 0
    assert_equal(load_file(tmp_path / "again.safetensors"), state)


def test_mixed_dtypes_are_kept(tmp_path):
    state = random_state(TINY)
    for key in state:
        if key.startswith("vision_model."):
            state[key] = state[key].astype(ml_dtypes.bfloat16)
    save_file(state, tmp_path / "theirs.safetensors")
    convert_checkpoint.to_ours(
        TINY,
        open_files(tmp_path / "theirs.safetensors"),
        convert_checkpoint.parameters_writer(tmp_path / "ours", TINY),
    )
    convert.main(["to_torch", f"{tmp_path}/ours", f"{tmp_path}/again"])
    assert_equal(load_file(tmp_path / "again" / "model.safetensors"), state)


def test_tensors_are_cast_on_request(tmp_path, capsys):
    state = random_state(TINY)
    state = {key: np.nan_to_num(value, posinf=0, neginf=0) for key, value in state.items()}
    key = "tuna.model.layers.0.mlp.up_proj.weight"
    state[key] = state[key].astype(np.float16)
    save_file(state, tmp_path / "theirs.safetensors")
    arguments = ["from_torch", f"{tmp_path}/theirs.safetensors", f"{tmp_path}/ours.safetensors"]
    arguments += ["--config", config_file(TINY, tmp_path)]
    assert convert.main(arguments) == 1
    error = capsys.readouterr().err
    assert "--dtype" in error
    assert "tuna.model.layers.{}.mlp.up_proj.weight (float16, float32)" in error
    assert not (tmp_path / "ours.safetensors").exists()
    assert convert.main([*arguments, "--dtype", "bfloat16"]) == 0
    tensors = load_file(tmp_path / "ours.safetensors")
    assert {tensor.dtype.name for tensor in tensors.values()} == {"bfloat16"}
    key = "siglip_proj.1.weight"
    np.testing.assert_array_equal(
        tensors["connector.up.kernel"], state[key].T.astype(ml_dtypes.bfloat16)
    )


def test_layers_are_stacked_in_their_order(tmp_path):
    state = random_state(TINY)
    save_file(state, tmp_path / "theirs.safetensors")
    convert_checkpoint.to_ours(
        TINY,
        open_files(tmp_path / "theirs.safetensors"),
        convert_checkpoint.parameters_writer(tmp_path / "ours.safetensors", TINY),
    )
    tensors = load_file(tmp_path / "ours.safetensors")
    for layer in range(TINY.language.layers):
        theirs = state[f"tuna.model.layers.{layer}.mlp.down_proj.weight"].T
        assert tensors["language.layers.mlp.down.kernel"][layer].tobytes() == theirs.tobytes()


@pytest.mark.parametrize("rows", [3, 64, 700])
def test_the_striped_copy_is_contiguous_and_equal(rows):
    matrix = np.random.default_rng(0).integers(0, 9, (1500, rows), np.uint16).T
    copy = convert_checkpoint.contiguous(matrix)
    assert copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, matrix)


def test_the_state_dict_of_the_golden_set_makes_a_round_trip(tmp_path):
    arguments = [str(PUBLIC / "model.safetensors"), str(PUBLIC / "vae.safetensors")]
    config = ["--config", str(PUBLIC / "state_dict.json")]
    assert convert.main(["from_torch", *arguments, f"{tmp_path}/ours", *config]) == 0
    public = golden_set.load(PUBLIC)
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    assert_equal(
        tensors, jax.tree.map(np.asarray, flatten(public.params | {"vae": public.vae_params}))
    )
    assert convert.main(["to_torch", f"{tmp_path}/ours", f"{tmp_path}/again.safetensors"]) == 0
    vae = load_file(PUBLIC / "vae.safetensors")
    state = load_file(PUBLIC / "model.safetensors") | {f"vae.model.{k}": v for k, v in vae.items()}
    assert_equal(load_file(tmp_path / "again.safetensors"), state)


def test_the_vae_may_be_absent_and_buffers_present(tmp_path):
    state = {k: v for k, v in random_state(TINY).items() if not k.startswith("vae.")}
    extra = {"vision_model.embeddings.position_ids": np.arange(16)[None]}
    save_file(state | extra, tmp_path / "theirs.safetensors")
    config = ["--config", config_file(TINY, tmp_path)]
    source = f"{tmp_path}/theirs.safetensors"
    assert convert.main(["from_torch", source, f"{tmp_path}/ours", *config]) == 0
    assert convert.main(["to_torch", f"{tmp_path}/ours", f"{tmp_path}/again.safetensors"]) == 0
    assert_equal(load_file(tmp_path / "again.safetensors"), state)


def test_all_mismatches_are_listed_and_nothing_is_written(tmp_path, capsys):
    state = random_state(TINY)
    del state["time_embed.mlp.0.bias"], state["vae.model.conv1.bias"]
    state["foreign.weight"] = np.zeros(2, np.float32)
    state["siglip_proj.0.weight"] = np.zeros(3, np.float32)
    save_file(state, tmp_path / "theirs.safetensors")
    before = (tmp_path / "theirs.safetensors").read_bytes()
    config = config_file(TINY, tmp_path)
    arguments = ["from_torch", f"{tmp_path}/theirs.safetensors", f"{tmp_path}/ours"]
    assert convert.main([*arguments, "--config", config]) == 1
    error = capsys.readouterr().err
    for text in (
        "missing: time_embed.mlp.0.bias [64]",
        "missing: vae.model.conv1.bias",
        "unexpected: foreign.weight [2]",
        "wrong shape: siglip_proj.0.weight is [3]",
    ):
        assert text in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "theirs.safetensors"]
    assert (tmp_path / "theirs.safetensors").read_bytes() == before


def test_a_wrong_preset_is_an_error_that_lists_differences(tmp_path, capsys):
    save_file(random_state(TINY), tmp_path / "theirs.safetensors")
    arguments = ["from_torch", f"{tmp_path}/theirs.safetensors", f"{tmp_path}/ours"]
    assert convert.main([*arguments, "--preset", "tuna_7b"]) == 1
    error = capsys.readouterr().err
    assert "missing: tuna.lm_head.weight" not in error or "wrong shape" in error
    assert "tuna.model.embed_tokens.weight is [512, 64], the model requires [152064" not in error
    assert "wrong shape: tuna.model.embed_tokens.weight is [512, 64]" in error
    assert convert.main([*arguments, "--preset", "tuna_8b"]) == 1
    assert "'tuna_8b'" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_sources_of_an_unknown_layout_are_errors(tmp_path):
    save_file({"weight": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=r"x\.safetensors.*weight"):
        detect_format.open_official([tmp_path / "x.safetensors"])
    with pytest.raises(SourceError, match=r"x\.safetensors.*config"):
        convert_checkpoint.open_parameters(tmp_path / "x.safetensors")


def test_config_files_of_both_kinds(tmp_path):
    assert detect_format.read_config(config_file(UNTIED, tmp_path)) == UNTIED
    assert detect_format.read_config(PUBLIC / "state_dict.json") == golden_set.load(PUBLIC).config
    (tmp_path / "c.json").write_text('{"preset": "tiny", "language": {"widht": 3}}')
    with pytest.raises(ValueError, match=r"model\.language\.widht.*width"):
        detect_format.read_config(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(SourceError, match=r"c\.json"):
        detect_format.read_config(tmp_path / "c.json")
    with pytest.raises(SourceError, match=r"none\.json"):
        detect_format.read_config(tmp_path / "none.json")


UNCHECKED = ["--no-check_weights"]  # Random bits are NaN here and there.


def test_inspect_describes_a_checkpoint(tmp_path, capsys):
    state = random_state(TINY, "bfloat16")
    save_file(state, tmp_path / "theirs.safetensors")
    assert convert.main(["inspect", f"{tmp_path}/theirs.safetensors", *UNCHECKED]) == 0
    output = capsys.readouterr().out
    assert "an official TUNA state dict, in 1 file" in output
    assert "tiny: no tensor is missing" in output
    lines = {line.split("  ")[0]: line.split() for line in output.splitlines() if line}
    size = sum(v.size for k, v in state.items() if k.startswith("vae.model."))
    assert lines["VAE"][2] == f"{size:,}" and lines["VAE"][-1] == "bfloat16"
    assert lines["all"][1] == str(len(state))
    del state["diffusion_head_b.linear.bias"]
    save_file(state, tmp_path / "theirs.safetensors")
    assert convert.main(["inspect", f"{tmp_path}/theirs.safetensors", "--preset", "tiny"]) == 1
    assert "missing: diffusion_head_b.linear.bias [8]" in capsys.readouterr().out


def test_inspect_describes_our_files_and_unknown_layouts(tmp_path, capsys):
    save_file(random_state(TINY), tmp_path / "theirs.safetensors")
    convert_checkpoint.to_ours(
        TINY,
        open_files(tmp_path / "theirs.safetensors"),
        convert_checkpoint.parameters_writer(tmp_path / "ours", TINY),
    )
    assert convert.main(["inspect", f"{tmp_path}/ours", *UNCHECKED]) == 0
    output = capsys.readouterr().out
    assert "parameters of tuna_jax" in output
    assert "its own configuration: no tensor is missing" in output
    save_file({"weight": np.zeros(3)}, tmp_path / "x.safetensors")
    assert convert.main(["inspect", f"{tmp_path}/x.safetensors"]) == 1
    output = capsys.readouterr().out
    assert "unknown layout" in output and "other" in output
    vae = {k.removeprefix("vae.model."): v for k, v in random_state(TINY).items() if "vae." in k}
    save_file(vae, tmp_path / "vae.safetensors")
    assert convert.main(["inspect", f"{tmp_path}/vae.safetensors", *UNCHECKED]) == 0
    assert "a Wan VAE" in capsys.readouterr().out


def test_a_config_survives_json(tmp_path):
    for name in ("tiny", "emoji", "tuna_smol", "tuna_1p5b", "tuna_7b"):
        stored = json.loads(json.dumps(preset(name).to_dict()))
        assert from_dict({"preset": "tiny"} | stored) == preset(name)
