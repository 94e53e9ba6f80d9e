"""Manifests: the formats, random access by byte offsets, and invalid examples."""

import pickle

import pytest

from tuna_jax.data.invalid_examples import InvalidExample
from tuna_jax.data.sources.base import Turn
from tuna_jax.data.sources.jsonl import Manifest

TALK = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": " a dog "}]
PLAIN = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
ROWS = [
    {"image": "a.jpg", "caption": " a dog "},
    {"image": "a.jpg", "conversations": TALK},
    {"conversations": PLAIN},
    {"raw_image": "a.jpg", "out_image": "/b.jpg", "instruction": "make it red"},
    {"video": "a.mp4", "caption": "a dog runs"},
    {"video": "a.mp4", "conversations": TALK},
]
KINDS = ["image_caption", "image_chat", "chat", "edit", "video_caption", "video_chat"]


def test_the_formats_are_recognised_by_their_keys(files) -> None:
    examples = list(Manifest(files.manifest("all.jsonl", ROWS), files.root / "images"))
    assert [row.kind for row in examples] == KINDS
    assert examples[0].media == (files.root / "images" / "a.jpg",)
    assert examples[0].text == "a dog"
    assert examples[1].turns == (Turn("user", "<image>\nwhat?"), Turn("assistant", "a dog"))
    assert examples[2].media == ()
    assert [str(path) for path in examples[3].media] == [str(files.root / "images/a.jpg"), "/b.jpg"]
    assert examples[3].text == "make it red"
    assert [row.line for row in examples] == [1, 2, 3, 4, 5, 6]
    assert {row.source for row in examples} == {str(files.root / "all.jsonl")}


def test_any_example_is_read_directly_and_empty_lines_are_skipped(files) -> None:
    path = files.root / "odd.jsonl"
    lines = [f'{{"image": "{i}.jpg", "caption": "é {i}"}}' for i in range(300)]
    path.write_bytes("\r\n\n".join(lines).encode())  # CRLF line ends, none after the last line
    manifest = Manifest(path)
    assert len(manifest) == 300
    for index in (299, 0, 150):
        row = manifest[index]
        assert (row.text, row.line) == (f"é {index}", 2 * index + 1)
        assert row.media == (files.root / f"{index}.jpg",)
    with pytest.raises(IndexError):
        manifest[300]
    again = pickle.loads(pickle.dumps(manifest))
    assert again[7] == manifest[7]


def test_lines_are_found_across_chunks(files, monkeypatch) -> None:
    monkeypatch.setattr("tuna_jax.data.sources.line_index._CHUNK", 7)
    manifest = Manifest(files.manifest("all.jsonl", ROWS))
    assert [row.kind for row in manifest] == KINDS


def test_the_identity_depends_on_content_and_root(files) -> None:
    first = Manifest(files.manifest("a.jsonl", ROWS))
    assert Manifest(files.manifest("b.jsonl", ROWS)).identity == first.identity
    assert Manifest(files.manifest("c.jsonl", ROWS[:2])).identity != first.identity
    assert Manifest(files.root / "a.jsonl", files.root / "x").identity != first.identity


def test_several_images_replace_their_tags(files) -> None:
    turns = [
        {"role": "user", "content": "<image> and <image>?"},
        {"role": "assistant", "content": "Both."},
    ]
    path = files.manifest("m.jsonl", [{"image": ["a.png", "b.png"], "conversations": turns}])
    assert len(Manifest(path)[0].media) == 2


def test_an_edit_may_have_several_sources(files) -> None:
    row = {"raw_image": ["a.png", "b.png"], "out_image": "c.png", "instruction": "both"}
    manifest = Manifest(files.manifest("m.jsonl", [row, {**row, "raw_image": "a.png"}]))
    assert [path.name for path in manifest[0].media] == ["a.png", "b.png", "c.png"]
    assert [path.name for path in manifest[1].media] == ["a.png", "c.png"]


def test_the_assistant_may_have_images_anywhere(files) -> None:
    rows = [{"image": "a", "conversations": [*ASSISTANT_IMAGE, *PLAIN]}]
    assert len(Manifest(files.manifest("m.jsonl", rows))[0].turns) == 4


def test_images_without_tags_come_first_and_video_tags_are_recognised(files) -> None:
    clip = [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "a dog"}]
    examples = [
        {"image": "a.png", "conversations": PLAIN},
        {"video": "a.mp4", "conversations": clip},
    ]
    manifest = Manifest(files.manifest("m.jsonl", examples))
    assert manifest[0].turns[0].text == "<image>\nhi"
    assert manifest[1].turns[0].text == "<image>\nwhat?"


ASSISTANT_IMAGE = [{"from": "human", "value": "draw"}, {"from": "gpt", "value": "Here. <image>"}]


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ('{"image": "a.jpg", "caption": ', "malformed_json", "line 1 column"),
        ("[1, 2]", "malformed_json", "list"),
        ({"picture": "a.jpg"}, "unknown_format", "picture"),
        ({"image": "a.jpg"}, "unknown_format", "caption or conversations"),
        ({"image": 3, "caption": "x"}, "unknown_format", "image is 3"),
        ({"image": "a.jpg", "caption": "  "}, "empty_text", "caption"),
        ({"image": "a.jpg", "caption": None}, "empty_text", "caption"),
        ({"image": "a.jpg", "caption": ["x"]}, "unknown_format", "caption is a list"),
        ({"raw_image": "a", "out_image": "b", "instruction": ""}, "empty_text", "instruction"),
        ({"conversations": PLAIN[:1]}, "empty_text", "assistant"),
        ({"conversations": [*PLAIN, {"from": "gpt", "value": ""}]}, "empty_text", r"\[2\]"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "unknown_format", "'bot'"),
        ({"conversations": TALK}, "wrong_image_count", "1 <image> tags for 0"),
        ({"image": ["a", "b"], "conversations": TALK}, "wrong_image_count", "1 <image> tags for 2"),
        ({"image": ["a", "b"], "caption": "x"}, "wrong_image_count", "not to 2"),
        ({"raw_image": "a", "out_image": ["b", "c"], "instruction": "x"}, "wrong_image_count", "one out_image, not 2"),
    ],
)  # fmt: skip
def test_invalid_examples_are_named(files, row, kind, words) -> None:
    manifest = Manifest(files.manifest("bad.jsonl", [ROWS[0], row]))
    with pytest.raises(InvalidExample, match=words) as raised:
        manifest[1]
    assert raised.value.kind == kind
    assert raised.value.line == 2
    assert "bad.jsonl, line 2" in str(raised.value)
    assert manifest[0].kind == "image_caption"


def test_a_missing_or_empty_manifest_is_named(files) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        Manifest(files.root / "none.jsonl")
    with pytest.raises(ValueError, match=r"empty\.jsonl"):
        Manifest(files.manifest("empty.jsonl", []))
