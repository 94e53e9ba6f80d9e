"""One small data set of the emoji world in every format: the same batches from each, to the bit."""

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.fixtures import formats
from tests.fixtures.bucket_emulator import BUCKET, emulated
from tuna_jax.data.invalid_examples import InvalidExample, InvalidExamples
from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.mixture import Mixture
from tuna_jax.data.mixture.scan import scan
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.sources import fields as field_maps
from tuna_jax.data.sources import parquet
from tuna_jax.data.sources.fields import FieldMap
from tuna_jax.data.sources.open import kind_of, open_source
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji.world.nouns import NOUNS
from tuna_jax.emoji.world.rendering import default_art, paste
from tuna_jax.emoji.world.scenes import GROUNDS
from tuna_jax.utils import buckets

SIZES = (Size(32, 32), Size(32, 48))
KINDS = ("lines", "array", "parquet", "webdataset", "array_record", "bucket")
COUNT = 10


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer("emoji")


def picture(index, ground, width=64):
    pixels = np.full((64, width, 3), GROUNDS[ground], np.uint8)
    paste(pixels, default_art(), NOUNS[index].singular, 12, 12, 40)
    return pixels


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """The address of a bucket on the loopback interface."""
    with emulated() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("TUNA_JAX_DATA", str(tmp_path_factory.mktemp("data")))
        yield f"gs://{BUCKET}"


@pytest.fixture(scope="module")
def world(module_files, emulator):
    """(folder, task -> kind of source -> its name); row 3 of each has an image that is cut."""
    root, grounds = module_files.root, list(GROUNDS)
    rows = {"t2i": [], "understand": [], "edit": [], "edit_of_two": [], "chat": [], "t2v": []}
    for i in range(COUNT):
        name, suffix = NOUNS[i].singular, (".jpg", ".png")[i % 2]
        for number, ground in enumerate((grounds[i % 8], grounds[(i + 3) % 8])):
            file = root / f"{i}_{number}{suffix}"
            Image.fromarray(picture(i, ground, 64 + 32 * (i % 3 == 0))).save(file)
            if i == 3:
                file.write_bytes(file.read_bytes()[:60])
        before, after = f"{i}_0{suffix}", f"{i}_1{suffix}"
        turns = [
            {"from": "human", "value": "<image><image>what is this?"},
            {"from": "gpt", "value": name},
        ]
        rows["t2i"].append({"image": before, "caption": f"a {name} on {grounds[i % 8]}"})
        rows["understand"].append({"image": [before, after], "conversations": turns})
        rows["edit"].append(
            {"raw_image": before, "out_image": after, "instruction": f"make it {name}"}
        )
        rows["edit_of_two"].append({**rows["edit"][-1], "raw_image": [before, after]})
        rows["chat"].append(
            {"conversations": [{**turns[0], "value": "what?"}, turns[1]], "system": "be brief"}
        )
    for i in range(4):
        rows["t2v"].append(
            {"video": module_files.video(f"{i}.mp4", 48, 48, frames=6 + i), "caption": f"clip {i}"}
        )
    sources = {task: formats.write_all(root / "out", task, of, root) for task, of in rows.items()}
    bucket = buckets.file_system()
    for file in root.iterdir():
        if file.is_file():
            bucket.pipe_file(f"{emulator}/data/{file.name}", file.read_bytes())
    for task, named in sources.items():
        named["bucket"] = f"{emulator}/data/{task}.jsonl"
    return root, sources


def mixture(root, source, task, tokenizer, log=None):
    frames = 5 if task in ("t2v", "i2v") else 1
    slots = {"understand": 2, "edit": 2, "i2v": 2, "edit_of_two": 3}.get(task, 1)
    stream = ExampleStream(
        name="s", task="edit" if slots == 3 else task, source=source, weight=1.0, rows=4, lengths=(64,),
        frames=frames, sizes=None if task == "chat" else SIZES, slots=(slots,),
    )  # fmt: skip
    invalid = InvalidExamples(log, limit=0.5)
    return Mixture([stream], tokenizer, seed=3, directory=root / "cache", invalid_examples=invalid)


