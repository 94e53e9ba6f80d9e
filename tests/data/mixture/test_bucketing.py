"""Buckets: the nearest size, the smallest length, metadata that is scanned once."""

import math

import numpy as np
import pytest

from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture import scan as scanning
from tuna_jax.data.mixture.bucketing import (
    SIZES_512,
    SIZES_1024,
    Bucket,
    assign,
    nearest,
)
from tuna_jax.data.mixture.scan import ExampleMetadata, scan
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import Grid


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def test_the_presets_are_tunas() -> None:
    assert [str(size) for size in SIZES_512] == [
        "512x512", "448x576", "576x448", "384x672", "672x384"
    ]  # fmt: skip
    assert [str(size) for size in SIZES_1024] == [
        "1024x1024", "896x1152", "1152x896", "768x1344", "1344x768"
    ]  # fmt: skip


def test_the_nearest_size_goes_by_the_logarithm_of_the_ratio() -> None:
    random = np.random.default_rng(0)
    height, width = random.integers(10, 3000, (2, 500))
    chosen = nearest(height, width, SIZES_512)
    for h, w, at in zip(height, width, chosen, strict=True):
        away = [abs(math.log(h / w) - math.log(s.height / s.width)) for s in SIZES_512]
        assert away[at] == pytest.approx(min(away))
    # A ratio and its inverse are equally far from square only on a logarithmic scale.
    pair = [Size(100, 100), Size(100, 200)]
    assert nearest(np.array([100, 100]), np.array([141, 142]), pair).tolist() == [0, 1]


def test_of_similar_sizes_the_largest_that_needs_no_upscaling() -> None:
    sizes = (*SIZES_512, *SIZES_1024)
    shape = np.array([[2000, 2000], [1024, 1024], [1000, 1023], [512, 512], [40, 40], [768, 1344]])
    chosen = [str(sizes[at]) for at in nearest(shape[:, 0], shape[:, 1], sizes)]
    assert chosen == ["1024x1024", "1024x1024", "512x512", "512x512", "512x512", "768x1344"]


def manifest(files) -> Manifest:
    files.image("wide.png", 40, 80)
    files.image("square.jpg", 64, 64)
    files.image("five.png", 5, 5)
    (files.root / "note.png").write_text("not an image")
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]
    rows = [
        {"image": "wide.png", "caption": "A dog."},
        {"image": "none.png", "caption": "A dog."},
        {"image": "square.jpg", "caption": "A dog. " * 20},
        {"image": "five.png", "caption": "A dog."},
        {"image": ["wide.png", "square.jpg"], "conversations": talk},
        {"image": ["wide.png"] * 4, "conversations": talk},
        {"image": "note.png", "caption": "A dog."},
        '{"image": ',
        {"image": "square.jpg", "caption": "Of words. " * 80},
        {"image": "wide.png", "caption": ""},
        {"conversations": talk},
    ]
    return Manifest(files.manifest("m.jsonl", rows))


SIZES = (Size(32, 32), Size(32, 64))
GRIDS = (Grid(1, 2, 2), Grid(1, 2, 4))


def sort(rows, metadata, task="understand"):
    return assign(
        metadata, rows, task, sizes=SIZES, slots=(1, 2), lengths=(48, 64, 128), grids=GRIDS
    )


def test_examples_are_sorted_and_invalid_ones_reported(files, tokenizer) -> None:
    rows = manifest(files)
    metadata = scan(rows, "understand", tokenizer, directory=files.root / "cache")
    assert metadata.height[[0, 2, 4]].tolist() == [40, 64, 40]
    assert metadata.width[[0, 2, 4]].tolist() == [80, 64, 80]
    assert metadata.media[[0, 2, 4, 5]].tolist() == [1, 1, 2, 4]
    buckets, members, invalid = sort(rows, metadata)
    assert dict(zip(buckets, map(list, members), strict=True)) == {
        Bucket(SIZES[1], 1, 48): [0],
        Bucket(SIZES[0], 1, 128): [2],
        Bucket(SIZES[1], 2, 64): [4],
    }
    assert sorted((row.line, row.kind) for row in invalid) == [
        (2, "missing_file"),
        (4, "tiny_image"),
        (6, "wrong_image_count"),
        (7, "corrupt_image"),
        (8, "malformed_json"),
        (9, "too_long"),
        (10, "empty_text"),
        (11, "unknown_format"),
    ]
    assert invalid[0].kind == "missing_file" and "none.png" in invalid[0].reason


def test_a_caption_that_will_be_truncated_is_not_too_long(files, tokenizer) -> None:
    rows = manifest(files)
    buckets, members, invalid = sort(
        rows, scan(rows, "t2i", tokenizer, directory=files.root), "t2i"
    )
    assert {row.kind for row in invalid} & {"too_long"} == set()
    assert [int(index) for group in members for index in group].count(8) == 1
    assert buckets[[8 in group for group in members].index(True)].length == 128


def test_metadata_are_scanned_once(files, tokenizer, monkeypatch) -> None:
    rows, cache = manifest(files), files.root / "cache"
    first = scan(rows, "understand", tokenizer, directory=cache)
    with monkeypatch.context() as broken:
        broken.setattr(scanning, "image_size", None)
        again = scan(rows, "understand", tokenizer, directory=cache, version="")
    for before, after in zip(sort(rows, first), sort(rows, again), strict=True):
        assert repr(before) == repr(after)


