"""A folder that lies is found: lost writes, stale lists and contents, a rename file by file."""

import time
from pathlib import Path

import pytest

from tests.fixtures.bucket_mount import Mount, Options, can_mount
from tuna_jax.diagnostics import storage
from tuna_jax.diagnostics.context import Context
from tuna_jax.diagnostics.files import BucketFiles, LocalFiles, open_files
from tuna_jax.diagnostics.finding import FAIL, PASS, SLOW
from tuna_jax.diagnostics.processes import Processes
from tuna_jax.diagnostics.reader import Reader


class InThisProcess:
    """Readers without a process of their own, so that their files can lie."""

    def __init__(self, files):
        self._reader = Reader(files)

    def ask(self, **request):
        return [self._reader.answer(request)]


class Lost(LocalFiles):
    """Acknowledges what it does not keep."""

    def write(self, name, content):
        super().write(name, content[: len(content) // 2])


class StaleNames(LocalFiles):
    """Keeps the first answer about a name for ever, as gcsfuse does on machines with TPUs by default."""

    def __init__(self, folder):
        super().__init__(folder)
        self._known = {}

    def names(self, folder=""):
        if folder not in self._known:
            try:
                self._known[folder] = super().names(folder)
            except FileNotFoundError:
                self._known[folder] = []
        return self._known[folder]


class StaleContents(LocalFiles):
    """Keeps what it has read."""

    def __init__(self, folder):
        super().__init__(folder)
        self._known = {}

    def read(self, name):
        if name not in self._known:
            self._known[name] = super().read(name)
        return self._known[name]


class StillThere(LocalFiles):
    """Does not notice that a name has gone."""

    def names(self, folder=""):
        return [*super().names(folder), *([] if folder else ["written"])]


class FileByFile(LocalFiles):
    """Renames a folder as a bucket without hierarchical namespace does."""

    def rename(self, old, new):
        if not (self._folder / old).is_dir():
            super().rename(old, new)
            return
        for name in self.names(old):
            self.write(f"{new}/{name}", self.read(f"{old}/{name}"))
            time.sleep(0.002)


class Late(LocalFiles):
    """Shows a file only some time after it was written."""

    def read(self, name):
        path = self._folder / name
        if name == "written" and path.exists() and time.time() - path.stat().st_mtime < 0.3:
            raise FileNotFoundError(name)
        return super().read(name)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    monkeypatch.setattr(storage, "AT_ONCE", 0.2)


@pytest.mark.parametrize(
    ("writer", "reader", "result", "says"),
    [
        (LocalFiles, LocalFiles, PASS, "others see it"),
        (BucketFiles, BucketFiles, PASS, "a bucket"),
        (Lost, LocalFiles, FAIL, "a new file is not there"),
        (LocalFiles, StaleNames, FAIL, "a new file: after 0 s reader 1 does not list it"),
        (LocalFiles, StaleContents, FAIL, "a replaced file"),
        (LocalFiles, StillThere, FAIL, "still sees the old name"),
        (FileByFile, LocalFiles, FAIL, "of 40 files"),
        (LocalFiles, Late, SLOW, "0.3"),
    ],
)
def test_what_others_see(tmp_path, writer, reader, result, says):
    files, readers = writer(str(tmp_path)), InThisProcess(reader(str(tmp_path)))
    finding = storage.visibility(files, readers)
    assert finding.result == result and says in finding.measured, finding
    assert bool(finding.mend) == (result != PASS)


def context(folder, **more):
    return Context(Processes(), str(folder), True, str(folder), {}, {}, megabytes=2, **more)


def test_a_second_process_reads_and_nothing_is_left(tmp_path):
    finding = storage.storage(context(tmp_path / "new"))
    assert finding.result in (PASS, SLOW), finding  # The disk may be busy, or nearly full.
    assert "2 MB: written at" in finding.measured and "others see it" in finding.measured
    assert not list(tmp_path.rglob("*/storage"))


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        storage.storage(context(tmp_path / "file" / "new"))


def test_rates_and_contents_of_large_files():
    names = ["process 0 (a)", "process 1 (b)"]
    good = {"write": 500e6, "rate": 900e6, "equal": True}
    assert storage.rate_finding([good, good], names, 10**8).result == PASS
    slow = storage.rate_finding([good, good | {"write": 20e6}], names, 10**8)
    assert slow.result == SLOW and "20 MB/s" in slow.measured
    for broken in ({"equal": False, "write": 1e9, "rate": 1e9}, {"error": "EIO", "write": 1e9}):
        finding = storage.rate_finding([good, broken], names, 10**8)
        assert finding.result == FAIL and "process 1 (b)" in finding.measured


def test_little_room_is_slow_and_none_fails(tmp_path):
    for free, result in ((100e9, PASS), (1e9, SLOW), (1e6, FAIL), (None, PASS)):
        files = LocalFiles(str(tmp_path))
        files.free = lambda free=free: free
        assert storage.space(files, context(tmp_path)).result == result


def test_addresses_of_buckets_go_through_the_library_of_checkpoints():
    assert isinstance(open_files("gs://bucket/runs"), BucketFiles)
    assert isinstance(open_files(str(Path("runs"))), LocalFiles)


@pytest.mark.skipif(not can_mount(), reason="requires the permission to mount file systems")
@pytest.mark.parametrize(
    ("options", "result", "says"),
    [
        (Options(rename_folders=False), PASS, "where runs rename no folders"),
        (Options(rename_folders=False, stale=True), FAIL, "does not list it"),
        (Options(eio=1.0), FAIL, "Input/output error"),
    ],
)
def test_two_mounts_of_a_bucket(tmp_path, options, result, says):
    store = tmp_path / "store"
    with (
        Mount(store, tmp_path / "a", Options()) as here,
        Mount(store, tmp_path / "b", options) as there,
    ):
        files = LocalFiles(str(here.folder / "doctor"))
        files.write("begin", b"")
        readers = InThisProcess(LocalFiles(str(there.folder / "doctor")))
        finding = storage.visibility(files, readers)
    assert finding.result == result and says in finding.measured, finding