@pytest.mark.filterwarnings("ignore:.*is not in the compact vocabulary")
@pytest.mark.parametrize("task", ["t2i", "understand", "edit", "edit_of_two", "chat", "t2v", "i2v"])
def test_every_format_gives_the_same_batches(world, tokenizer, task) -> None:
    root, sources = world
    expected, invalid = None, set()
    rows_of = {"i2v": "t2v"}
    for kind in KINDS:
        source = open_source(sources[rows_of.get(task, task)][kind], index=root / "indexes")
        source = pickle.loads(pickle.dumps(source))  # As a worker process gets it.
        assert len(source) == (4 if task in ("t2v", "i2v") else COUNT)
        mixed = mixture(root, source, task, tokenizer)
        got = [mixed[n] for n in range(4)]
        invalid.add(tuple(sorted(mixed.invalid_examples.counts().items())))
        expected = expected or got
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.keys() == theirs.keys()
            for key in mine:
                np.testing.assert_array_equal(mine[key], theirs[key], err_msg=f"{kind} {key}")
    wanted = () if task in ("chat", "t2v", "i2v") else (("corrupt_image", 1),)
    assert invalid == {wanted}


def test_objects_that_are_missing_replaced_or_out_of_reach(
    world, emulator, tokenizer, tmp_path, monkeypatch
) -> None:
    """A missing object is an invalid example; a bucket that cannot be read ends the run, and is no row's fault."""
    bucket, folder = buckets.file_system(), f"{emulator}/odd"
    rows = [{"image": name, "caption": "a"} for name in ("1_0.png", "no.png", f"{folder}/x.png")]

    def written(listed):
        bucket.pipe_file(
            f"{folder}/m.jsonl", "".join(json.dumps(r) + "\n" for r in listed).encode()
        )
        return open_source(f"{folder}/m.jsonl", image_root=f"{emulator}/data")

    bucket.pipe_file(f"{folder}/x.png", (world[0] / "1_1.png").read_bytes())
    source = written(rows)
    assert str(source[2].media[0]) == f"{folder}/x.png"
    found = scan(source, "t2i", tokenizer, directory=tmp_path)
    assert {number: example.kind for number, example in found.invalid.items()} == {
        1: "missing_file"
    }
    assert "gs://bucket/data/no.png" in found.invalid[1].reason
    again = written(rows[:2])
    assert len(again) == 2 and again.identity != source.identity
    with pytest.raises(FileNotFoundError, match="gs://bucket/odd/none.jsonl"):
        open_source(f"{folder}/none.jsonl")
    with pytest.raises(ValueError, match=r"gs://bucket/a\.tar.*mount"):
        open_source("gs://bucket/a.tar")
    monkeypatch.setattr("gcsfs.core.GCSFileSystem.retries", 1)
    monkeypatch.setattr("gcsfs.GCSFileSystem._call", unreachable)
    with pytest.raises(
        OSError, match=r"m\.jsonl, line 1: gs://bucket/data/1_0\.png cannot be read"
    ):
        scan(again, "t2i", tokenizer, directory=tmp_path)


async def unreachable(*arguments, **named):
    raise ValueError("the bucket answers with nonsense")


def test_identities_differ_with_content_and_key_map(world) -> None:
    root, sources = world
    for kind in KINDS:
        first = open_source(sources["t2i"][kind], index=root / "indexes")
        again = open_source(sources["t2i"][kind], index=root / "indexes")
        mapped = open_source(
            sources["t2i"][kind], fields={"instruction": ""}, index=root / "indexes"
        )
        other = open_source(sources["chat"][kind], index=root / "indexes")
        assert first.identity == again.identity
        assert len({first.identity, mapped.identity, other.identity}) == 3


