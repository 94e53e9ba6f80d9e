"""The index of a scan: divided among processes, killed and resumed, a part before the whole, stale and old ones."""

import hashlib
import json
import mmap
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.mixture import scan_in_processes
from tests.data.mixture.scan_in_processes import CHUNK_ROWS
from tuna_jax.data.mixture import assignment as assigning
from tuna_jax.data.mixture import bucket_sampler, scan_index
from tuna_jax.data.mixture import scan as scanning
from tuna_jax.data.mixture.mixture import Mixture
from tuna_jax.data.mixture.scan import scan
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.mixture.tokenize_example import CAPTION_PROMPTS
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer

ROWS = 3000


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def manifest(module_files) -> Manifest:
    """Some rows are invalid, some have keys without a meaning, and one picture is wider than 16 bits hold."""
    files = module_files
    names = [files.image(f"{i}.png", 32 + i, 300 + i) for i in range(20)]
    names.append(files.image("wide.png", 32, 70_000))
    rows = []
    for i in range(ROWS):
        row = {"image": names[i % 20], "caption": "a cat " * (1 + i % 7)}
        row |= {"id": i} if i % 3 == 0 else {f"key{i}": 1} if i % 9 == 1 else {}
        row |= {"image": "missing.png"} if i % 97 == 5 else {"caption": ""} if i % 89 == 5 else {}
        rows.append(row if i != 2900 else {"image": "wide.png", "caption": "wide"})
    return Manifest(files.manifest("m.jsonl", rows))


@pytest.fixture(scope="module")
def single(manifest, tokenizer, module_files):
    """The index that one process makes: its metadata and its file."""
    folder = module_files.root / "single"
    metadata = scan(manifest, "t2i", tokenizer, index=str(folder), chunk_rows=CHUNK_ROWS)
    (file,) = folder.iterdir()
    return metadata, file


def same(first, second, rows=ROWS) -> None:
    for name in ("height", "width", "media", "text"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name)[:rows])
    kept = {index: row for index, row in second.invalid.items() if index < rows}
    assert repr(first.invalid) == repr(kept)


def is_mapped(array) -> bool:
    return isinstance(array, mmap.mmap) or (
        array is not None and is_mapped(getattr(array, "base", None))
    )


