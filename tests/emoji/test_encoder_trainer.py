"""Training of encoders by themselves: resumption, the exported file in a TUNA model, the probes, and errors."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tuna_jax.config import from_dict
from tuna_jax.conversion.checkpoint_source import open_parameters
from tuna_jax.conversion.encoder_file import load_encoder
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji import encoder_probe, encoder_trainer
from tuna_jax.emoji.encoder_probe import ProbeData
from tuna_jax.emoji.latent_pool import LatentPool
from tuna_jax.emoji.model_bundle import ModelBundle
from tuna_jax.emoji.world.hard.scenes import HardSceneSource
from tuna_jax.models import tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.trainers import initial_params
from tuna_jax.training.checkpoints import MismatchedCheckpointError
from tuna_jax.training.metrics import WALL_CLOCK, read
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.param_tree import flatten

OPTIMIZER = {"learning_rate": 1e-2, "warmup": 1, "ema": 0.9, "algorithm": "adamw"}
VALUES = {
    "kind": "encoder",
    "method": "masked",
    "model": {
        "preset": "tiny",
        "language": {"vocabulary": 640},
        "representation": {"layers": 1, "grid": 6},
    },
    "data": {"world": "hard", "size": 96, "vocabulary": "emoji_hard"},
    "steps": 4,
    "batch": 3,
    "optimizer": OPTIMIZER,
    "contrastive": {"width": 16, "layers": 1, "heads": 2, "mlp": 16, "embedding": 8},
    "log_every": 1,
    "checkpoint_every": 2,
}
LATENTS = np.random.default_rng(0).normal(size=(8, 1, 6, 6, 8)).astype(np.float32)
BUNDLE = ModelBundle(from_dict(VALUES["model"]), {}, Tokenizer("emoji_hard"), 96)


LABELS = {"name": np.arange(8, dtype=np.int32) % 2, "ground": np.arange(8, dtype=np.int32) // 4}
PROBE = ProbeData(LATENTS, np.array([14, 15, 20, 21]), LABELS, 4)


def train(workdir, **changes):
    values = VALUES | changes
    pool = LatentPool(HardSceneSource(), LATENTS, np.zeros_like(LATENTS))
    settings = parse(encoder_trainer.EncoderSettings, values)
    return encoder_trainer.train_encoder(values, settings, workdir, BUNDLE, pool, PROBE)


def trace(workdir):
    lines = read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run"))


def test_the_exported_encoder_starts_a_tuna_model(exported, tmp_path):
    stored = load_file(exported)
    encoder = load_encoder(exported)
    assert (encoder.method, encoder.latents) == ("masked", BUNDLE.latents_key)
    make = initial_params.with_encoder(
        str(exported), BUNDLE.config, tmp_path, seed=0, latents=BUNDLE.latents_key
    )
    shapes = tuna.shapes(BUNDLE.config)
    shardings = param_sharding.shardings(shapes, make_mesh())
    own = flatten(make(shapes, shardings)["representation"])
    assert own.keys() == stored.keys()
    for name, leaf in own.items():
        np.testing.assert_array_equal(leaf, stored[name])
    # It is the average of the parameters.
    for averaged in (True, False):
        _, saved = open_parameters(exported.parent, averaged=averaged)
        kernel = saved.read("representation.patch.kernel")
        assert np.array_equal(kernel, stored["patch.kernel"]) is averaged


def test_a_crashed_run_resumes_exactly(exported, tmp_path, monkeypatch):
    workdir = exported.parent
    batches = encoder_trainer.batches

    def failing(*args):
        for index, batch in enumerate(batches(*args)):
            if index == 3:
                raise OSError("the disk is gone")
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(encoder_trainer, "batches", failing)
        with pytest.raises(OSError, match="the disk is gone"):
            train(tmp_path)
    again = train(tmp_path)
    assert trace(tmp_path) == trace(workdir) and len(trace(workdir)) == 4
    ours, theirs = load_file(again), load_file(exported)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(MismatchedCheckpointError):
        train(tmp_path, method="contrastive")


def test_captions_are_learned_and_probes_are_written(tmp_path, capsys):
    exported = train(tmp_path, method="contrastive", steps=12, checkpoint_every=12)
    losses = [line["loss"] for line in trace(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]
    scores = json.loads((tmp_path / encoder_trainer.PROBE_FILE).read_text())
    assert list(scores) == ["contrastive", "random", "latents", "chance"]
    assert all(
        set(column) == {"name", "name_few", "name_pooled", "ground"} for column in scores.values()
    )
    printed = capsys.readouterr().out
    assert str(exported) in printed and "linear probe, 4 scenes" in printed
    # The random column is of the parameters before training.
    settings = parse(encoder_trainer.EncoderSettings, VALUES | {"method": "contrastive"})
    _, params = encoder_trainer.layers.split(encoder_trainer.make_module(settings, BUNDLE.config))
    trained = load_encoder(exported)
    initial = dataclasses.replace(trained, params=params["representation"])
    features = [
        encoder_trainer.encoder_features(encoder)(LATENTS) for encoder in (initial, trained)
    ]
    assert features[0].shape == (8, 36, 32)
    assert not np.allclose(*features, atol=1e-2)
    for column, tokens in zip(("random", "contrastive"), features, strict=True):
        assert encoder_probe.measure(PROBE, lambda _, x=tokens: x) == scores[column]


def test_batches_depend_on_the_step_and_captions_belong_to_scenes():
    settings = parse(encoder_trainer.EncoderSettings, VALUES | {"method": "contrastive"})
    source = HardSceneSource()
    pool = LatentPool(source, LATENTS, np.zeros_like(LATENTS))
    first, *_, last = encoder_trainer.batches(settings, pool, BUNDLE.tokenizer, 0)
    (again,) = encoder_trainer.batches(settings, pool, BUNDLE.tokenizer, 3)
    for name in ("latents", "tokens"):
        np.testing.assert_array_equal(last[name], again[name])
        assert not np.array_equal(first[name], again[name])
    assert again["tokens"].shape == (3, 40) and again["latents"].shape == (3, 1, 6, 6, 8)
    for latents, ids in zip(again["latents"], again["tokens"], strict=True):
        (row,) = np.flatnonzero((latents == LATENTS).all((1, 2, 3, 4)))
        text = BUNDLE.tokenizer.decode(ids[ids != BUNDLE.tokenizer.special.pad])
        names = [group.name for group in source[int(row)].groups]
        assert all(name[:-1] in text for name in names), (text, names)


def test_probe_scenes_have_an_object_in_the_middle():
    source = HardSceneSource("train", 5)
    scenes = encoder_probe.MiddleScenes(source)
    some = [scenes[index] for index in range(30)]
    assert all(any(4 in group.cells for group in scene.groups) for scene in some)
    assert scenes[7] == some[7] and len({str(scene) for scene in some}) == 30
    assert scenes.settings()["source"] == source.settings() != scenes.settings()
    assert encoder_probe.middle_tokens(6, 96).tolist() == [14, 15, 20, 21]
    # At 128 pixels a cell has 42 pixels and begins at pixel 43; tokens have 16.
    assert encoder_probe.middle_tokens(8, 128).tolist() == [27, 28, 35, 36]


def test_a_probe_finds_what_is_there():
    random = np.random.default_rng(0)
    names, grounds = random.integers(4, size=600), random.integers(3, size=600)
    names[:240] %= 2
    tokens = random.normal(size=(600, 36, 9)).astype(np.float32)
    tokens[:, [14, 15, 20, 21], :4] += 9 * np.eye(4)[names][:, None]
    tokens[:, 0, 4:7] += 99 * np.eye(3)[grounds]
    labels = {"name": names.astype(np.int32), "ground": grounds.astype(np.int32)}
    data = ProbeData(
        np.zeros((600, 1, 6, 6, 8), np.float32), np.array([14, 15, 20, 21]), labels, 400
    )
    scores = encoder_probe.measure(data, lambda latents: tokens)
    few = scores.pop("name_few")
    assert scores == {"name": 1.0, "name_pooled": pytest.approx(1, abs=0.05), "ground": 1.0}
    # Names that the first 240 scenes do not have are not learned from them.
    assert few == pytest.approx(np.mean(names[400:] < 2), abs=0.02)
    # Classifiers are measured on other scenes than they are trained on: noise has nothing to learn.
    noise = random.normal(size=(600, 36, 9)).astype(np.float32)
    nothing = encoder_probe.measure(data, lambda latents: noise)
    assert nothing["name"] < 0.5 and nothing["ground"] < 0.5
    chance = encoder_probe.chance(data)
    assert chance["name"] == np.mean(names[400:] == np.bincount(names[:400]).argmax())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "guess"}, r"config\.method.*guess"),
        ({"steps": 0}, r"config\.steps"),
        ({"optimizer": OPTIMIZER | {"ema": 0.0}}, r"config\.optimizer\.ema"),
        ({"optimizer": OPTIMIZER | {"warmup": 9}}, r"config\.optimizer\.warmup"),
        ({"model": {"preset": "tuna_2_emoji"}}, r"config\.model.*latent_only.*no VAE"),
        ({"model": {"preset": "emoji", "design": "decoupled"}}, r"config\.model.*decoupled"),
        ({"model": {"preset": "emoji"}, "data": {"world": "scenes"}}, r"config\.data\.world"),
    ],
)
def test_what_cannot_be_trained_is_an_error(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        encoder_trainer.run(VALUES | change, tmp_path)


def test_a_long_caption_is_an_error_that_names_its_length():
    with pytest.raises(ValueError, match=r"3 tokens.*config\.caption_length from 2"):
        encoder_trainer.padded([[1], [1, 2, 3]], 2, 0)
