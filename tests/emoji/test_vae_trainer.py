"""Training of the image VAE: exact resumption, the exported file, and the loss."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tuna_jax.conversion import image_vae_file
from tuna_jax.emoji.vae_trainer import (
    VAESettings,
    prefetch,
    reconstruction_loss,
    train_vae,
)
from tuna_jax.models import vae
from tuna_jax.training import metrics
from tuna_jax.training.optimizer import OptimizerSettings

SETTINGS = VAESettings(
    preset="tiny",
    encoder_width=4,
    decoder_width=4,
    steps=30,
    batch=4,
    kl=1e-3,
    optimizer=OptimizerSettings(
        learning_rate=5e-3, warmup=2, cosine_tail=0.2, b2=0.99, weight_decay=0.0, ema=0.8
    ),
    log_every=3,
    evaluate_every=15,
    checkpoint_every=10,
    held_out=8,
)


class Pictures:
    """Images of 16 px by index: a plain ground with a square."""

    def __init__(self, seed):
        self.seed = seed

    def __getitem__(self, index):
        random = np.random.default_rng((self.seed, index))
        picture = np.ones((16, 16, 3), np.float32) * random.uniform(-1, 1, 3).astype(np.float32)
        x, y = random.integers(0, 8, 2)
        picture[y : y + 8, x : x + 8] = random.uniform(-1, 1, 3)
        return picture


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("vae")
    return workdir, train_vae(SETTINGS, workdir, Pictures(0), Pictures(1))


def trace(workdir):
    lines = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in metrics.WALL_CLOCK} for line in lines]


def test_training_improves_held_out_images_and_exports(run):
    workdir, exported = run
    lines = [line for line in trace(workdir) if "psnr_db" in line]
    assert [line["step"] for line in lines] == [15, 30]
    assert lines[-1]["psnr_db"] > 8.0, "plain grey gives about 5 dB"
    assert lines[-1]["psnr_noisy_db"] <= lines[-1]["psnr_db"] + 0.5
    assert exported == workdir / SETTINGS.export


def test_a_crashed_run_resumes_exactly(run, tmp_path):
    """Images fail at step 17, and the run resumes from step 10 with the log and weights of an uninterrupted run."""
    workdir, exported = run

    class Failing(Pictures):
        def __getitem__(self, index):
            if index >= 16 * SETTINGS.batch:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="the disk is gone"):
        train_vae(SETTINGS, tmp_path, Failing(0), Pictures(1))
    train_vae(SETTINGS, tmp_path, Pictures(0), Pictures(1))
    assert trace(tmp_path) == trace(workdir)
    a, b = load_file(exported), load_file(tmp_path / SETTINGS.export)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_the_exported_file_has_the_same_model_with_normalised_latents(run):
    workdir, exported = run
    config, params = image_vae_file.load_image_vae(exported)
    assert config.latent_stats == "custom" and config.consistent_posterior
    pictures = np.stack([Pictures(1)[index] for index in range(8, 72)])
    mean, std = image_vae_file.latent_statistics(config, params, [pictures])
    assert np.abs(mean).max() < 0.6 and 0.7 < std.mean() < 1.3, "the file's statistics normalise"
    # The held-out images with float16 weights: the PSNR that training logged.
    held_out = np.stack([Pictures(1)[index] for index in range(8)])
    quality = image_vae_file.reconstruction_quality(config, params, [held_out])["psnr_db"]
    logged = [line["psnr_db"] for line in trace(workdir) if "psnr_db" in line]
    assert quality == pytest.approx(logged[-1], abs=0.05)
    with safe_open(exported, framework="numpy") as file:
        names = set(file.keys())
        kinds = {file.get_tensor(name).dtype for name in names - {"latent_mean", "latent_std"}}
    assert "decoder.conv_in.kernel" in names
    assert kinds == {np.dtype(np.float16)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.conv_in.kernel"), "decoder.conv_in.kernel"),
        (lambda t: t.update(stranger=np.zeros(2, np.float16)), "stranger"),
        (
            lambda t: t.update({"decoder.conv_in.bias": np.zeros(3, np.float16)}),
            r"decoder.conv_in.bias.*\(3,\)",
        ),
        (lambda t: t.pop("latent_std"), "latent_std"),
    ],
)
def test_an_invalid_file_is_an_error_that_names_the_tensor(run, tmp_path, change, message):
    _, exported = run
    with safe_open(exported, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(exported)
    change(tensors)
    save_file(tensors, tmp_path / "bad.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=message):
        image_vae_file.load_image_vae(tmp_path / "bad.safetensors")


def test_a_missing_file_is_an_error_that_names_the_experiment(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"experiments/emoji/vae\.py"):
        image_vae_file.load_image_vae(tmp_path / "none.safetensors")


def test_the_edge_term_penalises_blur_and_not_a_shift_of_colour():
    picture = np.full((1, 1, 16, 16, 3), -0.5, np.float32)
    picture[:, :, :, 8:] = 0.5
    blurred = picture.copy()
    blurred[:, :, :, 6:10] = np.linspace(-0.5, 0.5, 4)[:, None]
    shifted = picture + np.abs(blurred - picture).mean()
    edge = [
        reconstruction_loss(SETTINGS, jnp.asarray(x), jnp.asarray(picture))[1]["edge"]
        for x in (blurred, shifted)
    ]
    assert edge[0] > 0.01 and edge[1] < 1e-6


def test_statistics_are_of_samples_of_the_posterior(run):
    """Two batches give the statistics of all their images, including the spread of the posterior."""
    _, exported = run
    config, params = image_vae_file.load_image_vae(exported)
    pictures = np.stack([Pictures(3)[index] for index in range(8)])
    mean, std = image_vae_file.latent_statistics(config, params, iter([pictures[:4], pictures[4:]]))
    encode = jax.jit(vae.encode, static_argnums=0)
    centres, log_var = encode(config, params, jnp.asarray(pictures)[:, None])
    draws = np.random.default_rng(0).normal(size=(50_000, *centres.shape))
    draws = np.asarray(centres) + np.asarray(vae.posterior_std(config, log_var)) * draws
    flat = draws.reshape(-1, config.latent_channels)
    np.testing.assert_allclose(mean, flat.mean(0), atol=0.01 * flat.std())
    np.testing.assert_allclose(std, flat.std(0), rtol=0.01)
    assert (std > 1.1 * np.asarray(centres).std((0, 1, 2, 3))).any(), "the spread counts"


def test_a_run_can_start_from_an_exported_vae(run, tmp_path):
    workdir, exported = run
    still = dataclasses.replace(SETTINGS.optimizer, learning_rate=1e-7)
    settings = dataclasses.replace(SETTINGS, init_from=str(exported), steps=3, optimizer=still)
    train_vae(settings, tmp_path / "on", Pictures(0), Pictures(1))
    before, after = (
        [line["psnr_db"] for line in trace(folder) if "psnr_db" in line][-1]
        for folder in (workdir, tmp_path / "on")
    )
    assert after == pytest.approx(before, abs=0.05)
    with pytest.raises(ValueError, match=r"config\.init_from"):
        other = dataclasses.replace(settings, decoder_width=8)
        train_vae(other, tmp_path / "other", Pictures(0), Pictures(1))


def test_items_come_in_order():
    def make(index):
        time.sleep(0.02 if index % 2 == 0 else 0)
        return index

    assert list(prefetch(make, 3, 9, depth=3, threads=3)) == [3, 4, 5, 6, 7, 8]


def test_only_a_few_are_prepared_ahead():
    prepared = []
    items = prefetch(lambda index: prepared.append(index) or index, 0, 100, depth=2)
    assert next(items) == 0
    time.sleep(0.1)
    assert max(prepared) <= 2
    items.close()


def test_depth_beyond_the_end_is_harmless():
    assert list(prefetch(lambda index: index, 0, 2, depth=10)) == [0, 1]
    assert list(prefetch(lambda index: index, 5, 5)) == []


def test_error_is_raised_where_its_item_was_due():
    def make(index):
        if index == 2:
            raise RuntimeError("no picture 2")
        return index

    items = prefetch(make, 0, 5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(RuntimeError, match="no picture 2"):
        next(items)
