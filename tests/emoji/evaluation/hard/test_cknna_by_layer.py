"""CKNNA by layer: the values, the files, and references that do not fit."""

import csv
import dataclasses
import re

import jax
import numpy as np
import pytest

from tests.fixtures.random_params import experiment, random_like
from tuna_jax.config import from_dict, preset
from tuna_jax.conversion.encoder_file import Encoder, export_encoder
from tuna_jax.emoji.evaluation.hard import cknna_by_layer
from tuna_jax.emoji.model_bundle import load_trained
from tuna_jax.evaluation import layer_features
from tuna_jax.evaluation.metrics.cknna import cknna, prepare
from tuna_jax.models import tuna
from tuna_jax.training import weights_file

COUNT = 16


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny run of the demo's world."""
    folder = tmp_path_factory.mktemp("run")
    values = experiment(folder)
    params = random_like(tuna.shapes(from_dict(values["model"])))
    weights_file.export_model(folder / weights_file.MODEL_FILE, params, values, 7)
    return folder


def test_equal_features_are_1_and_noise_lowers_the_value():
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 3, 8))
    noise = random.normal(size=(60, 8))
    for layer in range(3):
        values = cknna_by_layer.by_layer(features, features[:, layer])
        assert values[layer] == pytest.approx(1.0, abs=1e-3) and len(values) == 3
        assert all(abs(value) < 0.3 for at, value in enumerate(values) if at != layer)
    mixed = [
        cknna_by_layer.by_layer(features, features[:, 1] + scale * noise)[1]
        for scale in (0.0, 0.3, 1.0, 3.0)
    ]
    assert all(first > second + 0.05 for first, second in zip(mixed, mixed[1:], strict=False))


def test_a_run_is_compared_with_an_encoder_and_the_vae(workdir, tmp_path, capsys):
    bundle, params, _ = load_trained(workdir)
    # The run's own encoder as the reference.
    encoder = Encoder(
        bundle.config.representation, 8, params["representation"], bundle.latents_key, "random"
    )
    file = export_encoder(tmp_path / "own" / "encoder.safetensors", encoder)
    cknna_by_layer.main(
        [f"--workdir={workdir}", f"--reference={file}", "--reference=vae", f"--out={tmp_path}/out"]
        + [f"--count={COUNT}", "--neighbours=5"]
    )
    with open(tmp_path / "out" / "cknna_by_layer.csv") as text:
        rows = list(csv.DictReader(text))
    layers = layer_features.names(bundle.config)
    assert [(row["part"], int(row["layer"])) for row in rows] == [*layers, *layers]
    assert [row["reference"] for row in rows] == ["own/encoder"] * 5 + ["vae"] * 5
    assert {(row["neighbours"], row["images"]) for row in rows} == {("5", str(COUNT))}
    assert (tmp_path / "out" / "cknna_by_layer.png").read_bytes().startswith(b"\x89PNG")
    assert "own/encoder" in capsys.readouterr().out

    settings = cknna_by_layer.parse(cknna_by_layer.EmojiExperiment, load_trained(workdir)[2])
    images = cknna_by_layer.scene_images(settings.data, COUNT)
    assert images.shape == (COUNT, 64, 64, 3) and len(np.unique(images, axis=0)) == COUNT
    latents = bundle.encode(images)[0]
    features = layer_features.layer_features(bundle.model(params), images)
    tokens = np.asarray(encoder.bind()(jax.numpy.asarray(latents)))
    for row in rows:
        reference = tokens.mean(1) if row["reference"] != "vae" else latents.mean((1, 2, 3))
        own = features[:, layers.index((row["part"], int(row["layer"])))]
        expected = cknna(prepare(own), prepare(reference), 5)
        assert float(row["cknna"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": "another"}, "another VAE.*--vae"),
        (None, "no encoder at"),
    ],
)
def test_a_reference_that_does_not_fit_is_an_error(workdir, tmp_path, capsys, change, message):
    bundle, params, _ = load_trained(workdir)
    file = tmp_path / "encoder.safetensors"
    if change:
        encoder = Encoder(bundle.config.representation, 8, params["representation"])
        export_encoder(file, dataclasses.replace(encoder, **change))
    with pytest.raises(SystemExit):
        cknna_by_layer.main(
            [f"--workdir={workdir}", f"--reference={file}", f"--out={tmp_path}", "--count=4"]
        )
    assert re.search(message, capsys.readouterr().err)


def test_a_model_on_pixels_takes_the_vae_of_its_references(workdir):
    bundle = load_trained(workdir)[0]
    on_pixels = dataclasses.replace(bundle, config=preset("tuna_2_tiny"), vae_params={})
    with pytest.raises(ValueError, match="--vae"):
        cknna_by_layer.with_vae(on_pixels, "")
    named = cknna_by_layer.with_vae(on_pixels, "emoji_vae")
    assert named.config.vae.latent_channels == 16 and named.vae_params
