"""One path for pixels: every part of the code base sees the same pixels of the same file, to the bit."""

import importlib
import importlib.util
import json
import sys
import types
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import odd_media as odd
from tuna_jax import generate
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
from tuna_jax.evaluation.vqa import run as vqa_run
from tuna_jax.inference import run_requests
from tuna_jax.inference.media_inputs import ImageFile, as_clip
from tuna_jax.inference.requests import read_requests
from tuna_jax.sequence import Grid
from tuna_jax.utils.config_parsing import parse

SIDE, FRAMES = 64, 5
SIZE = Size(SIDE, SIDE)


def _layers():
    """Smoothed noise, larger than the size and of another shape, so that filter and crop matter."""
    noise = np.random.default_rng(0).integers(0, 256, (45, 70, 4), dtype=np.uint8)
    return [Image.fromarray(noise[..., i]).resize((140, 90)) for i in range(4)]


def _exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _pictures(root):
    layers = _layers()
    rgb, rgba = Image.merge("RGB", layers[:3]), Image.merge("RGBA", layers)
    grey = np.asarray(layers[0])
    rgb.save(root / "rotated.jpg", exif=_exif(), quality=95)
    rgb.save(root / "xmp.jpg", xmp=odd.xmp(8), quality=95)
    Image.merge("CMYK", layers).save(root / "cmyk.jpg", quality=95)
    Image.fromarray(grey.astype(np.uint16) * 256).save(root / "deep.png")
    rgba.save(root / "transparent.png")
    rgb.save(root / "profile.png", icc_profile=odd.profile(*odd.P3))
    rgb.quantize(16).save(root / "palette.gif")
    Image.fromarray(grey / np.float32(255)).save(root / "float.tif")
    rgb.save(root / "rotated.webp", exif=_exif(), lossless=True)
    rgb.save(root / "rotated.avif", exif=_exif(), quality=95)
    header = b"P5 140 90 65535\n"
    (root / "deep.pgm").write_bytes(header + (grey.astype(np.uint16) * 256).astype(">u2").tobytes())
    animated = {"save_all": True, "append_images": [rgb.rotate(180)] * 5, "duration": 200}
    rgb.save(root / "animated_picture.gif", **animated)


def _clips(root):
    layers = _layers()
    frames = [Image.merge("RGB", [layer.rotate(20 * i) for layer in layers[:3]]) for i in range(7)]
    arrays = [np.asarray(frame) for frame in frames]
    options = {"qmin": "2", "qmax": "4"}
    odd.write_clip(root / "shape.mp4", arrays, aspect=Fraction(3, 2))
    odd.write_clip(root / "turned.mov", arrays)
    (root / "turned.mov").write_bytes(odd.turned((root / "turned.mov").read_bytes(), (0, 1, -1, 0)))
    times = [0, 40, 80, 120, 160, 900, 2000]
    odd.write_clip(root / "variable.mkv", arrays, times=times, options={"bf": "0"})
    odd.write_clip(root / "a.avi", arrays, "mpeg4", options=options)
    odd.write_clip(root / "a.wmv", arrays, "wmv2", options=options)
    odd.write_clip(root / "a.flv", arrays, "flv", options=options)
    odd.write_clip(root / "a.ts", arrays)
    odd.write_clip(root / "a.3gp", arrays)
    odd.write_clip(
        root / "hdr.mp4", arrays, pixels="yuv420p10le",
        tags={"colorspace": 9, "color_primaries": 9, "color_trc": 16},
    )  # fmt: skip
    clear = [np.dstack([255 - array[..., 0], array]) for array in arrays]
    odd.write_clip(root / "alpha.mov", clear, "qtrle", "argb", source="argb")
    for suffix in ("gif", "png", "webp"):
        frames[0].save(
            root / f"animated.{suffix}", save_all=True, append_images=frames[1:], duration=150
        )
    (root / "folder").mkdir()
    for i, frame in enumerate(frames):
        frame.save(root / "folder" / f"{4 * i}.jpg", quality=95)
        (root / "folder" / f"._{4 * i}.jpg").write_bytes(b"\0\5\x16\7")


