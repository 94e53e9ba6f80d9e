"""Examples ready for a batch: what fills the slots, what is reported as invalid, and with which line."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from tuna_jax.data.invalid_examples import InvalidExample
from tuna_jax.data.media.image import Encoded, Size, read_image
from tuna_jax.data.media.video import read_video
from tuna_jax.data.mixture.bucket_sampler import BucketSampler
from tuna_jax.data.mixture.bucketing import Bucket
from tuna_jax.data.mixture.load_example import load_example
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.sources.base import Example
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import Grid

SIZE = Size(32, 48)
TALK = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


class Source:
    """Examples in memory."""

    name = identity = "memory"

    def __init__(self, *examples):
        self._examples = examples

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]

    def line(self, index):
        return index + 1


def load(tokenizer, task, source, index=0, *, slots=1, length=64, seed=0, dtype=np.uint8, **stream):
    frames = stream.get("frames", 1)
    settings = {"weight": 1.0, "rows": 1, "lengths": (length,), "sizes": (SIZE,), **stream}
    settings.setdefault("slots", (slots,))
    example_stream = ExampleStream(name="s", task=task, source=source, **settings)
    grid = Grid(1 + (frames - 1) // 4, 2, 3)
    sampler = BucketSampler(0, Bucket(SIZE, slots, length), grid, np.arange(1), (0,))
    space = np.zeros((slots, frames, SIZE.height, SIZE.width, 3), dtype)
    if dtype != np.uint8:
        space = np.zeros((slots, 2, *dataclasses.astuple(grid), 4), dtype)
    random = np.random.default_rng(seed)
    sequence = load_example(
        example_stream, sampler, index, random, tokenizer, space, encode=tokenizer.encode
    )
    return sequence, space


def test_an_image_fills_its_slot(files, tokenizer):
    name = files.image("a.png", 40, 90)
    manifest = Manifest(files.manifest("m.jsonl", [{"image": name, "caption": "a gradient"}]))
    sequence, slots = load(tokenizer, "t2i", manifest, text_dropout=0.0)
    np.testing.assert_array_equal(slots[0, 0], read_image(files.root / name, SIZE))
    assert sequence.is_target.tolist() == [True]
    assert tokenizer.decode(sequence.tokens, skip_special=True).startswith("a gradient")


def test_an_edit_fills_source_and_target_in_order(files, tokenizer):
    names = [files.image(f"{i}.png", 40, 60, shade=50 + i) for i in range(2)]
    row = {"raw_image": names[0], "out_image": names[1], "instruction": "make it redder"}
    manifest = Manifest(files.manifest("m.jsonl", [row]))
    sequence, slots = load(tokenizer, "edit", manifest, slots=2)
    assert slots[:, 0, 0, 0, 0].tolist() == [50, 51]
    assert sequence.is_target.tolist() == [False, True]


def test_an_edit_without_its_source_fills_the_target_only(files, tokenizer):
    names = [files.image(f"{i}.png", 40, 60, shade=50 + i) for i in range(2)]
    row = {"raw_image": names[0], "out_image": names[1], "instruction": "make it redder"}
    manifest = Manifest(files.manifest("m.jsonl", [row]))
    sequence, slots = load(tokenizer, "edit", manifest, slots=2, source_dropout=1.0)
    assert slots[:, 0, 0, 0, 0].tolist() == [51, 0]
    assert sequence.is_target.tolist() == [True]


def test_a_video_begins_where_the_seed_says(files, tokenizer):
    name = files.video("a.mp4", frames=40)
    manifest = Manifest(files.manifest("m.jsonl", [{"video": name, "caption": "grey"}]))
    options = {"frames": 5, "fps": 10.0, "length": 96}
    begins = set()
    for seed in range(4):
        _, slots = load(tokenizer, "t2v", manifest, seed=seed, **options)
        random = np.random.default_rng(seed)
        random.random(2)  # Text and source dropout.
        expected = read_video(files.root / name, SIZE, 5, fps=10.0, position=random.random())
        np.testing.assert_array_equal(slots[0], expected)
        begins.add(int(slots[0, 0, 0, 0, 0]))
    assert len(begins) > 1


def test_an_edit_of_two_images_fills_three_slots(files, tokenizer):
    names = [files.image(f"{i}.png", 40, 60, shade=50 + i) for i in range(3)]
    row = {"raw_image": names[:2], "out_image": names[2], "instruction": "both"}
    manifest = Manifest(files.manifest("m.jsonl", [row]))
    sequence, slots = load(tokenizer, "edit", manifest, slots=3)
    assert slots[:, 0, 0, 0, 0].tolist() == [50, 51, 52]
    assert sequence.is_target.tolist() == [False, False, True]


def test_the_first_frame_of_a_clip_fills_a_slot_of_its_own(files, tokenizer):
    name = files.video("a.mp4", frames=40)
    manifest = Manifest(files.manifest("m.jsonl", [{"video": name, "caption": "grey"}]))
    options = {"frames": 5, "fps": 10.0, "length": 96, "seed": 2}
    _, (clip,) = load(tokenizer, "t2v", manifest, **options)
    sequence, slots = load(tokenizer, "i2v", manifest, slots=2, **options)
    np.testing.assert_array_equal(slots[1], clip)
    np.testing.assert_array_equal(slots[0, 0], clip[0])
    assert clip.any() and not slots[0, 1:].any()
    assert sequence.spans[:, 1].tolist() == [7, 13]
    _, alone = load(tokenizer, "i2v", manifest, slots=2, source_dropout=1.0, **options)
    np.testing.assert_array_equal(alone[0], clip)
    assert not alone[1].any()


def test_the_first_latent_frame_fills_a_slot_of_its_own(tokenizer):
    moments = 1 + np.arange(2 * 2 * 2 * 3 * 4).reshape(2, 2, 2, 3, 4).astype(ml_dtypes.bfloat16)
    encoded = Encoded(SIZE, lambda: moments)
    source = Source(Example("video_caption", (encoded,), "memory", 1, "a gradient"))
    options = {"slots": 2, "frames": 5, "length": 96, "dtype": ml_dtypes.bfloat16}
    _, slots = load(tokenizer, "i2v", source, **options)
    np.testing.assert_array_equal(slots[1], moments)
    np.testing.assert_array_equal(slots[0, :, :1], moments[:, :1])
    assert not slots[0, :, 1:].any()


def test_moments_of_latents_fill_the_slot_unread(tokenizer):
    moments = np.arange(2 * 1 * 2 * 3 * 4).reshape(2, 1, 2, 3, 4).astype(ml_dtypes.bfloat16)
    encoded = Encoded(SIZE, lambda: moments)
    source = Source(Example("image_caption", (encoded,), "memory", 1, "a gradient"))
    _, slots = load(tokenizer, "t2i", source, dtype=ml_dtypes.bfloat16)
    np.testing.assert_array_equal(slots[0], moments)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"image": "none.png", "caption": "a"}, "missing_file"),
        ({"image": "note.png", "caption": "a"}, "corrupt_image"),
        ({"image": "tiny.png", "caption": "a"}, "tiny_image"),
        ({"conversations": TALK}, "unknown_format"),
        ("not JSON", "malformed_json"),
    ],
)
def test_invalid_examples_have_kind_source_and_line(files, tokenizer, row, kind):
    (files.root / "note.png").write_text("not an image")
    files.image("tiny.png", 5, 5)
    good = {"image": files.image("a.png", 40, 40), "caption": "a"}
    manifest = Manifest(files.manifest("m.jsonl", [good, row]))
    load(tokenizer, "t2i", manifest, 0)
    with pytest.raises(InvalidExample) as raised:
        load(tokenizer, "t2i", manifest, 1)
    assert (raised.value.kind, raised.value.line) == (kind, 2)
    assert raised.value.source == str(files.root / "m.jsonl")


def test_an_image_by_the_assistant_needs_a_stream_that_trains_on_it(files, tokenizer):
    files.image("a.png", 40, 40)
    talk = [{"from": "human", "value": "Draw."}, {"from": "gpt", "value": "<image>"}]
    row = {"image": "a.png", "conversations": talk}
    manifest = Manifest(files.manifest("m.jsonl", [row]))
    sequence, slots = load(tokenizer, "understand", manifest, draws=True)
    assert sequence.is_target.tolist() == [True] and slots.any()
    with pytest.raises(InvalidExample, match="draws=True") as raised:
        load(tokenizer, "understand", manifest, draws=False)
    assert raised.value.kind == "assistant_image"
