"""Check `storage`: a folder or bucket keeps what a run relies on, also in the eyes of other processes.

Process 0 writes; the other processes of the launch read, or, if there are none, a second process on this host. Before
each write the readers ask for the name and for the list, which fills the caches of file systems that keep such answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any, Protocol

from tuna_jax.diagnostics.context import Context
from tuna_jax.diagnostics.files import Files, open_files
from tuna_jax.diagnostics.finding import FAIL, PASS, SLOW, Finding, joined
from tuna_jax.diagnostics.processes import Processes
from tuna_jax.diagnostics.reader import Reader, digest

PATIENCE = 10.0
"""Seconds after which a file that others do not see counts as lost."""
AT_ONCE = 1.0
"""Seconds within which others should see a file."""
SLOW_RATE = 50e6
"""Bytes per second of one process; below, a checkpoint of 20 GB takes more than seven minutes."""
LITTLE = 20e9
"""Free bytes below which a run will soon have no room."""
_ENTRIES = 40  # Files of the folder that is renamed.

_CACHED = (
    "mount without caches of names and sizes: gcsfuse with metadata-cache ttl-secs 0, as launchers/gke.py does; NFS "
    "with noac or actimeo=0"
)
_ATOMIC = "use another file system: here a killed save would look finished"
_LOST = "do not train here: the file system loses what it has acknowledged; look at its logs and mount options"
_FAULT = "the storage fails: look at the logs of its server or of the mount; a run tries again and then ends"
_SHARE = "name a folder that all hosts share with --folder or --workdir"


class Readers(Protocol):
    """The processes that read what this one writes."""

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        """The answers of all to a request of `reader.Reader`."""
        ...


class SecondProcess:
    """A reader in a process of its own on this host; used as a context manager."""

    def __init__(self, folder: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tuna_jax.diagnostics.reader", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"the process that reads ended with {self._process.wait()}")
        return [json.loads(line)]

    def __enter__(self) -> SecondProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()


class OtherProcesses:
    """The other processes of the launch as readers; they are in `serve`."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        self._processes.gather(request)
        return self._processes.gather(None)[1:]

    def __enter__(self) -> OtherProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self._processes.gather({"do": "end"})


def serve(processes: Processes, reader: Reader) -> None:
    """Answers process 0 until it has finished."""
    while (request := processes.gather(None)[0])["do"] != "end":
        processes.gather(reader.answer(request))


def storage(context: Context) -> Finding:
    """What others see of one process's files, then the rates of all processes at once."""
    processes, address = context.processes, f"{context.folder}/storage"
    files = open_files(address)
    if processes.index > 0:
        serve(processes, Reader(files))
        return joined([rates(files, context)])
    readers = OtherProcesses(processes) if processes.count > 1 else SecondProcess(address)
    with readers:
        seen = visibility(files, readers, context.is_shared)
    finding = joined([space(files, context), seen, rates(files, context)])
    files.remove_all()
    return finding