def in_processes(manifest, folder, processes, kills, seed=0) -> list[int]:
    arguments = [manifest.path, folder, processes, kills, seed]
    done = subprocess.run(
        [sys.executable, scan_in_processes.__file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_the_index_has_what_reading_row_by_row_finds(manifest, single) -> None:
    metadata, file = single
    assert [metadata.height[i] for i in (0, 19, 20, 2900)] == [32, 51, 32, 32]
    assert metadata.width[2900] == 70_000
    assert {row.kind for row in metadata.invalid.values()} == {"missing_file", "empty_text"}
    assert sorted(metadata.invalid) == list(metadata.invalid)
    assert metadata.invalid[5].line == 6
    readable = [i for i in range(0, ROWS, 3) if i % 89 != 5 or i % 97 == 5]
    assert metadata.ignored["id"] == (len(readable), 0)
    assert len(metadata.ignored) == 200, "the first names are kept"
    numbers = sum(getattr(metadata, name).itemsize for name in ("height", "width", "media", "text"))
    assert numbers <= 8 and file.stat().st_size < 8 * ROWS + 60_000
    assert is_mapped(metadata.height), "processes share the file's pages"


def test_two_processes_at_once_make_the_index_of_one(manifest, single, tmp_path) -> None:
    assert in_processes(manifest, tmp_path, processes=2, kills=0) == []
    (file,) = tmp_path.iterdir()
    assert file.name == single[1].name and file.read_bytes() == single[1].read_bytes()


def test_processes_killed_at_random_moments_resume_and_make_the_same(
    manifest, single, tmp_path
) -> None:
    chunks = in_processes(manifest, tmp_path, processes=2, kills=4, seed=1)
    assert chunks == sorted(chunks) and chunks[-1] > 0, "what was scanned is kept"
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == single[1].read_bytes()


def test_a_part_is_scanned_first_and_the_whole_takes_it_over(
    manifest, single, tokenizer, tmp_path, monkeypatch
) -> None:
    read = []
    real = scanning._Reader.read
    monkeypatch.setattr(
        scanning._Reader, "read", lambda self, index: read.append(index) or real(self, index)
    )
    options = {"index": str(tmp_path), "chunk_rows": CHUNK_ROWS}
    part = scan(manifest, "t2i", tokenizer, rows=300, **options)
    assert len(part) == 300 and sorted(read) == list(range(3 * CHUNK_ROWS))
    same(part, single[0], 300)
    read.clear()
    again = scan(manifest, "t2i", tokenizer, rows=300, version="", **options)
    same(again, part)
    assert read == []
    whole = scan(manifest, "t2i", tokenizer, version="", **options)
    assert sorted(read) == list(range(3 * CHUNK_ROWS, ROWS)), "no chunk is scanned twice"
    same(whole, single[0])
    read.clear()
    same(scan(manifest, "t2i", tokenizer, rows=300, version="", **options), part)
    assert read == [] and len(list(tmp_path.iterdir())) == 1


def test_other_data_has_another_index_and_a_copied_or_damaged_one_is_named(
    manifest, single, tokenizer, module_files, tmp_path
) -> None:
    other = Manifest(module_files.manifest("n.jsonl", [{"image": "0.png", "caption": "b"}] * 9))
    assert scan(other, "t2i", tokenizer, index=str(tmp_path)).height.tolist() == [32] * 9
    (mine,) = tmp_path.iterdir()
    content = mine.read_bytes()
    mine.write_bytes(single[1].read_bytes())
    with pytest.raises(ValueError, match=f"{mine.name} belongs to other data.*remove it"):
        scan(other, "t2i", tokenizer, index=str(tmp_path))
    mine.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=f"{mine.name} is damaged.*remove it"):
        scan(other, "t2i", tokenizer, index=str(tmp_path))
    mine.unlink()
    assert len(scan(other, "t2i", tokenizer, index=str(tmp_path))) == 9


def test_an_index_of_another_version_is_made_again(
    module_files, tokenizer, tmp_path, monkeypatch
) -> None:
    rows = Manifest(module_files.manifest("v.jsonl", [{"image": "0.png", "caption": "b"}]))
    for version in (scan_index.VERSION, scan_index.VERSION + 1):
        monkeypatch.setattr(scan_index, "VERSION", version)
        assert scan(rows, "t2i", tokenizer, index=str(tmp_path)).height.tolist() == [32]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_archive_of_an_earlier_version_is_taken_over(module_files, tokenizer, tmp_path) -> None:
    """With the changes that a run began with. Its numbers are kept, so that old runs keep their batches."""
    rows = Manifest(
        module_files.manifest("o.jsonl", [{"image": f"{i}.png", "caption": "b"} for i in range(4)])
    )
    # As the version before named it.
    key = [2, rows.identity, "t2i", scanning.fingerprint(tokenizer), 16, CAPTION_PROMPTS]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    old = tmp_path / "facts" / f"{name}.npz"
    old.parent.mkdir()
    with old.open("wb") as file:
        np.savez_compressed(
            file,
            numbers=np.array([[1, 2, 0, 4], [5, 6, 0, 8], [1, 1, 0, 1], [9, 9, 0, 9]], np.int32),
            bad=np.frombuffer(json.dumps([[2, "missing_file", "gone"]]).encode(), np.uint8),
            ignored=np.frombuffer(json.dumps({"id": [4, 0]}).encode(), np.uint8),
        )
    scan_index.changes_file(old, "abc").write_text("[[2, 34, 302, 1, 7]]")
    options = {"directory": tmp_path, "smallest": 16}
    kept = scan(rows, "t2i", tokenizer, version="", **options)
    assert kept.height.tolist() == [1, 2, 0, 4] and kept.text.tolist() == [9, 9, 0, 9]
    assert kept.invalid[2].kind == "missing_file" and kept.ignored == {"id": (4, 0)}
    changed = scan(rows, "t2i", tokenizer, version="abc", **options)
    assert changed.width.tolist() == [5, 6, 302, 8] and changed.invalid == {}
    new = scan(rows, "t2i", tokenizer, **options)
    assert new.width.tolist() == [5, 6, 302, 8] and new.recovered == 1


def test_a_folder_that_cannot_be_written_is_named_with_the_setting(
    module_files, tokenizer, tmp_path
) -> None:
    rows = Manifest(module_files.manifest("w.jsonl", [{"image": "0.png", "caption": "b"}]))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        scan(rows, "t2i", tokenizer, index=str(tmp_path / "file"))
    if os.getuid():
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError, match=r"config\.data\.index"):
            scan(rows, "t2i", tokenizer, index=str(tmp_path / "index"))
        tmp_path.chmod(0o700)


