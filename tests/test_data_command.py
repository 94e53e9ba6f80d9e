"""`tuna-jax data`: a folder becomes a manifest, a page says what is in a source, any source becomes ArrayRecord."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures import formats
from tuna_jax.cli import config_flags
from tuna_jax.cli.main import main
from tuna_jax.config import from_dict
from tuna_jax.data import convert_source
from tuna_jax.data.inspection import inspect, language
from tuna_jax.data.invalid_examples import InvalidExamples, TooManyInvalidExamples
from tuna_jax.data.mixture import scan
from tuna_jax.data.sources.open import open_source
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.trainers import build_mixture
from tuna_jax.trainers.config import MultitaskExperiment
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.text_files import read_json


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def pictures(module_files):
    """A folder of ten pictures with captions, of which two are odd, and its manifest."""
    folder = module_files.root / "pictures"
    for i in range(10):
        name = module_files.image(f"pictures/{'ab'[i % 2]}/no_{i}.png", 40, 40 + 20 * (i % 3))
        (module_files.root / name).with_suffix(".txt").write_text(f"the picture number {i}\n")
    (folder / "a" / "no_4.png").write_bytes(b"<html>")
    (folder / "b" / "no_5.txt").unlink()
    manifest = module_files.root / "lists" / "pictures.jsonl"
    assert main(["data", "list", str(folder), f"--output={manifest}"]) == 0
    return folder, manifest


def test_a_folder_becomes_a_manifest(pictures, tmp_path, capsys) -> None:
    folder, manifest = pictures
    rows = [json.loads(line) for line in manifest.open()]
    assert [row["image"][-8:-4] for row in rows] == [
        f"no_{i}" for i in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    ]
    assert rows[1]["caption"] == "the picture number 2"
    assert "caption" not in rows[7]
    assert open_source(manifest)[0].media[0].is_file(), "names are relative to the manifest"
    for captions, text in (("names", "no 0"), ("folders", "a")):
        given = [
            "data",
            "list",
            str(folder),
            f"--output={tmp_path / 'm.jsonl'}",
            f"--captions={captions}",
        ]
        assert main(given) == 0
        assert json.loads((tmp_path / "m.jsonl").open().readline())["caption"] == text
    assert main(["data", "list", str(tmp_path), f"--output={tmp_path / 'n.jsonl'}"]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_the_page_says_what_is_in_a_source(pictures, tmp_path, capsys) -> None:
    _, manifest = pictures
    page, numbers = tmp_path / "page.html", tmp_path / "page.json"
    assert main(["data", "inspect", str(manifest), f"--output={page}", f"--json={numbers}"]) == 0
    found = read_json(numbers)
    assert (found["examples"], found["looked_at"]) == (10, 10)
    assert found["kinds"] == [{"label": "image_caption", "count": 8, "share": 1.0}]
    assert found["tasks"] == {"t2i": 8, "understand": 8}
    assert {kind: count for kind, (count, _) in found["invalid"].items()} == {
        "corrupt_image": 1,
        "unknown_format": 1,
    }
    assert found["invalid"]["corrupt_image"][1][0][0] == 3
    assert found["widths"] == [{"label": "below 64", "count": 8, "share": 1.0}]
    assert sum(bar["count"] for bar in found["tokens"]) == 8
    assert found["languages"] == [{"label": "English", "count": 8, "share": 1.0}]
    text = page.read_text()
    assert text.count("data:image/png") == 8, "a contact sheet of the valid ones"
    assert "no_4.png" in text and "web page" in text
    assert "8" in capsys.readouterr().out


def test_inspection_names_broken_files_and_large_row_groups(tmp_path, tokenizer) -> None:
    table = pa.table({"caption": ["ein Bild und der Rest"] * 20, "image": [b"x"] * 20})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    found = inspect(open_source(tmp_path), tokenizer, rows=7)
    assert (found.examples, found.looked_at) == (21, 7)
    assert any("b.parquet" in notice for notice in found.notices)
    assert any("20 rows" in notice and "convert" in notice for notice in found.notices)


@pytest.mark.parametrize(
    ("text", "name"),
    [("a photo of the sea", "English"), ("das Bild ist nicht groß", "German"), ("这是一张图片", "Chinese"),
     ("これは写真です", "Japanese"), ("это фото", "Cyrillic script"), ("", "no words")],
)  # fmt: skip
def test_languages_are_guessed(text, name) -> None:
    assert language(text) == name


def test_a_conversion_resumes_and_is_shared_byte_for_byte(pictures, tmp_path, monkeypatch) -> None:
    _, manifest = pictures
    source = open_source(manifest)
    options = {"shard_rows": 3, "invalid_examples": InvalidExamples(limit=0.5), "progress": False}
    whole = tmp_path / "whole"
    counts = convert_source.convert(source, whole, **options)
    assert counts == {"rows": 8, "corrupt_image": 1, "unknown_format": 1}
    for host in (1, 0):
        options["invalid_examples"] = InvalidExamples(limit=0.9)
        convert_source.convert(
            source, tmp_path / "shared", process_index=host, process_count=2, **options
        )
    assert content(tmp_path / "shared") == content(whole)

    killed, calls = tmp_path / "killed", []
    real = convert_source._records

    def dies(source, number, smallest):
        calls.append(number)
        if number == 5:
            raise KeyboardInterrupt
        return real(source, number, smallest)

    monkeypatch.setattr(convert_source, "_records", dies)
    with pytest.raises(KeyboardInterrupt):
        convert_source.convert(source, killed, **options, threads=1)
    with pytest.raises(FileNotFoundError, match="run the same"):
        open_source(killed)
    monkeypatch.setattr(convert_source, "_records", real)
    options["invalid_examples"] = InvalidExamples(limit=0.5)
    assert convert_source.convert(source, killed, **options)["rows"] == 6, "the first shard stays"
    assert content(killed) == content(whole)
    with pytest.raises(ValueError, match=r"shard_rows.*another folder"):
        convert_source.convert(source, killed, **{**options, "shard_rows": 4})


def test_converted_examples_are_the_same(module_files, tmp_path) -> None:
    """Conversations with a system sentence, context turns, words that look like tags, clips and edits."""
    files = module_files
    image, clip = files.image("i.png", 40, 40), files.video("c.mp4", 48, 64, frames=5)
    turns = [{"from": "human", "value": r"<video> is no \<video> and no <image>"},
             {"from": "gpt", "value": "no", "loss": False}, {"from": "human", "value": "so?"},
             {"from": "gpt", "value": "yes"}]  # fmt: skip
    rows = [
        {"video": clip, "conversations": turns, "system": "be kind"},
        {
            "image": [image, image],
            "conversations": [{"from": "human", "value": r"<image><image> \<image>"}, turns[3]],
        },
        {"raw_image": image, "out_image": image, "instruction": "nothing"},
        {"conversations": turns[2:]},
        {"image": image, "caption": "ä 🦊"},
    ]
    rows[0]["conversations"][0]["value"] = r"<video> is no \<video>"
    source = open_source(files.manifest("mixed.jsonl", rows))
    assert main(["data", "convert", str(source.path), str(tmp_path / "r"), "--shard_rows=2"]) == 0
    again = open_source(tmp_path / "r")
    assert len(again) == len(rows)
    for i in range(len(rows)):
        mine, theirs = again[i], source[i]
        assert (mine.kind, mine.text, mine.turns) == (theirs.kind, theirs.text, theirs.turns)
        assert mine.media == tuple(path.read_bytes() for path in theirs.media)
    assert [str(again.outline(i).size) for i in range(5)] == [
        "48x64",
        "40x40",
        "40x40",
        "None",
        "40x40",
    ]


def test_many_invalid_examples_end_a_conversion(tmp_path) -> None:
    rows = [{"image": f"{i}.png", "caption": "not there"} for i in range(4)]
    source = open_source(formats.write_json(tmp_path / "m.jsonl", rows))
    with pytest.raises(TooManyInvalidExamples, match="missing_file"):
        convert_source.convert(source, tmp_path / "out", progress=False)


def test_pixels_of_a_source_are_stored_without_loss(tmp_path) -> None:
    pixels = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)

    from tuna_jax.data.media.image import Size, read_image
    from tuna_jax.data.sources.base import Example

    row = convert_source.row_of(Example("image_caption", (pixels,), "s", 1, "text"))
    np.testing.assert_array_equal(read_image(row["image"], Size(40, 50)), pixels)


def test_a_scan_is_where_the_run_of_the_experiment_looks(pictures, tmp_path, capsys, monkeypatch):
    """All of it, also if the run begins on a part; and of experiments with sources only."""
    _, manifest = pictures
    config = "--config=experiments/tuna/tuna_1p5b_stage1.py"
    streams = ("draw", "describe")
    given = [f"--config.data.streams.{name}.manifest={manifest}" for name in streams]
    given += [f"--config.data.index={tmp_path}", "--config.data.streams.draw.part_rows=3"]
    assert main(["data", "scan", config, *given]) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[1].startswith("draw: 8 of 10 examples can be used; invalid: 1 corrupt_image")
    assert len(lines) == len(streams) == len(list(tmp_path.glob("scan-*.safetensors")))

    values = config_flags.read(config.partition("=")[2], given)
    settings = parse(MultitaskExperiment, values)
    monkeypatch.setattr(scan._Reader, "read", None)  # What was scanned is not read again.
    mixture = build_mixture.open_mixture(
        dataclasses.replace(settings.data, max_invalid_fraction=0.5), from_dict(settings.model),
        Tokenizer(), InvalidExamples(limit=0.5), scans={},
    )  # fmt: skip
    assert mixture.parts == {"draw": 3}

    assert main(["data", "scan", "--config=experiments/emoji/demo.py"]) == 1
    assert "multitask" in capsys.readouterr().err