def visibility(files: Files, readers: Readers, is_shared: bool = True) -> Finding:
    """Writes, replaces, renames and removes files, and asks others what they see.

    Args:
      files: of the writer.
      readers: the others.
      is_shared: whether the user has named the folder.
    """
    notes: list[Finding] = []
    slowest = 0.0
    contents = [os.urandom(4096) for _ in range(2)]
    readers.ask(do="look", names=["written", "renamed", "folder"])

    def expect(what: str, name: str, content: bytes, gone: str | None = None) -> bool:
        """Whether all see it; a finding if not, or late."""
        nonlocal slowest
        if name not in files.names() or files.read(name) != content:
            notes.append(_fail(f"{what} is not there for the process that wrote it", _LOST))
            return False
        arguments = {"name": name, "content": digest(content), "seconds": PATIENCE, "gone": gone}
        for number, answer in enumerate(readers.ask(do="expect", **arguments), 1):
            if "error" in answer:
                notes.append(_fail(f"{what}: reader {number} gets {answer['error']}", _FAULT))
                return False
            missing = [key for key, seconds in answer.items() if seconds is None]
            if missing:
                words = {"listed": "does not list it", "read": "reads other content or none",
                         "gone": "still sees the old name"}  # fmt: skip
                saw = " and ".join(words[key] for key in missing)
                mend = _CACHED if is_shared else _SHARE
                notes.append(_fail(f"{what}: after {PATIENCE:.0f} s reader {number} {saw}", mend))
                return False
            slowest = max(slowest, *answer.values())
        return True

    files.write("written", contents[0])
    steps = expect("a new file", "written", contents[0])
    if steps:
        files.write("written", contents[1])
        steps = expect("a replaced file", "written", contents[1])
    if steps:
        files.rename("written", "renamed")
        steps = expect("a renamed file", "renamed", contents[1], gone="written")
    if steps and files.renames_folders:
        for entry in range(_ENTRIES):
            files.write(f"folder.tmp/{entry:02d}", contents[0])
        readers.ask(do="watch", folder="folder", seconds=PATIENCE)
        files.rename("folder.tmp", "folder")
        for number, answer in enumerate(readers.ask(do="watched"), 1):
            if answer.get("entries") is None:
                notes.append(_fail(f"reader {number} does not see a renamed folder", _CACHED))
            elif answer["entries"] < _ENTRIES:
                text = f"a renamed folder appeared with {answer['entries']} of {_ENTRIES} files"
                notes.append(_fail(f"reader {number}: {text}", _ATOMIC))
    if notes:
        return joined(notes)
    measured = f"write, replace, rename, list: others see it after {slowest:.2f} s at most"
    if not files.renames_folders:
        measured += " (a bucket, where runs rename no folders)"
    late = slowest > AT_ONCE
    return Finding(
        result=SLOW if late else PASS,
        measured=measured,
        mend=_CACHED if late else "",
        numbers={"visible_seconds": slowest},
    )


def rates(files: Files, context: Context) -> Finding:
    """Every process writes a file as large as a part of a checkpoint, at the same time, and reads that of the next."""
    processes = context.processes
    size = context.megabytes * 10**6
    block = os.urandom(min(size, 1 << 20))
    content = (block * (size // len(block) + 1))[:size]
    name = f"rate-{processes.index}"
    processes.gather(None)  # All begin together.
    begun = time.monotonic()
    files.write(name, content)
    written = size / max(time.monotonic() - begun, 1e-9)
    digests = processes.gather(digest(content))
    following = (processes.index + 1) % processes.count
    answer = Reader(files).answer(
        {"do": "rate", "name": f"rate-{following}", "content": digests[following]}
    )
    each = processes.gather({"write": written, **answer})
    return rate_finding(each, processes.names, size)


def rate_finding(each: list[dict[str, Any]], names: list[str], size: int) -> Finding:
    """The slowest writer and reader; an answer with 'error', or content that is not equal, is a failure."""
    for name, answer in zip(names, each, strict=True):
        if "error" in answer:
            return _fail(f"{name} cannot read a file of another process: {answer['error']}", _FAULT)
        if not answer["equal"]:
            text = f"{name} reads other content than was written to a file of {size / 1e6:.0f} MB"
            return _fail(text, _LOST)
    write, read = (min(answer[key] for answer in each) for key in ("write", "rate"))
    slow = min(write, read) < SLOW_RATE
    per = " per process, at the same time" if len(each) > 1 else ""
    return Finding(
        result=SLOW if slow else PASS,
        measured=f"{size / 1e6:.0f} MB: written at {write / 1e6:.0f} MB/s, read at {read / 1e6:.0f} MB/s{per}",
        mend=f"below {SLOW_RATE / 1e6:.0f} MB/s checkpoints hold up a large run: use faster storage, or raise "
        f"config.checkpoint_every"
        if slow
        else "",
        numbers={"write_bytes_per_second": write, "read_bytes_per_second": read},
    )


def space(files: Files, context: Context) -> Finding:
    """Where the folder is, and how much room it has."""
    free, needed = files.free(), 2 * context.megabytes * 10**6 * context.processes.count
    named = context.folder if context.is_shared else f"{context.folder} (temporary; see --folder)"
    text = f"{named}: free {'space unknown' if free is None else f'{free / 1e9:.0f} GB'}"
    result = PASS if free is None or free >= LITTLE else FAIL if free < needed else SLOW
    mend = "" if result == PASS else "free some space: a run keeps several checkpoints"
    return Finding(result=result, measured=text, mend=mend, numbers={"free_bytes": free})


def _fail(measured: str, mend: str) -> Finding:
    return Finding(result=FAIL, measured=measured, mend=mend)
