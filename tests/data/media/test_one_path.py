"""One path for pixels: every part of the code base sees the same pixels of the same file, to the bit."""

import json
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.bucket_sampler import BucketSampler
from tuna_jax.data.mixture.bucketing import Bucket
from tuna_jax.data.mixture.load_example import load_example
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.precompute_latents import Encoding, encode_manifest
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji import model_bundle
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.evaluation import features
from tuna_jax.evaluation.vqa import datasets
from tuna_jax.inference.media_inputs import as_clip
from tuna_jax.sequence import Grid
from tuna_jax.utils.config_parsing import parse

SIDE = 64
SIZE = Size(SIDE, SIDE)
NAMES = ("rotated.jpg", "cmyk.jpg", "deep.png", "transparent.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four files of smoothed noise, larger than the size and of another shape, so that filter and crop matter."""
    root = tmp_path_factory.mktemp("media")
    noise = np.random.default_rng(0).integers(0, 256, (45, 70, 4), dtype=np.uint8)
    layers = [Image.fromarray(noise[..., i]).resize((140, 90)) for i in range(4)]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.merge("RGB", layers[:3]).save(root / "rotated.jpg", exif=exif, quality=95)
    Image.merge("CMYK", layers).save(root / "cmyk.jpg", quality=95)
    Image.fromarray(np.asarray(layers[0]).astype(np.uint16) * 256).save(root / "deep.png")
    Image.merge("RGBA", layers).save(root / "transparent.png")
    return root


@lru_cache
def tokenizer():
    return Tokenizer()


def trained(path):
    """The pixels in a training batch."""
    manifest = path.with_suffix(".jsonl")
    manifest.write_text(json.dumps({"image": path.name, "caption": "an image"}) + "\n")
    stream = ExampleStream(
        name="s",
        task="t2i",
        source=Manifest(manifest),
        weight=1.0,
        rows=1,
        lengths=(64,),
        sizes=(SIZE,),
    )
    sampler = BucketSampler(0, Bucket(SIZE, 1, 64), Grid(1, 4, 4), np.arange(1), (0,))
    space = np.zeros((1, 1, SIDE, SIDE, 3), np.uint8)
    words = tokenizer()
    load_example(stream, sampler, 0, np.random.default_rng(0), words, space, encode=words.encode)
    return space[0, 0]


def encoded(path, folder):
    """The pixels that `encode_latents` gives to the VAE."""
    seen = []

    def encode(clips):
        seen.append(clips[0, 0].copy())
        mean = np.zeros((len(clips), 1, 4, 4, 2), np.float32)
        return mean, mean

    manifest = folder / "single.jsonl"
    manifest.write_text(json.dumps({"image": str(path), "caption": "an image"}) + "\n")
    settings = Encoding(vae_fingerprint="none", sizes=(SIZE,))
    encode_manifest(Manifest(manifest), folder / "latents", encode, settings, progress=False)
    return seen[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_run):
    values = tiny_run.experiment(tmp_path_factory.mktemp("vae"))
    bundle = model_bundle.load_bundle(parse(EmojiExperiment, values))
    return bundle.model(tiny_run.parameters(values, 0))


def questioned(path, model, folder):
    """The pixels that the model gets with a question in a file."""
    questions = folder / "questions.jsonl"
    row = {"image": str(path), "question": "what?", "answer": "this"}
    questions.write_text(json.dumps(row) + "\n")
    (item,) = datasets.read_lines(questions)
    return model.load_media(item.media)[0][0]


@pytest.mark.parametrize("name", NAMES)
def test_every_path_sees_the_same_pixels(folder, tmp_path, model, name):
    path = folder / name
    expected = trained(path)
    assert expected.std() > 10, "an image, not a constant"
    with Image.open(path) as opened:
        from_pillow = as_clip(opened, (SIDE, SIDE))[0]
    for pixels in (
        as_clip(path, (SIDE, SIDE))[0],
        as_clip(path.read_bytes(), (SIDE, SIDE))[0],
        from_pillow,
        encoded(path, tmp_path),
        features.read_all([path], (SIDE, SIDE))[0],
        questioned(path, model, tmp_path),
    ):
        np.testing.assert_array_equal(pixels, expected)
    options = {"seed": 0, "steps": 2, "size": (SIDE, SIDE)}
    edited = model.edit_image(path, "remove the dog", **options)
    np.testing.assert_array_equal(edited, model.edit_image(expected, "remove the dog", **options))
    flipped = expected[:, ::-1].copy()
    assert (edited != model.edit_image(flipped, "remove the dog", **options)).any()


def test_the_files_are_what_their_names_say(folder):
    modes = {}
    for name in NAMES:
        with Image.open(folder / name) as opened:
            modes[name] = opened.mode
    assert modes["cmyk.jpg"] == "CMYK"
    assert modes["deep.png"].startswith("I")
    assert modes["transparent.png"] == "RGBA"
    portrait = Image.fromarray(trained(folder / "rotated.jpg"))
    with Image.open(folder / "rotated.jpg") as opened:
        upright = opened.convert("RGB").rotate(-90, expand=True)
    assert portrait.size == (SIDE, SIDE) and upright.size == (90, 140)
    centre = upright.crop((0, 25, 90, 115)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(centre).astype(int) - np.asarray(portrait))
    assert difference[4:-4].max() <= 1, "away from the crop's edges, across which the filter reads"
