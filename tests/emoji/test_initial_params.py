"""Runs of the emoji world that start from another run or from a pre-trained encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.random_params import experiment, random_like
from tuna_jax.config import from_dict
from tuna_jax.conversion.encoder_file import Encoder, export_encoder, load_encoder
from tuna_jax.emoji import trainer
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.emoji.model_bundle import load_bundle
from tuna_jax.models import tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training import state, weights_file
from tuna_jax.training.checkpoints import Checkpoints
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.param_tree import flatten


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """The demo's experiment with a tiny model."""
    return experiment(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def encoder(values):
    """An encoder of the tiny model's size with random parameters, trained on latents of its VAE."""
    bundle = load_bundle(parse(EmojiExperiment, values))
    params = random_like(tuna.shapes(bundle.config)["representation"])
    return Encoder(bundle.config.representation, 8, params, bundle.latents_key, "contrastive")


@pytest.fixture(autouse=True)
def training(monkeypatch):
    """What training is called with; no data is made."""
    kept = {}
    monkeypatch.setattr(trainer, "groups", lambda *args, part: [])
    monkeypatch.setattr(trainer.task_streams, "alternate", lambda *args: [])
    monkeypatch.setattr(trainer.loader, "iterate", lambda *args, **kwargs: iter(()))
    return kept


@pytest.fixture
def initial(training):
    """`(values, workdir) -> parameters` that a run would start from; None: random ones."""

    def start(values, workdir):
        trainer.run(values, workdir, lambda *args, **kwargs: training.update(kwargs) or True)
        shapes = tuna.shapes(from_dict(values["model"]))
        shardings = param_sharding.shardings(shapes, make_mesh())
        make = training["initial_params"]
        return make and flatten(jax.tree.map(np.asarray, make(shapes, shardings)))

    return start


def same(ours, theirs):
    """The names of the parameters that are equal to the bit."""
    assert ours.keys() == theirs.keys()
    return {name for name in ours if np.array_equal(ours[name], theirs[name])}


def test_a_run_starts_from_another_run(values, initial, tmp_path):
    assert initial(values, tmp_path / "second") is None
    before = random_like(tuna.shapes(from_dict(values["model"])))
    weights_file.export_model(tmp_path / "first" / weights_file.MODEL_FILE, before, values, 7)
    started = initial(values | {"init_from": str(tmp_path / "first")}, tmp_path / "second")
    assert same(started, flatten(before)) == started.keys()


def test_an_encoder_starts_a_model_that_is_otherwise_as_usual(values, encoder, initial, tmp_path):
    values = values | {"model": values["model"] | {"design": "late_fusion"}, "seed": 5}
    file = export_encoder(tmp_path / "encoder.safetensors", encoder)
    started = initial(values | {"init_encoder": str(file)}, tmp_path / "run")
    make_usual = jax.jit(lambda: tuna.init(from_dict(values["model"]), state.keys(5)[0]))
    usual = flatten(make_usual())
    own = {f"representation.{name}": leaf for name, leaf in flatten(encoder.params).items()}
    assert same({name: started[name] for name in own}, own) == own.keys()
    assert same(started, usual) == {
        name for name in usual if name not in own or np.array_equal(usual[name], own[name])
    }
    assert not np.array_equal(started["representation.position"], usual["representation.position"])


def test_an_encoder_is_read_as_it_was_written(encoder, tmp_path):
    again = load_encoder(export_encoder(tmp_path / "encoder.safetensors", encoder))
    assert dataclasses.replace(again, params={}) == dataclasses.replace(encoder, params={})
    ours, theirs = flatten(encoder.params), flatten(again.params)
    assert same(ours, theirs) == ours.keys()
    assert again.bind()(jnp.ones((1, 1, 4, 4, 8))).shape == (1, 16, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"representation": {"width": 48, "heads": 3}}}, "representation.width 32"),
        ({"model": {"representation": {"heads": 1}}}, "representation.heads 2 in place of 1"),
        ({"model": {"design": "latent_only"}}, r"config\.model\.design.*latent_only"),
        ({"model": {"design": "decoupled"}}, "channels 8 in place of 768"),
        ({"latents": "0"}, r"another VAE than config\.vae"),
        ({"params": np.nan}, "NaN"),
    ],
)
def test_an_encoder_that_does_not_fit_is_an_error(
    values, encoder, training, tmp_path, change, message
):
    if "latents" in change:
        encoder = dataclasses.replace(encoder, latents="another")
    if "params" in change:
        bad = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), encoder.params)
        encoder = dataclasses.replace(encoder, params=bad)
    file = export_encoder(tmp_path / "encoder.safetensors", encoder)
    model = values["model"] | change.get("model", {})
    with pytest.raises(ValueError, match=message) as error:
        trainer.run(values | {"model": model, "init_encoder": str(file)}, tmp_path / "run")
    assert str(error.value).startswith("config.init_encoder: ")
    assert not training, "the error comes before data is encoded"


@pytest.mark.parametrize("key", ["init_from", "init_encoder"])
def test_a_missing_file_is_an_error_for_a_new_run_only(values, initial, tmp_path, key):
    missing = values | {key: str(tmp_path / "gone.safetensors")}
    with pytest.raises(FileNotFoundError, match=rf"config\.{key}: .*gone\.safetensors"):
        trainer.run(missing, tmp_path / "run")
    saved = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    saved.save(1, {"params": np.zeros(1)}, config=values)
    saved.close()
    with pytest.raises(FileNotFoundError, match="gone"):  # The run starts, and reads it only then.
        initial(missing, tmp_path / "run")


def test_other_files_are_errors(values, encoder, tmp_path):
    other = values | {"model": values["model"] | {"language": {"vocabulary": 641}}}
    params = random_like(tuna.shapes(from_dict(other["model"])))
    model = weights_file.export_model(tmp_path / weights_file.MODEL_FILE, params, other, 7)
    with pytest.raises(ValueError, match=r"config\.init_from: [^$]*language\.embedding"):
        trainer.run(values | {"init_from": str(model)}, tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"config\.init_encoder: .*is not a representation encoder"
    ):
        trainer.run(values | {"init_encoder": str(model)}, tmp_path / "run")
    with pytest.raises(ValueError, match=r"config\.init_encoder.*empty"):
        trainer.run(values | {"init_encoder": "a", "init_from": "b"}, tmp_path / "run")
    encoder = load_encoder(export_encoder(tmp_path / "encoder.safetensors", encoder))
    del encoder.params["position"]
    lacking = export_encoder(tmp_path / "lacking.safetensors", encoder)
    with pytest.raises(ValueError, match=r"config\.init_encoder: .*position has shape None"):
        trainer.run(values | {"init_encoder": str(lacking)}, tmp_path / "run")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"config\.init_encoder: .*damaged"):
        trainer.run(values | {"init_encoder": str(damaged)}, tmp_path / "run")
