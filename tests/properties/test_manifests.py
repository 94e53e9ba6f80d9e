"""Whole manifests of odd rows: no traceback, and every row is either used or listed."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tuna_jax.data.invalid_examples import InvalidExample, InvalidExamples, TooManyInvalidExamples
from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.mixture import Mixture
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.utils.text_files import json_line

pytestmark = pytest.mark.filterwarnings("ignore:.*is not in the compact vocabulary")
TOKENIZER = Tokenizer("emoji")

# Everything that JSON can write, halves of surrogate pairs too.
characters = st.characters() | st.sampled_from(
    '\u2028\u2029\u0085\x0b\x0c\x1c\ufeff\ud83d\udce9\0"\\/[]{},<>\r\n'
)
texts = st.text(characters, max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=6
)
names = st.sampled_from(["a.png", "none.png", "", ".", "a.png/b", "data:,x", "broken.png"]) | texts
turns = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "system", "tool"]) | values},
    optional={"value": texts | values, "loss": values, "weight": values, "role": values},
)
rows = st.dictionaries(
    st.sampled_from(["id", "system", "caption", "conversations", "messages", "image", "images"]),
    values | texts,
    max_size=4,
) | st.fixed_dictionaries(
    {},
    optional={
        "image": names | st.lists(names, max_size=2) | values,
        "caption": texts | values,
        "conversations": st.lists(turns | values, max_size=4) | values,
        "system": texts | values,
        "instruction": texts,
        "raw_image": names,
        "out_image": names,
        "more": values,
    },
)
lines = (
    rows.map(lambda row: json_line(row)[:-1].encode())
    | st.binary(max_size=30)
    | st.builds(lambda row, cut: json_line(row).encode()[:cut], rows, st.integers(0, 60))
)
good = {"image": "a.png", "caption": "a red apple"}
talk = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("manifests")
    Image.new("RGB", (40, 40), (200, 30, 30)).save(root / "a.png")
    (root / "broken.png").write_bytes((root / "a.png").read_bytes()[:50])
    return root


def check(folder: Path, content: bytes, numbers: set[int], task: str) -> None:
    """Every row of `numbers` is used or listed, and nothing but the known errors is raised."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "m.jsonl"
        path.write_bytes(content)
        try:
            manifest = Manifest(path, folder)
        except ValueError:
            assert not numbers
            return
        assert {manifest.line(i) for i in range(len(manifest))} == numbers
        sizes = None if task == "chat" else (Size(32, 32),)
        stream = ExampleStream(
            name="s", task=task, source=manifest, weight=1.0, rows=2, lengths=(64,), sizes=sizes
        )
        invalid = InvalidExamples(Path(scratch) / "invalid.jsonl", limit=1.0)
        try:
            mixture = Mixture(
                [stream], TOKENIZER, invalid_examples=invalid, directory=Path(scratch), threads=1
            )
        except TooManyInvalidExamples:
            used: set[int] = set()
        else:
            for number in range(3):
                mixture[number]
            samplers = mixture._samplers
            used = {manifest.line(int(i)) for sampler in samplers for i in sampler.members}
        listed = (
            [json.loads(line) for line in invalid.path.read_text("utf-8").split("\n")[:-1]]
            if invalid.path.exists()
            else []
        )
        lines = {entry["line"] for entry in listed}
        # 'other' would be an unforeseen error.
        assert "other" not in {entry["kind"] for entry in listed}
        assert used | lines == numbers and len(lines) == len(listed)
        assert all(entry["reason"] and entry["source"] == str(path) for entry in listed)
        again = InvalidExamples(invalid.path, limit=1.0)  # What was written can be read.
        assert again.counts() == invalid.counts()


@given(
    st.lists(lines, max_size=6),
    st.sampled_from([b"\n", b"\r\n"]),
    st.sampled_from(["t2i", "chat", "understand", "edit"]),
)
def test_every_line_is_used_or_listed(folder, odd, end, task) -> None:
    # Good rows on both sides, so that the file is plainly one of lines.
    known = [json.dumps(good).encode(), json.dumps(talk).encode()]
    parts = end.join([*known, *odd, *known]).split(b"\n")
    numbers = {n for n, line in enumerate(parts, 1) if line.strip(b" \t\r\n")}
    check(folder, end.join([*known, *odd, *known]), numbers, task)


@given(
    st.lists(rows, min_size=1, max_size=5),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"]),
    st.sampled_from([None, 1]),
    st.sampled_from(["t2i", "chat"]),
)
def test_every_item_of_an_array_is_used_or_listed(folder, items, encoding, indent, task) -> None:
    text = json.dumps([talk, *items, good], indent=indent)
    check(folder, text.encode(encoding), set(range(1, len(items) + 3)), task)


@given(st.binary(max_size=200), st.sampled_from(["t2i", "chat"]))
def test_any_bytes_are_a_manifest_or_refused(folder, content, task) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "m.jsonl"
        path.write_bytes(content)
        try:
            manifest = Manifest(path, folder)
            stream = ExampleStream(
                name="s",
                task=task,
                source=manifest,
                weight=1.0,
                rows=2,
                lengths=(64,),
                sizes=None if task == "chat" else (Size(32, 32),),
            )
            Mixture([stream], TOKENIZER, directory=Path(scratch), threads=1)[0]
        except ValueError as error:
            assert str(path) in str(error)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=6),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"]),
    st.sampled_from(["\n", "\r\n", "\r", "array"]),
    st.booleans(),
)
def test_every_caption_comes_back_whole(folder, captions, encoding, form, ascii_only) -> None:
    items = [{"image": "a.png", "caption": f"x{text}x"} for text in captions]
    if form == "array":
        text = json.dumps(items, ensure_ascii=ascii_only)
    else:
        text = form.join(json.dumps(item, ensure_ascii=ascii_only) for item in items)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "m.jsonl"
        path.write_bytes(text.encode(encoding))
        assert [row.text for row in Manifest(path, folder)] == [f"x{text}x" for text in captions]


@given(
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=80
    )
)
def test_any_name_that_a_file_can_have_is_found(folder, name) -> None:
    if name in (".", "..") or name[:5].lower() == "data:" or len(name.encode()) > 250:
        return
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch)
        (root / name).write_bytes((folder / "a.png").read_bytes())
        path = root / "the manifest.jsonl"
        path.write_text(json_line({"image": name, "caption": "x"}) * 2, encoding="utf-8")
        stream = ExampleStream(
            name="s",
            task="t2i",
            source=Manifest(path),
            weight=1.0,
            rows=2,
            lengths=(64,),
            sizes=(Size(32, 32),),
        )
        mixture = Mixture([stream], TOKENIZER, directory=root / "cache", threads=1)
        assert (mixture[0]["pixels"][..., 0] == 200).all() and not mixture.notices


@given(st.lists(st.tuples(texts, st.integers(1, 9), texts), max_size=8))
def test_a_list_of_invalid_examples_is_read_as_it_was_written(entries) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "invalid_examples.jsonl"
        first = InvalidExamples(path, limit=1.0)
        for source, line, reason in entries:
            first.add(InvalidExample("other", f"x{source}", line, reason))
        again = InvalidExamples(path, limit=1.0)
        assert again.counts() == first.counts()
        for source, line, reason in entries:
            again.add(InvalidExample("other", f"x{source}", line, reason))
        assert again.counts() == first.counts()