def test_an_index_with_the_data_is_found_by_others(module_files, tokenizer, tmp_path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "0.png", "caption": "b"}\n')
    rows = Manifest(path, module_files.root)
    scan(rows, "t2i", tokenizer, index="with_data")
    assert len(list((tmp_path / ".tuna_jax").glob("scan-*.safetensors"))) == 1


# ---- a run on a part -----------------------------------------------------------------------------


def stream(source, **changes) -> ExampleStream:
    given = {"name": "s", "task": "t2i", "weight": 1.0, "rows": 2, "lengths": (1100,)} | changes
    return ExampleStream(source=source, **given)


def test_a_run_that_began_on_a_part_goes_on_with_it_until_it_is_told(
    manifest, single, tokenizer
) -> None:
    """`parts` is what the run record keeps."""
    index = str(single[1].parent)

    def mixture(part_rows, parts=None):
        made = Mixture(
            [stream(manifest, part_rows=part_rows)],
            tokenizer,
            index=index,
            parts=parts,
            scans={} if parts else None,
        )
        members = np.concatenate([sampler.members for sampler in made._samplers])
        return made, int(members.max())

    first, last = mixture(500)
    assert first.parts == {"s": 500} and 490 < last < 500
    assert any("first 500 of 3000" in notice for notice in first.notices)
    for part_rows in (0, 500):
        resumed, _ = mixture(part_rows, first.parts)
        assert (resumed.fingerprint, resumed.parts) == (first.fingerprint, first.parts)
    for part_rows, parts in ((-1, first.parts), (0, None)):
        whole, last = mixture(part_rows, parts)
        assert whole.parts == {} and last == ROWS - 1
        assert whole.fingerprint != first.fingerprint


def test_buckets_and_orders_of_a_large_source_are_mapped_and_the_same(
    manifest, single, tokenizer, tmp_path, monkeypatch
) -> None:
    """A worker gets a large mixture by the names of its files, and maps what the others map."""

    def mixture():
        given = {"index": str(single[1].parent), "directory": tmp_path, "scans": {}}
        return Mixture([stream(manifest, lengths=(1100, 1200))], tokenizer, **given)

    small = mixture()
    monkeypatch.setattr(assigning, "KEEP_FROM", 100)
    monkeypatch.setattr(bucket_sampler, "SHARE_FROM", 100)
    first = mixture()
    monkeypatch.setattr(assigning, "assign", None)
    again = mixture()
    content = pickle.dumps(again)
    assert len(content) < len(pickle.dumps(small)) - 3 * ROWS, "no numbers of examples are sent"
    worker = pickle.loads(content)
    orders = []
    for made in (small, first, again, worker):
        assert made.fingerprint == small.fingerprint
        assert (made.cut, made.notices) == (small.cut, small.notices)
        orders.append([s.member(at) for s in made._samplers for at in (0, 1, len(s.members) + 1)])
    assert orders == orders[:1] * 4
    (large,) = [s for s in worker._samplers if len(s.members) > 2000]
    assert is_mapped(large._order(0)) and is_mapped(large.members[:])
    assert len(list((tmp_path / "orders").glob("order-*"))) == 2, "of two epochs"


def test_two_sources_of_one_name_are_refused(module_files, tokenizer) -> None:
    path = module_files.manifest("one.jsonl", [{"image": "0.png", "caption": "b"}])

    class Renamed(Manifest):
        name = "photos, train"

    other = Renamed(module_files.manifest("two.jsonl", [{"image": "0.png", "caption": "b"}]))
    twice = [stream(Renamed(path)), stream(other, name="t")]
    with pytest.raises(ValueError, match="'s' and 't' have two sources of one name.*another name"):
        Mixture(twice, tokenizer)
