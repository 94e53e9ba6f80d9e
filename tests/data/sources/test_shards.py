"""Thousands of shards with few open files; shards that are cut or damaged; indexes of other data; missing columns."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.fixtures import formats
from tuna_jax.data.invalid_examples import InvalidExample
from tuna_jax.data.media.image import Encoded, Size
from tuna_jax.data.precompute_latents import EncodedExample, write_records
from tuna_jax.data.shard_writing import write_marker
from tuna_jax.data.sources.open import open_source
from tuna_jax.data.sources.precomputed_latents import SETTINGS_FILE, LatentExamples
from tuna_jax.data.sources.reader_pool import MOST_OPEN
from tuna_jax.data.sources.shards import shard_name

MANY = 5000  # Real files; reading 600 examples of them at random opens most of the pool many times.
KINDS = ("parquet", "webdataset", "array_record", "latents")
SUFFIX = {
    "parquet": "parquet",
    "webdataset": "tar",
    "array_record": "array_record",
    "latents": "array_record",
}


def latents(folder, shards, rows=3):
    """Shards of latents; the mean of row i of the manifest is i in 2 channels."""
    folder.mkdir()
    for shard in range(shards):
        examples = [
            EncodedExample(
                line + 1,
                json.dumps({"image": "a.png", "caption": f"number {line}"}),
                Size(32, 32),
                1,
                np.full((2, 1, 1, 2, 2, 2), line, ml_dtypes.bfloat16),
            )
            for line in range(shard * rows, (shard + 1) * rows)
        ]
        file = folder / f"{shard_name(shard, shards)}.array_record"
        write_marker(file.with_suffix(".json"), write_records(file, examples), [])
    settings = {"vae_fingerprint": "v", "frames": 1, "fps": None, "shards": shards}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def first_shards(module_files):
    """Kind -> a folder with three shards of three rows."""
    root, folders = module_files.root, {}
    rows = [
        {"image": module_files.image(f"{i}.png", 40, 40 + i), "caption": f"number {i}"}
        for i in range(9)
    ]
    for number in range(3):
        part = rows[3 * number : 3 * number + 3]
        formats.write_parquet(root / "parquet" / f"{number}.parquet", part, root)
        formats.write_tar(root / "webdataset" / f"{number}.tar", part, root, 3 * number)
        formats.write_records(root / "array_record" / f"{number}.array_record", part, root)
    for kind in KINDS:
        folders[kind] = root / kind
    latents(folders["latents"], 3)
    return folders


def opened(kind, folder, index):
    return LatentExamples(folder) if kind == "latents" else open_source(folder, index=index)


def open_files(folder) -> int:
    """How many files of a folder this process has open."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(folder))
        except OSError:
            continue  # It was closed meanwhile.
    return count


def read(source, index):
    example = source[index]
    (medium,) = example.media
    return example.text, medium.read() if isinstance(medium, Encoded) else medium


