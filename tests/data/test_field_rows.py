"""What people's manifests hold: one odd row never stops a run, and none is lost without a word."""

import base64
import errno
import json
import os

import numpy as np
import pytest

from tuna_jax.data.invalid_examples import InvalidExamples, TooManyInvalidExamples
from tuna_jax.data.media import image as images
from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.mixture import Mixture
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.sources.base import Turn
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import IGNORE
from tuna_jax.utils import regular_files

pytestmark = pytest.mark.filterwarnings("ignore:.*is not in the compact vocabulary")
GOOD = {"image": "a.png", "caption": "a red apple"}
TALK = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a dog"}]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer("emoji")


def mixture(files, path, tokenizer, task="t2i", limit=0.05, name="invalid.jsonl", **options):
    """The mixture of one manifest, a batch of which is read."""
    invalid = InvalidExamples(files.root / name, limit=limit)
    sizes = None if task == "chat" else (Size(32, 32),)
    stream = ExampleStream(name="s", task=task, source=Manifest(path), weight=1.0, rows=2,
                           lengths=(64,), sizes=sizes)  # fmt: skip
    made = Mixture(
        [stream], tokenizer, invalid_examples=invalid, directory=files.root / "cache", **options
    )
    made[0]
    return made


def listed(files, name="invalid.jsonl"):
    path = files.root / name
    if not path.exists():
        return []
    content = path.read_bytes().decode()  # It is UTF-8, whatever the rows hold.
    return [json.loads(line) for line in content.split("\n") if line]