def test_a_new_run_looks_again_at_missing_files_and_a_resumed_one_does_not(
    files, tokenizer
) -> None:
    rows, cache = manifest(files), files.root / "cache"
    (files.root / "none.png").unlink(missing_ok=True)
    first = scan(rows, "understand", tokenizer, directory=cache)
    unchanged = scan(rows, "understand", tokenizer, directory=cache)
    assert (unchanged.version, unchanged.recovered, unchanged.still_invalid) == ("", 0, 3)
    files.image("none.png", 64, 96)
    resumed = scan(rows, "understand", tokenizer, directory=cache, version=first.version)
    assert 1 in resumed.invalid and resumed.still_invalid == 0
    new = scan(rows, "understand", tokenizer, directory=cache)
    assert 1 not in new.invalid and 3 in new.invalid and new.version
    assert (new.height[1], new.width[1], new.recovered, new.still_invalid) == (64, 96, 1, 2)
    (files.root / "none.png").unlink()
    again = scan(rows, "understand", tokenizer, directory=cache, version=new.version)
    assert repr(again.invalid) == repr(new.invalid) and again.text[1] == new.text[1] > 0
    assert 1 in scan(rows, "understand", tokenizer, directory=cache).invalid


@pytest.mark.filterwarnings("ignore:.*not in the compact vocabulary")
def test_other_content_tasks_and_vocabularies_are_scanned_again(files, tokenizer) -> None:
    rows, cache = manifest(files), files.root / "cache"
    scan(rows, "understand", tokenizer, directory=cache)
    scan(rows, "t2i", tokenizer, directory=cache)
    scan(rows, "understand", tokenizer, directory=cache, smallest=50)
    scan(rows, "understand", Tokenizer("emoji"), directory=cache)
    with rows.path.open("a") as file:
        file.write('{"image": "wide.png", "caption": "A cat."}\n')
    assert scan(Manifest(rows.path), "t2i", tokenizer, directory=cache).height[-1] == 40
    assert len(list((cache / "indexes").glob("scan-*"))) == 5


def test_an_edit_has_the_size_of_its_target(files, tokenizer) -> None:
    files.image("a.png", 64, 64)
    files.image("b.png", 40, 80)
    row = {"raw_image": "a.png", "out_image": "b.png", "instruction": "Wider."}
    metadata = scan(
        Manifest(files.manifest("e.jsonl", [row])), "edit", tokenizer, directory=files.root
    )
    assert (metadata.height[0], metadata.width[0]) == (40, 80)


def test_the_smallest_length_that_holds_spans_and_text(files) -> None:
    rows = Manifest(files.manifest("n.jsonl", [{"image": "a", "caption": "b"}] * 6))
    # A span of 32x32 has 1 + 4 tokens.
    media, text = np.array([1, 1, 2, 2, 0, 2]), np.array([43, 44, 38, 39, 48, 119])
    side = np.full(6, 32)
    buckets, members, invalid = sort(rows, ExampleMetadata(side, side, media, text, {}))
    lengths = {int(i): b.length for b, group in zip(buckets, members, strict=True) for i in group}
    assert lengths == {0: 48, 1: 64, 2: 48, 3: 64, 4: 48}
    assert "129 tokens (10 of them visual) exceed the longest length, 128" in str(invalid[0])


def numbers(media, text):
    """Metadata of squares of 64 pixels."""
    side, count = np.full(len(media), 64, np.uint8), np.asarray(media, np.uint8)
    return ExampleMetadata(side, side, count, np.asarray(text, np.uint8), {})


def test_edits_are_sorted_by_their_images(files) -> None:
    rows = manifest(files)
    found = numbers([2, 3, 4], [10, 12, 14])
    options = {"sizes": SIZES[:1], "slots": (2, 3), "lengths": (20, 64), "grids": GRIDS[:1]}
    buckets, members, invalid = assign(found, rows, "edit", **options)
    # 5 tokens of each image.
    assert dict(zip(buckets, map(list, members), strict=True)) == {
        Bucket(SIZES[0], 2, 20): [0],
        Bucket(SIZES[0], 3, 64): [1],
    }
    (wrong,) = invalid
    assert wrong.kind == "wrong_image_count" and "add 4 to its slots" in wrong.reason


def test_a_clip_with_its_first_frame_takes_two_slots_and_their_tokens(files) -> None:
    rows, grid = manifest(files), Grid(2, 2, 2)
    options = {"sizes": SIZES[:1], "slots": (1, 2), "lengths": (24, 25, 64), "grids": [grid]}
    # 5 tokens of the first frame and 9 of the clip.
    buckets, members, invalid = assign(numbers([1] * 2, [10, 11]), rows, "i2v", **options)
    assert [(bucket.slots, bucket.length) for bucket in buckets] == [(2, 24), (2, 25)]
    assert [list(of) for of in members] == [[0], [1]] and not invalid
    buckets, _, invalid = assign(numbers([1], [99]), rows, "i2v", **options)
    assert [bucket.length for bucket in buckets] == [64] and not invalid, "its caption is cut"
