"""Runs of adapters: what they store, loading, resuming after SIGKILL, and errors that name what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.fixtures import random_params
from tuna_jax.adapters import lora
from tuna_jax.config import from_dict
from tuna_jax.conversion import adapter_source, checkpoint_source
from tuna_jax.emoji import model_bundle, trainer
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.inference.components import read_parameters
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.models import tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training import metrics, weights_file
from tuna_jax.training.checkpoints import MismatchedCheckpointError
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.param_tree import flatten, unflatten

ROOT = Path(__file__).parents[2]
STEPS = 6
PROMPT = "a dog on a blue background"

KILLED = """
import json, os, signal, sys
from tuna_jax.emoji import trainer
from tuna_jax.training import loop

class Killing:
    def __init__(self, iterator):
        self.iterator, self.taken = iterator, 0
    def __next__(self):
        self.taken += 1
        if self.taken == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return next(self.iterator)
    def __getattr__(self, name):
        return getattr(self.iterator, name)

def killing(settings, config, workdir, iterator, **more):
    return loop.train(settings, config, workdir, Killing(iterator), **more)

trainer.run(json.loads(sys.argv[1]), sys.argv[2], killing)
"""


def train(values, workdir):
    return trainer.train(values, parse(EmojiExperiment, values), workdir)


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """The tiny emoji experiment as an adapter of a random model."""
    folder = tmp_path_factory.mktemp("base")
    values = random_params.experiment(folder)
    config = from_dict(values["model"])
    params = random_params.random_like(tuna.shapes(config))
    weights_file.export_model(folder / "model.safetensors", params, values, 7)
    values["samples"] |= {"steps": 2, "count": 2}
    values["data"] |= {"scenes": 64, "generation_rows": 2, "understanding_rows": 2}
    values["optimizer"] |= {
        "warmup": 1,
        "cosine_tail": 0.0,
        "learning_rate": 1e-2,
        "algorithm": "adamw",
    }
    return values | {
        "steps": STEPS,
        "log_every": 1,
        "checkpoint_every": 2,
        "sample_every": STEPS,
        "init_from": str(folder / "model.safetensors"),
        "lora": {
            "targets": ("all-linear",),
            "rank": 2,
            "alpha": 4.0,
            "dropout": 0.1,
            "trained": ("language.embedding",),
        },
    }


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora") / "run"
    assert train(values, workdir)
    return workdir


def arrays(state):
    return {name: state.read(name) for name in state.entries}


def test_a_run_stores_only_what_was_trained(values, finished) -> None:
    assert not (finished / weights_file.MODEL_FILE).exists()
    adapter = checkpoint_source.open_adapter(finished)
    names = set(adapter.state.entries)
    layers = lora.layers_of(adapter.state.entries)
    assert names == {f"{p}{end}" for p in layers for end in (lora.A, lora.B)} | {
        "language.embedding"
    }
    assert (adapter.record.rank, adapter.record.alpha) == (2, 4.0)
    assert adapter.record.base == values["init_from"]
    base = checkpoint_source.open_parameters(values["init_from"])[1]
    assert adapter.record.digest == adapter_source.digest_of(base)
    # A checkpoint holds it three times over, next to the average; a whole model would be many times as large.
    newest = sorted((finished / "checkpoints").iterdir())[-1]
    stored = {name.split(".", 1)[1] for name in _leaves(newest) if name.startswith("params.")}
    assert stored == names
    assert (finished / "samples" / f"{STEPS:06d}.png").exists(), "sampled with the unmerged adapter"
    losses = [line["loss"] for line in metrics.read(finished / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def _leaves(folder):
    from tuna_jax.training.checkpoints import open_arrays

    return open_arrays(folder).leaves


def test_a_run_is_loaded_with_its_model(values, finished) -> None:
    """By the workdir, the file, a checkpoint, and as an adapter of the model; sharded too."""
    base = flatten_state(values["init_from"])
    adapter = checkpoint_source.open_adapter(finished)
    expected = flatten(lora.merge(unflatten(base), unflatten(adapter.read()), adapter.record.scale))
    loaded = Tuna.load(finished)
    assert set(flatten(loaded.params)) == set(expected)
    for name, leaf in flatten(loaded.params).items():
        np.testing.assert_allclose(leaf, expected[name], atol=1e-6, err_msg=name)
    changed = [n for n, leaf in base.items() if not np.array_equal(leaf, expected[n])]
    assert set(changed) == {f"{p}.kernel" for p in lora.layers_of(adapter.state.entries)} | {
        "language.embedding"
    }
    image = loaded.generate_image([PROMPT], seed=1)
    for other in (
        Tuna.load(finished / "adapter.safetensors"),
        Tuna.load(finished / "checkpoints"),
        Tuna.load(values["init_from"], adapter=finished),
        Tuna.load(finished, mesh=make_mesh(devices=jax.devices()[:1])),
        Tuna.load(values["init_from"], adapter=finished, mesh=make_mesh(devices=jax.devices()[:1])),
    ):
        again = other.generate_image([PROMPT], seed=1)
        assert np.abs(again.astype(int) - image).max() <= 1
    before = Tuna.load(values["init_from"]).generate_image([PROMPT], seed=1)
    assert np.abs(before.astype(int) - image).max() > 1
    bundle, params, stored = model_bundle.load_trained(finished)
    assert np.abs(bundle.generate(params, [PROMPT], seed=1).astype(int) - image).max() <= 1
    assert stored["lora"]["rank"] == 2


def flatten_state(path):
    return arrays(checkpoint_source.open_parameters(path)[1])


def test_a_run_that_was_killed_resumes_to_the_bit(values, finished, tmp_path) -> None:
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, json.dumps(values), str(workdir)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (workdir / weights_file.ADAPTER_FILE).exists()
    assert train(values, workdir)

    def trace(folder):
        lines = metrics.read(folder / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k not in metrics.WALL_CLOCK} for line in lines]

    assert trace(workdir) == trace(finished)
    first, second = (arrays(checkpoint_source.open_adapter(f).state) for f in (finished, workdir))
    for name, leaf in first.items():
        np.testing.assert_array_equal(second[name], leaf, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rank": 3}, r"config\.lora\.rank is 3.*started with 2"),
        ({"alpha": 1.0}, r"config\.lora\.alpha is 1\.0.*started with 4\.0"),
        ({"targets": ("connector",)}, r"config\.lora\.targets.*'connector'.*'all-linear'"),
        (None, r"config\.lora\.targets is \(\).*'all-linear'"),
    ],
)
def test_a_run_is_not_resumed_with_another_adapter(values, finished, changes, named) -> None:
    other = dict(values)
    if changes is None:
        del other["lora"]
    else:
        other["lora"] = values["lora"] | changes
    with pytest.raises(MismatchedCheckpointError, match=named) as error:
        train(other, finished)
    assert str(finished) in str(error.value)


def other_base(values, folder):
    config = from_dict(values["model"])
    params = random_params.random_like(tuna.shapes(config), seed=9)
    return weights_file.export_model(folder / "other.safetensors", params, values, 7)


def test_an_adapter_is_not_added_to_another_model(values, finished, tmp_path) -> None:
    other = other_base(values, tmp_path)
    digest = checkpoint_source.open_adapter(finished).record.digest
    both = rf"{finished}.*{values['init_from']}.*{digest}.*{other}"
    for mesh in (None, make_mesh(devices=jax.devices()[:1])):
        with pytest.raises(ValueError, match=both):
            Tuna.load(other, adapter=finished, mesh=mesh)
    with pytest.raises(MismatchedCheckpointError, match=rf"{values['init_from']}.*{other}"):
        train(values | {"init_from": str(other), "steps": STEPS + 1}, finished)
    with pytest.raises(ValueError, match=rf"{finished}.*emoji.*do not fit"):
        Tuna.load("emoji", adapter=finished)
    with pytest.raises(ValueError, match=r"other\.safetensors is a whole model"):
        Tuna.load(values["init_from"], adapter=other)


def test_a_missing_model_is_named_with_the_way_out(values, finished, tmp_path) -> None:
    moved = tmp_path / "model.safetensors"
    shutil.copy(values["init_from"], moved)
    copy = tmp_path / "adapter" / weights_file.ADAPTER_FILE
    copy.parent.mkdir()
    settings = {**checkpoint_source.open_adapter(finished).settings}
    settings["run_record"]["adapter"]["base"] = "runs/gone"
    trained = unflatten(arrays(checkpoint_source.open_adapter(finished).state))
    weights_file.export_model(copy, trained, settings, STEPS)
    with pytest.raises(ValueError, match=r"runs/gone.*--model=PATH.*--adapter="):
        Tuna.load(copy.parent)
    assert Tuna.load(moved, adapter=copy.parent).params


def test_a_run_without_a_fitting_model_is_an_error_before_data_is_encoded(values, tmp_path) -> None:
    for changes, named in (
        ({"init_from": ""}, r"config\.init_from names none"),
        ({"init_from": str(tmp_path / "gone")}, r"config\.init_from.*gone"),
        ({"init_from": "emoji"}, r"config\.init_from.*emoji"),
        ({"lora": {"targets": ("conector",)}}, r"'conector' matches no layer.*connector\.up"),
        ({"lora": {"targets": ("connector",), "rank": 0}}, r"config\.lora\.rank is 0"),
        ({"lora": {"rank": 4}}, r"config\.lora\.targets"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=named):
            train(values | changes, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_an_adapter_of_a_run_with_an_adapter(values, finished, tmp_path) -> None:
    """The second one's model is the first one with its model; both are checked."""
    second = values | {"init_from": str(finished), "steps": 2, "sample_every": 0}
    assert train(second, tmp_path / "second")
    adapter = checkpoint_source.open_adapter(tmp_path / "second")
    merged = flatten_state(finished)
    expected = flatten(
        lora.merge(unflatten(merged), unflatten(adapter.read()), adapter.record.scale)
    )
    loaded = flatten(Tuna.load(tmp_path / "second").params)
    config = from_dict(values["model"])
    mesh = make_mesh(devices=jax.devices()[:1])
    shapes = tuna.shapes(config)
    sharded = flatten(
        read_parameters(tmp_path / "second", shapes, param_sharding.shardings(shapes, mesh))
    )
    for name, leaf in expected.items():
        np.testing.assert_allclose(loaded[name], leaf, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(sharded[name], leaf, atol=1e-6, err_msg=name)