ODD_ROWS = {
    "half of a surrogate pair": ('{"image": "a.png", "caption": "a \\ud83d on blue"}', "invalid_text"),
    "bytes of such a half": (b'{"image": "a.png", "caption": "a \xed\xa0\xbd"}', "malformed_json"),
    "surrogate in a name": ('{"image": "a\\ud83d.png", "caption": "x"}', "invalid_text"),
    "a byte that is not UTF-8 in a name": ('{"image": "a\\udce9.png", "caption": "x"}', "missing_file"),
    "NUL in a name": ('{"image": "a\\u0000.png", "caption": "x"}', "missing_file"),
    "a loop": ({"image": "loop.png", "caption": "x"}, "missing_file"),
    "a long name": ({"image": "x" * 5000, "caption": "x"}, "missing_file"),
    "a long part of a path": ({"image": "d/" + "x" * 300 + "/b.png", "caption": "x"}, "missing_file"),
    "a file as a folder": ({"image": "a.png/b.png", "caption": "x"}, "missing_file"),
    "a folder": ({"image": ".", "caption": "x"}, "missing_file"),
    "a pipe": ({"image": "pipe", "caption": "x"}, "unreadable_file"),
    "a device": ({"image": "/dev/zero", "caption": "x"}, "unreadable_file"),
    "a data URI of no picture": ({"image": "data:image/png;base64," + "QUJD" * 2000, "caption": "x"}, "corrupt_image"),
    "a data URI that is not base64": ({"image": "data:image/png;base64,%%%é", "caption": "x"}, "corrupt_image"),
    "deep": ("[" * 100_000 + "]" * 100_000, "malformed_json"),
    "deep, within a value": ('{"image": "a.png", "caption": "x", "more": ' + '{"a":' * 50_000, "malformed_json"),
    "long number": ('{"image": "a.png", "caption": "x", "id": ' + "9" * 5000 + "}", "malformed_json"),
    "zero bytes": (b"\0" * 40, "malformed_json"),
    "one character": ("x", "malformed_json"),
    "latin-1": ('{"image": "a.png", "caption": "cuite \xe9"}'.encode("latin-1"), "malformed_json"),
    "two rows in a line": ('{"image": "a.png", "caption": "x"}\r{"image": "a.png", "caption": "y"}', "malformed_json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def odd(module_files, tokenizer):
    """Each odd row in one manifest after good ones: by its name, what was listed; and the mixture."""
    module_files.image("a.png", 64, 64)
    (module_files.root / "loop.png").symlink_to("loop.png")
    os.mkfifo(module_files.root / "pipe")
    rows = [row for row, _ in ODD_ROWS.values()]
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
        for row in [GOOD, GOOD, *rows, GOOD]
    ]  # fmt: skip
    path = module_files.root / "odd.jsonl"
    path.write_bytes(b"\n".join(lines))
    made = mixture(module_files, path, tokenizer, limit=1.0)
    entries = {entry["line"]: entry for entry in listed(module_files)}
    return {name: entries.get(3 + i) for i, name in enumerate(ODD_ROWS)}, made, entries


@pytest.mark.parametrize("name", ODD_ROWS)
def test_an_odd_row_is_listed_with_its_line_and_reason(odd, name) -> None:
    entry = odd[0][name]
    assert entry is not None and entry["kind"] == ODD_ROWS[name][1]
    assert entry["source"].endswith("odd.jsonl")
    assert 3 < len(entry["reason"]) < 700


def test_the_other_rows_are_used_and_the_console_says_what_was_dropped(odd) -> None:
    _, made, entries = odd
    assert len(entries) == len(ODD_ROWS)
    assert sum(len(sampler.members) for sampler in made._samplers) == 3
    (notice,) = [text for text in made.notices if "cannot be used" in text]
    assert f"{len(ODD_ROWS)} of {len(ODD_ROWS) + 3}" in notice
    for kind in {kind for _, kind in ODD_ROWS.values()}:
        assert f"{kind} (such as " in notice


def test_one_row_does_not_exceed_the_limit_and_a_share_of_a_small_source_does(
    files, tokenizer
) -> None:
    files.image("a.png", 64, 64)
    bad = '{"image": '
    mixture(files, files.manifest("one.jsonl", [GOOD] * 11 + [bad]), tokenizer)
    with pytest.raises(TooManyInvalidExamples, match=r"10 of 11.*invalid\.jsonl"):
        mixture(files, files.manifest("ten.jsonl", [GOOD, *[bad] * 10]), tokenizer)
    with pytest.raises(TooManyInvalidExamples, match="1 of 12"):
        mixture(files, files.root / "one.jsonl", tokenizer, limit=0.0)
    assert issubclass(TooManyInvalidExamples, ValueError)  # So every command prints one line.


def test_a_data_uri_is_a_picture(files, tokenizer) -> None:
    files.image("a.png", 64, 64, shade=77)
    uri = "data:image/png;base64," + base64.b64encode((files.root / "a.png").read_bytes()).decode()
    assert len(uri) > 200
    path = files.manifest("uri.jsonl", [{"image": uri, "caption": "a"}] * 2)
    batch = mixture(files, path, tokenizer)[0]
    again = mixture(files, files.manifest("file.jsonl", [GOOD] * 2), tokenizer)[0]
    np.testing.assert_array_equal(batch["pixels"], again["pixels"])
    assert (batch["pixels"][..., 0] == 77).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("form", ["\n", "\r\n", "\r", "array", "pretty array"])
def test_a_manifest_is_read_as_what_it_plainly_is(files, encoding, form) -> None:
    captions = [f'é \u2028\u0085 {i} ]}}, "[{{ \\' for i in range(5)]
    rows = [{"image": "a.png", "caption": text} for text in captions]
    if "array" in form:
        text = json.dumps(rows, ensure_ascii=False, indent=1 if "pretty" in form else None)
    else:
        text = form.join(json.dumps(row, ensure_ascii=False) for row in rows) + form
    path = files.root / "m.json"
    path.write_bytes(text.encode(encoding))
    manifest = Manifest(path)
    assert [row.text for row in manifest] == captions
    assert [row.line for row in manifest] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ('[{"conversations": 1}, {"a": [1, {"b": 2}]}, 3, "x,y", ]', ["unknown_format"] * 2 + ["malformed_json"] * 2),
        ('[{"image": "a", "caption": "b"},\n {"image": "a", "cap', [None, "malformed_json"]),  # Cut off.
        ('[{"image": "a", "caption": "b"}\n{"image": "a", "caption": "b"}]', ["malformed_json"]),
        ('[1]\n{"image": "a", "caption": "b"}\n', ["malformed_json", None]),  # Lines, of which one is an array.
        ('[1, 2\n{"image": "a", "caption": "b"}\n{"image": "a", "caption": "b"}\n', ["malformed_json", None, None]),
        ("[" * 9999 + "]" * 9999 + '\n{"image": "a", "caption": "b"}\n', ["malformed_json", None]),
        ('[{"a": ' + "[" * 9999 + "]" * 9999 + '},\n{"image": "a", "caption": "b"}]', ["malformed_json", None]),
        ('{"image": "a",\r"caption": "b"}', [None]),
    ],
)  # fmt: skip
def test_arrays_and_lines_are_told_apart(files, text, kinds) -> None:
    (files.root / "m.json").write_text(text, newline="")
    manifest = Manifest(files.root / "m.json")
    result = []
    for index in range(len(manifest)):
        try:
            manifest[index]
            result.append(None)
        except ValueError as error:
            result.append(error.kind)
    assert result == kinds


