"""Loading a model: formats, a VAE in a file of its own, dtypes, and which files are rejected."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import tuna_jax
from tuna_jax import convert
from tuna_jax.conversion import image_vae_file
from tuna_jax.models import vae
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training.weights_file import load_model
from tuna_jax.utils import safetensors_files
from tuna_jax.utils.param_tree import flatten

pytestmark = pytest.mark.usefixtures("any_words")

QUICK = {"steps": 2, "size": (32, 32)}
DOG = "a dog on a blue background"


def _assert_equal(first, second) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_orbax_and_safetensors_are_one_model(tuna, tiny_model, tmp_path):
    torch_file, config_file = (
        tiny_model.parent / "theirs.safetensors",
        tiny_model.parent / "config.json",
    )
    arguments = ["from_torch", str(torch_file), f"{tmp_path}/o", "--config", str(config_file)]
    assert convert.main([*arguments, "--format", "orbax"]) == 0
    loaded = tuna_jax.Tuna.load(tmp_path / "o", tokenizer="emoji")
    _assert_equal(tuna.params, loaded.params)
    _assert_equal(tuna.vae_params, loaded.vae_params)
    assert loaded.config == tuna.config


def test_a_run_of_several_processes_may_have_an_index(tiny_run, tmp_path):
    values = tiny_run.experiment(tmp_path)
    params = flatten(tiny_run.parameters(values, 5))
    metadata = {"settings": json.dumps(values), "step": "5"}
    names, files = sorted(params), ("model-00001-of-00002", "model-00002-of-00002")
    weight_map = {name: f"{files[i % 2]}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        part = {name: params[name] for name in names if weight_map[name] == file}
        safetensors_files.write(tmp_path / "run" / file, part, metadata)
    index = {"weight_map": weight_map}
    (tmp_path / "run" / "model.safetensors.index.json").write_text(json.dumps(index))
    mesh = make_mesh(devices=jax.devices()[:1])
    for options in ({}, {"mesh": mesh}):
        _assert_equal(flatten(tuna_jax.Tuna.load(tmp_path / "run", **options).params), params)
    _assert_equal(flatten(load_model(tmp_path / "run")[0]), params)


def test_a_vae_may_have_a_file_of_its_own(tuna, tiny_model, tmp_path):
    torch_state = load_file(tiny_model.parent / "theirs.safetensors")
    network = {key: x for key, x in torch_state.items() if not key.startswith("vae.")}
    wan = {
        key.removeprefix("vae.model."): x for key, x in torch_state.items() if key not in network
    }
    save_file(network, tmp_path / "network.safetensors")
    save_file(wan, tmp_path / "wan.safetensors")
    config_file = str(tiny_model.parent / "config.json")
    source, model = f"{tmp_path}/network.safetensors", tmp_path / "model"
    assert convert.main(["from_torch", source, str(model), "--config", config_file]) == 0
    with pytest.raises(ValueError, match="--vae=FILE"):
        tuna_jax.Tuna.load(model, tokenizer="emoji")
    for path in (tmp_path / "wan.safetensors", tiny_model):
        loaded = tuna_jax.Tuna.load(model, vae=path, tokenizer="emoji")
        _assert_equal(tuna.vae_params, loaded.vae_params)
    with pytest.raises(ValueError, match=f"{model} has no VAE"):
        tuna_jax.Tuna.load(model, vae=model, tokenizer="emoji")
    with pytest.raises(FileNotFoundError, match="none"):
        tuna_jax.Tuna.load(model, vae=tmp_path / "none", tokenizer="emoji")


def test_a_vae_that_was_trained_on_images_decodes_clips(tuna, tiny_model, tmp_path):
    """`experiments/emoji/vae.py` writes such a VAE: its missing time taps are zeros."""
    config = tuna.config.vae
    params = vae.init(config, jax.random.key(3), image_only=True)
    path = tmp_path / "vae.safetensors"
    image_vae_file.export(path, config, params, (np.zeros(8, np.float32), np.ones(8, np.float32)))
    loaded = tuna_jax.Tuna.load(tiny_model, vae=path, tokenizer="emoji")
    clip = loaded.generate_video(DOG, frames=5, **QUICK)
    assert clip.shape == (1, 5, 32, 32, 3)
    with pytest.raises(ValueError, match="16 latent channels"):
        tuna_jax.Tuna.load(tiny_model, vae=image_vae_file.shipped_image_vae(), tokenizer="emoji")


def test_parameters_can_be_cast(tiny_model):
    model = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji", dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
    assert model.generate_image(DOG, **QUICK).shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        tuna_jax.Tuna.load(tiny_model, tokenizer="emoji", dtype="int8")


def test_a_file_that_is_not_a_model_is_named(tiny_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        tuna_jax.Tuna.load(tmp_path / "none")
    with pytest.raises(ValueError, match="--tokenizer="):
        tuna_jax.Tuna.load(tiny_model)
    with pytest.raises(ValueError, match=r"theirs\.safetensors"):
        tuna_jax.Tuna.load(tiny_model.parent / "theirs.safetensors")
    file = next(tiny_model.glob("*.safetensors"))
    tensors = load_file(file)
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    tensors.pop("language.norm.scale")
    save_file(tensors, tmp_path / "part.safetensors", metadata)
    with pytest.raises(ValueError, match=r"part\.safetensors[\s\S]*language\.norm"):
        tuna_jax.Tuna.load(tmp_path / "part.safetensors", tokenizer="emoji")