def test_a_key_map_finds_other_keys(module_files, tmp_path) -> None:
    """Of Show-o2's rows in JSON, of a table with deeper values, and of a tar with other suffixes."""
    files = module_files
    image = files.image("m.png", 40, 60)
    lines = files.manifest("showo.jsonl", [{"path": image, "prompt": "a", "id": 1}])
    by_map = open_source(lines, fields={"image": "path", "caption": "prompt"})[0]
    by_preset = open_source(lines, preset="show-o2")[0]
    assert by_map.media == by_preset.media == (files.root / image,)
    assert by_map.text == by_preset.text == "a"
    assert by_map.ignored == by_preset.ignored == ("id",)
    table = {
        "photo": [{"bytes": b"x", "path": None}],
        "texts": [["one", "two"]],
        "w": [60],
        "h": [40],
        "n": [7],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    maps = {"image": "photo", "caption": "texts.1", "width": "w", "height": "h", "tokens": "n"}
    example = open_source(tmp_path / "a.parquet", fields=maps)[0]
    assert (example.media, example.text) == ((b"x",), "two")
    assert (example.size, example.tokens, example.ignored) == (Size(40, 60), 7, ())
    row = {"image": image, "caption": "short"}
    formats.write_tar(tmp_path / "a.tar", [row | {"long": "a longer text"}], files.root)
    source = open_source(tmp_path / "a.tar", fields={"caption": "long"}, index=tmp_path)
    assert source[0].text == "a longer text"


def test_presets_are_the_keys_of_public_code(module_files, tmp_path) -> None:
    files = module_files
    images = [(files.root / files.image(f"p{i}.png", 40, 40 + i)).read_bytes() for i in range(3)]
    texts = json.dumps({"0": "first", "1": "second"})
    pq.write_table(
        pa.table({"image": [images[0]] * 3, "captions": [texts] * 3}), tmp_path / "t2i.parquet"
    )
    source = open_source(tmp_path / "t2i.parquet", preset="bagel")
    assert [source[i].text for i in range(3)] == ["first", "second", "first"]
    edit = {
        "image_list": [images, images],
        "instruction_list": [[["a", "b"], ["c"]], [["d"], ["e"]]],
    }
    pq.write_table(pa.table(edit), tmp_path / "edit.parquet")
    source = open_source(tmp_path / "edit.parquet", preset="bagel")
    assert (source[0].media, source[0].text) == (tuple(images[:2]), "a")
    assert (source[1].media, source[1].text) == (tuple(images[1:]), "e")
    turns = [
        {"from": "bing", "value": "lost"},
        {"from": "human", "value": "Q"},
        {"from": "chatgpt", "value": "A"},
    ]
    manifest = files.manifest("sharegpt.jsonl", [{"id": "a", "conversations": turns}])
    roles = [(turn.role, turn.text) for turn in open_source(manifest, preset="sharegpt")[0].turns]
    assert roles == [("user", "Q"), ("assistant", "A")]
    assert set(field_maps.PRESETS) == {"tuna-2", "llava", "sharegpt", "bagel", "show-o2"}


def test_a_row_that_says_its_size_is_not_opened_by_the_scan(tokenizer, tmp_path) -> None:
    """The images are no images, so a scan that opened them would find that."""
    count = 6
    table = {
        "image": [b"no image"] * count,
        "caption": ["a cat"] * count,
        "width": [40 + i for i in range(count)],
        "height": [60] * (count - 1) + [3],
        "tokens": [5] * count,
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=2)
    maps = {"width": "width", "height": "height", "tokens": "tokens"}
    source = open_source(tmp_path / "a.parquet", fields=maps)
    found = scan(source, "t2i", tokenizer, directory=tmp_path)
    assert found.width[:-1].tolist() == [40, 41, 42, 43, 44]
    assert found.text[:-1].tolist() == [9] * 5
    assert [example.kind for example in found.invalid.values()] == ["tiny_image"]
    plain = scan(open_source(tmp_path / "a.parquet"), "t2i", tokenizer, directory=tmp_path)
    assert len(plain.invalid) == count, "without the map the columns are not trusted"


def test_few_row_groups_stay_in_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet, "_CACHE", 5000)
    table = {
        "image": [bytes([i]) * 1000 for i in range(12)],
        "caption": [str(i) for i in range(12)],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=2)
    source = open_source(tmp_path / "a.parquet")
    for index in [*range(12), 0, 11, 5]:
        assert source[index].media == (bytes([index]) * 1000,)
    assert len(source._cache._kept) <= 3


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jsonl", "json"), ("b.json", "json"), ("{0..2}.tar", "webdataset"), ("*.parquet", "parquet"),
     ("x-{a,b}.array_record", "array_record"), ("a.parquet,b.parquet", "parquet")],
)  # fmt: skip
def test_the_kind_follows_from_the_name(name, kind) -> None:
    assert kind_of(name) == kind


def test_unknown_keys_formats_and_kinds_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="'captoin'.*did you mean 'caption'"):
        FieldMap({"captoin": "a"})
    with pytest.raises(ValueError, match="'lava'.*llava"):
        FieldMap(preset="lava")
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        open_source(tmp_path / "nothing.csv")
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match=r"a\.csv.*\.parquet"):
        open_source(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match=r"9\.tar.*2 of 3"):
        (tmp_path / "8.tar").touch()
        open_source(str(tmp_path / "{8..10}.tar"))
    with pytest.raises(ValueError, match=r"8\.tar twice"):
        open_source(f"{tmp_path}/8.tar,{tmp_path}/*.tar")


def test_pictures_of_a_tar_keep_their_bytes(world) -> None:
    root, sources = world
    source = open_source(sources["t2i"]["webdataset"], index=root / "indexes")
    (content,) = source[0].media
    assert content == (root / "0_0.jpg").read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.size == (96, 64)
    with pytest.raises(InvalidExample):
        scanned = open_source(sources["t2i"]["lines"], fields={"caption": "nothing"})
        scanned[0]