def test_a_new_run_finds_files_that_were_missing_and_a_resumed_one_keeps_its_batches(
    files, tokenizer
) -> None:
    files.image("a.png", 64, 64)
    rows = [GOOD] * 40 + [{"image": "late.png", "caption": "late"}]
    path = files.manifest("m.jsonl", rows)
    first = mixture(files, path, tokenizer)
    assert first.scans == {}
    files.image("late.png", 64, 64)
    resumed = mixture(files, path, tokenizer, scans=first.scans)
    assert resumed.fingerprint == first.fingerprint
    new = mixture(files, path, tokenizer)
    assert new.fingerprint != first.fingerprint and new.scans["s"]
    assert any("looked at again: 1 can be used now" in text for text in new.notices)
    again = mixture(files, path, tokenizer, scans=new.scans)
    assert again.fingerprint == new.fingerprint
    assert mixture(files, path, tokenizer, scans=first.scans).fingerprint == first.fingerprint


def test_a_failing_disk_is_tried_again_and_then_named(files, tokenizer, monkeypatch) -> None:
    files.image("a.png", 64, 64)
    path = files.manifest("m.jsonl", [GOOD] * 3)
    made = mixture(files, path, tokenizer)
    monkeypatch.setattr(regular_files.time, "sleep", lambda seconds: None)
    usual, failures = images.open_regular, [2]

    def failing(path):
        if failures[0]:
            failures[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return usual(path)

    monkeypatch.setattr(images, "open_regular", failing)
    before = made[1]
    np.testing.assert_array_equal(made[1]["tokens"], before["tokens"])
    failures[0] = 10**9
    with pytest.raises(OSError, match=r"m\.jsonl, line \d.*a\.png") as raised:
        made[1]
    assert raised.value.errno == errno.EIO
    assert made.invalid_examples.counts() == {}


def example(files, **row):
    return Manifest(files.manifest("one.jsonl", [row]))[0]


def test_null_is_absent(files) -> None:
    nan = float("nan")
    row = example(files, image=None, video=nan, caption=None, conversations=TALK, system=None)
    assert row.kind == "chat" and row.ignored == ()
    turn = {
        "from": None,
        "role": "user",
        "value": None,
        "content": "hi",
        "weight": None,
        "loss": None,
    }
    assert example(files, conversations=[turn, TALK[1]]).turns[0] == Turn("user", "hi")
    assert example(files, image="a.png", caption="", conversations=TALK).kind == "image_chat"


def test_system_sentences_and_other_names_of_keys(files, tokenizer) -> None:
    top = example(files, conversations=TALK, system="Be brief.")
    turn = example(files, messages=[{"role": "system", "content": "Be brief."}, *TALK])
    assert top.turns == turn.turns and top.turns[0] == Turn("system", "Be brief.")
    assert example(files, images=["a.png"], conversations=TALK).kind == "image_chat"
    for row in (
        {"conversations": TALK, "messages": TALK},
        {"conversations": [{"from": "system", "value": "x"}, *TALK], "system": "y"},
        {"conversations": TALK, "system": ["x"]},
    ):
        with pytest.raises(ValueError, match="unknown_format"):
            example(files, **row)


def test_turns_without_a_loss_are_context(files, tokenizer) -> None:
    turns = [*TALK, *TALK, *TALK]
    turns[1] = {**turns[1], "loss": False}
    turns[3] = {**turns[3], "weight": 0}
    turns[5] = {**turns[5], "weight": 1, "loss": True}
    turns[0] = {**turns[0], "loss": False}
    path = files.manifest("m.jsonl", [{"conversations": turns}] * 2)
    batch = mixture(files, path, tokenizer, "chat")[0]
    labels = batch["labels"][0][batch["labels"][0] != IGNORE]
    assert tokenizer.decode(labels) == "a dog"
    every = mixture(
        files, files.manifest("e.jsonl", [{"conversations": TALK * 3}] * 2), tokenizer, "chat"
    )[0]
    np.testing.assert_array_equal(every["tokens"][0], batch["tokens"][0])
    assert (every["labels"][0] != IGNORE).sum() == 3 * len(labels)


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([TALK[0], {**TALK[1], "weight": 0.5}], r"conversations\[1\]: weight is 0.5"),
        ([TALK[0], {**TALK[1], "loss": "no"}], r"conversations\[1\]: loss is 'no'"),
        ([{**TALK[0], "weight": 1}, TALK[1]], "only the assistant's"),
        ([TALK[0], {**TALK[1], "loss": False}], "nothing to train on"),
    ],
)  # fmt: skip
def test_a_loss_that_cannot_be_carried_is_refused_by_name(files, turns, words) -> None:
    with pytest.raises(ValueError, match=words):
        example(files, conversations=turns)