@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_shards_are_read_with_few_open_files(first_shards, kind, tmp_path) -> None:
    """Every shard is another file with the content of the first one."""
    folder, suffix = tmp_path / "many", SUFFIX[kind]
    folder.mkdir()
    original = first_shards[kind] / (
        f"{shard_name(0, 3)}.array_record" if kind == "latents" else f"0.{suffix}"
    )
    for shard in range(MANY):
        name = shard_name(shard, MANY)
        shutil.copyfile(original, folder / f"{name}.{suffix}")
        if kind == "latents":
            shutil.copyfile(original.with_suffix(".json"), folder / f"{name}.json")
    if kind == "latents":
        settings = {"vae_fingerprint": "v", "frames": 1, "fps": None, "shards": MANY}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings))
    source = opened(kind, folder, tmp_path / "index")
    assert len(source) == 3 * MANY
    most = 0

    def look(index):
        nonlocal most
        text, _ = read(source, index)
        assert text == f"number {index % 3}"
        if index % 11 == 0:
            most = max(most, open_files(folder))

    order = np.random.default_rng(0).permutation(3 * MANY)[:600].tolist()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, order))
    assert MOST_OPEN / 2 < most <= MOST_OPEN


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut", "page"], ids=["cut", "a-web-page-in-its-place"])
def test_a_shard_that_is_damaged_is_named_and_its_rows_are_invalid(
    first_shards, kind, damage, tmp_path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(first_shards[kind], folder)
    (shard,) = folder.glob(f"*1*.{SUFFIX[kind]}" if kind != "latents" else "00001-*.array_record")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2 - 200] if damage == "cut" else b"<html>not found")
    source = opened(kind, folder, tmp_path / "index")
    texts, invalid = [], []
    for index in range(len(source)):
        try:
            texts.append(read(source, index)[0])
        except InvalidExample as example:
            invalid.append(example)
    others = [f"number {i}" for i in (0, 1, 2, 6, 7, 8)]
    assert [text for text in texts if text in others] == others, "the others are read"
    assert invalid and {example.kind for example in invalid} == {"corrupt_shard"}
    for example in invalid:
        assert shard.name in example.reason, "the shard is named"
        assert "again" in example.reason or "download" in example.reason, "and the mend"


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_gone_later_is_a_missing_file(first_shards, kind, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(first_shards[kind], folder)
    source = opened(kind, folder, tmp_path / "index")
    (shard,) = folder.glob(f"*1*.{SUFFIX[kind]}" if kind != "latents" else "00001-*.array_record")
    shard.unlink()
    with pytest.raises(InvalidExample, match=shard.name) as raised:
        read(source, 4)
    assert raised.value.kind == "missing_file"
    assert read(source, 7)[0] == "number 7"


def test_the_list_of_a_shard_of_latents_that_is_damaged_is_named(first_shards, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(first_shards["latents"], folder)
    file = folder / f"{shard_name(2, 3)}.json"
    content = file.read_bytes()
    for damaged in (content[:20], b'{"rows": 1}', content.replace(b'"rows": 3', b'"rows": 4')):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{file.name} is damaged.*remove it"):
            LatentExamples(folder)


def test_an_index_of_tars_that_belongs_to_other_data_is_named(first_shards, tmp_path) -> None:
    folder, index = tmp_path / "copy", tmp_path / "index"
    shutil.copytree(first_shards["webdataset"], folder)
    first = opened("webdataset", folder, index)
    kept = {path.name: path.read_bytes() for path in index.glob("tars-*")}
    other = folder / "1.tar"
    content = other.read_bytes()
    other.write_bytes(content[: len(content) // 2])
    changed = opened("webdataset", folder, index)
    assert changed.identity != first.identity, "other data have another index"
    (mine,) = [path for path in index.glob("tars-*") if path.name not in kept]
    mine.write_bytes(next(iter(kept.values())))
    with pytest.raises(ValueError, match=f"{mine.name} belongs to other data.*remove it"):
        opened("webdataset", folder, index)


def test_a_column_that_is_missing_in_one_file_is_named(first_shards, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(first_shards["parquet"], folder)
    pq.write_table(pa.table({"image": [b"x"], "text": ["a"]}), folder / "7.parquet")
    with pytest.raises(ValueError, match=r"7\.parquet has no column 'caption'.*image, text"):
        open_source(folder)
    with pytest.raises(ValueError, match=r"'captoin'|captoin"):
        open_source(first_shards["parquet"], fields={"caption": "captoin"})


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "array_record"])
def test_a_byte_that_changed_anywhere_is_found_when_it_is_asked_for(kind, tmp_path) -> None:
    """A byte between the samples by which a file is recognised."""
    index, rows = tmp_path / "index", [{"image": "noise.png", "caption": "noise"}] * 6
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    write = {"parquet": formats.write_parquet, "webdataset": formats.write_tar}
    file = tmp_path / "data" / f"0.{SUFFIX[kind]}"
    write.get(kind, formats.write_records)(file, rows, tmp_path)
    for _ in range(2):
        source = open_source(file, index=index, verify=True)
    known, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2 + 20_000] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert open_source(file, index=index).identity == source.identity, "it is not looked at whole"
    with pytest.raises(ValueError, match=f"1 of 1 files.*{file.name}.*download"):
        open_source(file, index=index, verify=True)
