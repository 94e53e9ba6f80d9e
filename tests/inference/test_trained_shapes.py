"""An image that is asked about or edited takes the nearest of the shapes that the model was trained on."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tuna_jax.config import preset
from tuna_jax.conversion.readers import StateDict
from tuna_jax.inference import run_record, trained_shapes
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.run_record import RECORD_KEY, RunRecord
from tuna_jax.inference.scoring import likelihoods
from tuna_jax.sweeps import registry

pytestmark = pytest.mark.usefixtures("any_words")
SHAPES = {"understand": [(32, 32), (32, 96), (96, 32)], "edit": [(32, 32), (32, 64)]}
FIVE = [(512, 512), (448, 576), (576, 448), (384, 672), (672, 384)]


@pytest.fixture(scope="module")
def wide(tuna):
    return dataclasses.replace(tuna, size=(32, 32), shapes=SHAPES)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The pictures of report 33: grey, and grey with two coloured ends that a square crop does not see."""
    folder = tmp_path_factory.mktemp("wide")
    pixels = np.full((64, 192, 3), 128, np.uint8)
    Image.fromarray(pixels).save(folder / "plain.png")
    pixels[:, :48], pixels[:, -48:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(pixels).save(folder / "ends.png")
    return folder


def test_the_ends_of_a_wide_picture_are_seen(wide, tuna, files):
    square = dataclasses.replace(tuna, size=(32, 32))
    scores = {}
    for name, model in (("wide", wide), ("square", square)):
        for file in ("plain", "ends"):
            media = model.load_media([files / f"{file}.png"])
            conversation = Conversation.of(media, "what is this?")
            scores[name, file] = likelihoods(model, [conversation], ["a dog"]).log_probability[0]
    assert scores["square", "plain"] == scores["square", "ends"], "as it was"
    assert scores["wide", "plain"] != scores["wide", "ends"]


@pytest.mark.parametrize("kind", ["path", "bytes", "pillow", "array", "uri"])
def test_every_form_of_a_picture_has_its_shape(wide, files, kind):
    import base64

    path = files / "ends.png"
    item = {
        "path": path,
        "bytes": path.read_bytes(),
        "pillow": Image.open(path),
        "array": np.asarray(Image.open(path)),
        "uri": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
    }[kind]
    assert wide.load_media([item])[0].shape == (1, 32, 96, 3)


def test_the_pictures_of_a_conversation_have_the_shape_of_the_first(wide, files):
    tall = np.zeros((96, 32, 3), np.uint8)
    assert [clip.shape[1:3] for clip in wide.load_media([tall, files / "ends.png"])] == [
        (96, 32)
    ] * 2


def test_a_clip_takes_the_shapes_of_clips(wide):
    clip = np.zeros((5, 32, 96, 3), np.uint8)
    assert wide.load_media([clip])[0].shape == (5, 32, 32, 3), "none: the model's size"


def test_an_edit_has_the_shape_of_its_source(wide, files):
    options = {"steps": 1, "guidance": 1.0}
    assert wide.edit_image(files / "ends.png", "a dog", **options).shape == (1, 32, 64, 3)
    with pytest.raises(ValueError, match=r"different shapes \(32x64, 32x32\)"):
        wide.edit_image([files / "ends.png", np.zeros((32, 32, 3), np.uint8)], ["a", "b"])


def test_a_size_that_is_named_is_taken_as_it_is(wide):
    assert registry.configured(wide, {"size": 32}).shapes == {}
    assert registry.configured(wide, {"guidance": 2.0}).shapes == SHAPES


def test_records_have_the_shapes_of_the_streams():
    streams = {
        "a": {"task": "understand", "sizes": ("512", "64x128")},
        "b": {"task": "understand", "sizes": ("512x512",)},
        "c": {"task": "edit", "sizes": ("256x256",)},
        "d": {"task": "t2i", "sizes": ("128x128",)},
    }
    shapes = trained_shapes.of_streams(streams)
    assert shapes == {"understand": [*FIVE, (64, 128)], "edit": [(256, 256)]}
    record = RunRecord(kind="multitask", model={}, size=(512, 512), shapes=shapes)
    assert trained_shapes.nearest_shape(shapes["edit"], (9, 9), np.zeros((9, 99, 3))) == (256, 256)
    assert RunRecord.from_json(record.to_json()).to_json() == record.to_json()


def test_a_run_of_an_earlier_version_has_the_shapes_of_its_config(tmp_path, monkeypatch):
    old = RunRecord(kind="multitask", model={}, size=(512, 512)).to_json()
    old.pop("shapes")
    stored = {RECORD_KEY: old, "data": {"streams": {"a": {"task": "understand"}}}}
    monkeypatch.setattr(run_record.checkpoint_source, "settings_of", lambda *_: stored)
    state = StateDict({}, lambda key, index: np.zeros(0))
    assert run_record.read(tmp_path, state).shapes == {"understand": FIVE}
    monkeypatch.setattr(run_record.checkpoint_source, "settings_of", lambda *_: {RECORD_KEY: old})
    assert run_record.read(tmp_path, state).shapes == {}


def test_released_models_see_five_shapes():
    assert run_record.of_converted(preset("tuna_7b")).shapes == {"understand": FIVE}
    assert run_record.of_converted(preset("tiny")).shapes == {}
