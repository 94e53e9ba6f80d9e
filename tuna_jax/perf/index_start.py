"""The process that `perf/index.py` starts: a mixture over one manifest, until its first batch, and its memory then."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path


def start(folder: str, workers: int, begun: float) -> None:
    """Prints seconds, and bytes of memory of this process and its workers, as JSON.

    Args:
      folder: has `manifest.jsonl`, `indexes` and `cache`.
      workers: number of processes that make batches.
      begun: `time.time()` when the process was started.
    """
    from tuna_jax.data import loader
    from tuna_jax.data.mixture.mixture import Mixture, batches
    from tuna_jax.data.mixture.stream import ExampleStream
    from tuna_jax.data.sources.jsonl import Manifest
    from tuna_jax.data.sources.stored_index import MappedArrays
    from tuna_jax.data.text.tokenizer import Tokenizer

    imported = time.time()
    place = Path(folder)
    index = str(place / "indexes")
    source = Manifest(place / "manifest.jsonl", index=index)
    given = {"task": "t2i", "weight": 1.0, "rows": 8, "lengths": (1280,)}
    stream = ExampleStream(name="s", source=source, **given)
    mixture = Mixture([stream], Tokenizer(), directory=place / "cache", index=index)
    iterator = loader.iterate(batches(mixture), workers=workers, threads=1, ahead=2 * workers)
    with contextlib.closing(iterator):
        next(iterator)
        ready = time.time()
        peak = _memory(os.getpid(), "status")["VmHWM"]
        for _ in range(4 * workers):  # Every worker has made batches.
            next(iterator)
        # Their pages count once, however many processes map them.
        touched = [
            MappedArrays(path)
            for path in (*place.glob("indexes/lines-*"), *place.glob("cache/orders/*.safetensors"))
        ]
        for arrays in touched:
            arrays.read()
        used = [_memory(process, "smaps_rollup") for process in (os.getpid(), *_children())]
        print(
            json.dumps(
                {
                    "seconds": ready - begun,
                    "imports": imported - begun,
                    "peak": peak,
                    "private": max(one["Anonymous"] for one in used),
                    "total": sum(one["Pss"] for one in used),
                }
            )
        )


def _children() -> list[int]:
    return [
        int(process)
        for task in Path("/proc/self/task").iterdir()
        for process in (task / "children").read_bytes().split()
    ]


def _memory(process: int, file: str) -> dict[str, int]:
    """The entries of a process's memory that Linux gives, in bytes."""
    content = Path(f"/proc/{process}/{file}").read_bytes().decode("ascii", "replace")
    entries = re.findall(r"^(\w+):\s+(\d+) kB", content, re.MULTILINE)
    return {name: int(kilobytes) << 10 for name, kilobytes in entries}