PICTURES = (
    "rotated.jpg", "xmp.jpg", "cmyk.jpg", "deep.png", "transparent.png", "profile.png", "palette.gif", "float.tif",
    "rotated.webp", "rotated.avif", "deep.pgm", "animated_picture.gif",
)  # fmt: skip
CLIPS = (
    "shape.mp4", "turned.mov", "variable.mkv", "a.avi", "a.wmv", "a.flv", "a.ts", "a.3gp", "hdr.mp4", "alpha.mov",
    "animated.gif", "animated.png", "animated.webp", "folder",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("media")
    _pictures(root)
    _clips(root)
    return root


@lru_cache
def tokenizer():
    return Tokenizer()


def trained(path, folder):
    """The pixels in a training batch, [frames, height, width, 3]."""
    clip = path.name in CLIPS
    frames = FRAMES if clip else 1
    manifest = folder / "trained.jsonl"
    row = {"video" if clip else "image": str(path), "caption": "an image"}
    manifest.write_text(json.dumps(row) + "\n")
    stream = ExampleStream(
        name="s",
        task="t2v" if clip else "t2i",
        source=Manifest(manifest),
        weight=1.0,
        rows=1,
        lengths=(128,),
        sizes=(SIZE,),
        frames=frames,
    )
    grid = Grid(1 + (frames - 1) // 4, 4, 4)
    sampler = BucketSampler(0, Bucket(SIZE, 1, 128), grid, np.arange(1), (0,))
    space = np.zeros((1, frames, SIDE, SIDE, 3), np.uint8)
    words = tokenizer()
    load_example(stream, sampler, 0, np.random.default_rng(0), words, space, encode=words.encode)
    return space[0]


def encoded(path, folder):
    """The pixels that `encode_latents` gives to the VAE."""
    seen, clip = [], path.name in CLIPS

    def encode(clips):
        seen.append(clips[0].copy())
        mean = np.zeros((len(clips), 1, 4, 4, 2), np.float32)
        return mean, mean

    manifest = folder / "single.jsonl"
    row = {"video" if clip else "image": str(path), "caption": "an image"}
    manifest.write_text(json.dumps(row) + "\n")
    settings = Encoding(vae_fingerprint="none", sizes=(SIZE,), frames=FRAMES if clip else 1)
    encode_manifest(Manifest(manifest), folder / "latents", encode, settings, progress=False)
    return seen[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_run):
    values = tiny_run.experiment(tmp_path_factory.mktemp("vae"))
    bundle = model_bundle.load_bundle(parse(EmojiExperiment, values))
    return bundle.model(tiny_run.parameters(values, 0))


def questioned(path, model, folder):
    """The pixels that `evaluate-vqa` gives to the model, with a question in a file."""
    questions = folder / "questions.jsonl"
    key = "video" if path.name in CLIPS else "image"
    row = {key: str(path), "question": "what?", "answer": "this"}
    questions.write_text(json.dumps(row) + "\n")
    (item,) = datasets.read_lines(questions)
    return vqa_run.load_conversations(model, [item], [0], FRAMES, None, {})[0].media[0]


def requested(path, model, folder):
    """The pixels that `generate --prompts` gives to the model, from a line of requests."""
    key = "video" if path.name in CLIPS else "image"
    (folder / "requests.jsonl").write_text(json.dumps({"question": "what?", key: str(path)}) + "\n")
    (request,) = read_requests(folder / "requests.jsonl", "understand")
    return run_requests._conversation(model, request, FRAMES).media[0]


def flagged(path, model):
    """The pixels that `generate --image=` or `--video=` gives to the model."""
    flag = "--video" if path.name in CLIPS else "--image"
    options = generate._parser().parse_args(["--model=m", f"{flag}={path}", "--question=what?"])
    (request,) = generate._requests(options, "understand")
    return run_requests._conversation(model, request, FRAMES).media[0]


@pytest.fixture(scope="module")
def plugin(model):
    """lmms-eval's plugin around the model. lmms-eval itself needs an environment of its own: only names stand in."""
    names = {
        "lmms_eval.api.instance": ("GenerationResult", "Instance"),
        "lmms_eval.api.model": ("lmms",),
        "lmms_eval.models.registry_v2": ("ModelManifest",),
    }
    absent = importlib.util.find_spec("lmms_eval") is None
    if absent:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models", *names):
            module = types.ModuleType(name)
            for attribute in names.get(name, ()):
                setattr(module, attribute, type(attribute, (), {}))
            sys.modules[name] = module
    try:
        module = importlib.import_module("tuna_jax.integrations.lmms_eval")
        chat = module.TunaChat.__new__(module.TunaChat)
        chat._model, chat._frames = model, FRAMES
        yield chat
    finally:
        for name in [n for n in sys.modules if absent and n.split(".")[0] == "lmms_eval"]:
            del sys.modules[name]
        sys.modules.pop("tuna_jax.integrations.lmms_eval", None)


def evaluated(path, plugin):
    """The pixels that lmms-eval's plugin gives to the model."""
    kind = "video" if path.name in CLIPS else "image"
    parts = [{"type": kind, "url": str(path)}, {"type": "text", "text": "what?"}]
    return plugin._chat([{"role": "user", "content": parts}]).media[0]


@pytest.mark.parametrize("name", [*PICTURES, *CLIPS])
def test_every_path_sees_the_same_pixels(folder, tmp_path, model, plugin, name):
    path = folder / name
    expected, size = trained(path, tmp_path), (SIDE, SIDE)
    assert expected.std() > 10, "an image, not a constant"
    seen = {
        "encode-latents": encoded(path, tmp_path),
        "evaluate-vqa": questioned(path, model, tmp_path),
        "generate, a file": requested(path, model, tmp_path),
        "generate, flags": flagged(path, model),
        "lmms-eval": evaluated(path, plugin),
    }
    if name in PICTURES:
        with Image.open(path) as opened:
            seen["Pillow"] = as_clip(opened, size)
        seen["features"] = features.read_all([path], size)
        seen["API, bytes"] = as_clip(ImageFile(path.read_bytes()), size)
    elif path.is_file():
        assert not np.array_equal(expected[0], expected[-1]), "a clip, not a picture"
        seen["API, bytes"] = as_clip(path.read_bytes(), size, FRAMES)
    if name != "animated_picture.gif":  # The API takes a file that says nothing for what it is.
        seen["API"] = model.load_media([path], FRAMES)[0]
    for where, pixels in seen.items():
        np.testing.assert_array_equal(pixels, expected, err_msg=where)


def test_an_edit_starts_from_the_same_pixels(folder, tmp_path, model):
    options = {"seed": 0, "steps": 2, "size": (SIDE, SIDE)}
    for name in ("rotated.jpg", "animated_picture.gif"):
        expected = trained(folder / name, tmp_path)[0]
        edited = model.edit_image(folder / name, "remove the dog", **options)
        np.testing.assert_array_equal(
            edited, model.edit_image(expected, "remove the dog", **options)
        )
        flipped = expected[:, ::-1].copy()
        assert (edited != model.edit_image(flipped, "remove the dog", **options)).any()


def test_the_files_are_what_their_names_say(folder, tmp_path):
    modes = {}
    for name in PICTURES:
        with Image.open(folder / name) as opened:
            modes[name] = opened.mode
    assert modes["cmyk.jpg"] == "CMYK"
    assert modes["deep.png"].startswith("I")
    assert modes["transparent.png"] == "RGBA"
    assert modes["float.tif"] == "F"
    portrait = Image.fromarray(trained(folder / "rotated.jpg", tmp_path)[0])
    with Image.open(folder / "rotated.jpg") as opened:
        upright = opened.convert("RGB").rotate(-90, expand=True)
    assert portrait.size == (SIDE, SIDE) and upright.size == (90, 140)
    centre = upright.crop((0, 25, 90, 115)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(centre).astype(int) - np.asarray(portrait))
    assert difference[4:-4].max() <= 1, "away from the crop's edges, across which the filter reads"