def test_ignored_keys_and_cut_texts_are_told_at_the_start(files, tokenizer) -> None:
    files.image("a.png", 64, 64)
    turns = [TALK[0], {**TALK[1], "thinking": "hm"}]
    rows = [{**GOOD, "id": i, "score": None if i else 0.5} for i in range(3)]
    rows.append({**GOOD, "caption": "a red apple " * 50, "conversations": turns, "system": "x"})
    made = mixture(files, files.manifest("m.jsonl", rows), tokenizer)
    (notice,) = [text for text in made.notices if "ignored" in text]
    assert "id (3 examples, the first in line 1)" in notice
    assert "score (1 examples" in notice and "conversations (1 examples" in notice
    assert "the first in line 4" in notice and "thinking" not in notice
    assert made.cut == {"s": 1} and any("1 of 4 texts" in text for text in made.notices)
    chat = mixture(
        files, files.manifest("c.jsonl", [{"conversations": turns}] * 2), tokenizer, "chat"
    )
    assert chat.notices == [
        "s: ignored: conversations[].thinking (2 examples, the first in line 1)"
    ]
    assert chat.cut == {}


@pytest.mark.parametrize("comma", ["", ","])
def test_objects_over_several_lines_are_one_example_each(files, comma) -> None:
    """As `jq` prints them, or an array without its brackets."""
    rows = [{"image": "a.png", "caption": f"}} {i}"} for i in range(3)]
    text = f"{comma}\n".join(json.dumps(row, indent=1) for row in rows)
    (files.root / "m.json").write_text(text + '\n{"image": "b.png", "cap')  # Cut off at its end.
    manifest = Manifest(files.root / "m.json")
    assert [manifest[i].text for i in range(3)] == ["} 0", "} 1", "} 2"]
    assert [manifest.line(i) for i in range(4)] == [1, 5, 9, 13]
    with pytest.raises(ValueError, match="malformed_json"):
        manifest[3]


@pytest.mark.parametrize(
    ("head", "words"),
    [(b"\x1f\x8b\x08", "gzip"), (b"PAR1\x15", "Parquet"), (b"version https://git-lfs.github", "git lfs pull")],
)  # fmt: skip
def test_a_packed_manifest_is_refused_by_what_it_is(files, head, words) -> None:
    (files.root / "m.jsonl").write_bytes(head + bytes(range(256)))
    with pytest.raises(ValueError, match=rf"m\.jsonl is a.*{words}"):
        Manifest(files.root / "m.jsonl")


def test_the_only_example_of_a_rare_shape_does_not_stop_the_run(files, tokenizer) -> None:
    """Its header is whole, so that a bucket of its own was made for it, and its pixels are not."""
    files.image("a.png", 64, 64)
    files.image("wide.png", 64, 128)
    whole = (files.root / "wide.png").read_bytes()
    (files.root / "wide.png").write_bytes(whole[:60])
    path = files.manifest("m.jsonl", [GOOD] * 5 + [{**GOOD, "image": "wide.png"}])
    invalid = InvalidExamples(limit=0.05)
    stream = ExampleStream(name="s", task="t2i", source=Manifest(path), weight=1.0, rows=2,
                           lengths=(64,), sizes=(Size(32, 32), Size(32, 64)))  # fmt: skip
    made = Mixture([stream], tokenizer, invalid_examples=invalid, directory=files.root / "cache")
    assert len(made._samplers) == 2
    assert any(made.shape_of(n).size == Size(32, 64) for n in range(12))
    for n in range(12):
        assert made[n]["pixels"].shape[3:5] == (32, 32)
    assert invalid.counts() == {"corrupt_image": 1}
    (files.root / "a.png").unlink()
    with pytest.raises(
        TooManyInvalidExamples, match="none of the 6 examples of bucket 32x32.*bucket 32x64"
    ):
        made[0]
