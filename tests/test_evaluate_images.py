"""The command: reconstruction, distributions, features and their alignment, from folders and files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import tuna_jax
from tuna_jax import evaluate_images
from tuna_jax.evaluation import features
from tuna_jax.evaluation.metrics import cknna, fid_cmmd, psnr_ssim
from tuna_jax.models import tuna, vae

EXTRACTOR = """
import numpy as np

def colours(pictures):
    assert all(picture.mode == "RGB" for picture in pictures)
    return np.array([np.asarray(picture).mean((0, 1)) for picture in pictures])

def wrong(pictures):
    return np.zeros(3)
"""


@pytest.fixture
def run(tiny_model, tmp_path, monkeypatch, capsys):
    """Runs the command in a folder with images; returns the values that it prints."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for folder, count in (("photos", 6), ("generated/deeper", 5)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 255 - 20 * i, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "mine.py").write_text(EXTRACTOR)
    model = (f"--model={tiny_model}", "--tokenizer=emoji", "--size=32")

    def call(command, *arguments, with_model=False, status=0):
        flags = [command, *(model if with_model else ()), *arguments]
        assert evaluate_images.main(flags) == status
        captured = capsys.readouterr()
        return captured.err if status else json.loads(captured.out.splitlines()[-1])

    return call


def _photos(tmp_path, folder="photos"):
    files = sorted((tmp_path / folder).rglob("*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_reconstruction_uses_the_models_vae(run, tmp_path, tiny_model):
    scores = run("reconstruction", "--images=photos", with_model=True)
    model = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji")
    photos = _photos(tmp_path)
    mean = vae.posterior(model.config.vae, model.vae_params, photos[:, None])[0]
    again = vae.decode(model.config.vae, model.vae_params, mean)[:, 0]
    again = np.asarray(jnp.round(jnp.clip(again, -1, 1) * 127.5 + 127.5), np.uint8)
    np.testing.assert_allclose(scores["psnr_db"], psnr_ssim.psnr(photos, again).mean(), atol=0.05)
    np.testing.assert_allclose(scores["ssim"], psnr_ssim.ssim(photos, again).mean(), atol=0.01)
    assert (scores["pictures"], scores["size"]) == (6, [32, 32])


def test_distributions_by_an_extractor_and_by_files(run, tmp_path):
    scores = run(
        *("distribution", "--images=generated", "--reference=photos", "--extractor=mine.py:colours")
    )
    ours, theirs = (_photos(tmp_path, name).mean((1, 2)) for name in ("generated", "photos"))
    expected = fid_cmmd.frechet_distance(ours, theirs)
    np.testing.assert_allclose(scores["frechet_distance"], expected, rtol=1e-4)
    np.testing.assert_allclose(scores["cmmd"], fid_cmmd.cmmd(ours, theirs), rtol=1e-4)
    assert (scores["rows"], scores["width"]) == ([5, 6], 3)
    np.save("ours.npy", ours.astype(np.float32))
    save_file({"clip": theirs.astype(np.float32), "x": np.zeros(1)}, "theirs.safetensors")
    again = run("distribution", "--features=ours.npy", "--reference=theirs.safetensors:clip")
    np.testing.assert_allclose(again["frechet_distance"], scores["frechet_distance"], rtol=1e-4)


def test_features_are_the_mean_of_the_unified_tokens(run, tmp_path, tiny_model):
    run("features", "--images=photos", "--output=out/ours.safetensors", with_model=True)
    model = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji")
    latents = vae.posterior(model.config.vae, model.vae_params, _photos(tmp_path)[:, None])[0]
    tokens = tuna.bind(model.config, model.params).visual_tokens(latents[:, None])
    assert tokens.shape == (6, 1, 4, model.config.language.width)
    expected = np.asarray(tokens, np.float32).mean((1, 2))
    np.testing.assert_allclose(
        load_file("out/ours.safetensors")["features"], expected, rtol=1e-4, atol=1e-4
    )
    assert features.read("out/ours.safetensors")[1] == [f"{i}.png" for i in range(6)]


def test_alignment_of_a_model_with_a_file(run, tmp_path):
    other = np.random.default_rng(1).normal(size=(6, 4, 5)).astype(np.float32)  # tokens too
    np.save("other.npy", other)
    run("features", "--images=photos", "--output=ours.npy", with_model=True)
    flags = ("--reference=other.npy", "--neighbours=3")
    scores = run("alignment", "--images=photos", *flags, with_model=True)
    prepared = [cknna.prepare(x) for x in (np.load("ours.npy"), other.mean(1))]
    np.testing.assert_allclose(scores["cknna"], cknna.cknna(*prepared, 3), atol=1e-4)
    assert run("alignment", "--features=ours.npy", *flags)["cknna"] == pytest.approx(
        scores["cknna"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["alignment", "--features=a.safetensors", "--reference=b.safetensors"], "row 1 is 1.png"),
        (["alignment", "--features=nothing.npy", "--reference=b.safetensors"], "no file of feat"),
        (["alignment", "--reference=b.safetensors"], "give either --features=FILE or --images="),
        (["distribution", "--images=photos", "--reference=photos"], "--extractor=FILE.py"),
        (
            ["distribution", "--features=mine.py", "--reference=photos"],
            "cannot be read as features",
        ),
        (
            ["features", "--images=photos", "--output=a.npy", "--extractor=mine.py:wrong"],
            "shape [3] for 6 images",
        ),
        (
            ["features", "--images=photos", "--output=a.npy", "--extractor=mine.py:nothing"],
            "mine.py has no function 'nothing'",
        ),
        (
            ["features", "--images=photos", "--output=a.txt", "--extractor=mine.py:colours"],
            "written as .npy or .safetensors",
        ),
        (
            ["features", "--images=nowhere", "--output=a.npy", "--extractor=mine.py:colours"],
            "nowhere has no",
        ),
    ],
)
def test_errors_are_named(run, arguments, words):
    rows = np.eye(5, dtype=np.float32)
    names = [f"{i}.png" for i in range(5)]
    features.write("a.safetensors", rows, names)
    features.write("b.safetensors", rows, [names[0], *reversed(names[1:])])
    assert words in run(*arguments, status=1)
