"""Exports the parameters that several processes hold together: each process writes a file of its own.

No process and no device ever holds more than a slab of a parameter, `SLAB_BYTES` at most: all processes gather the
slab, and the one whose file it belongs to writes it, from first to last byte, in a thread, so that the files grow side
by side. A file gets its name when it is complete, and the index is written last, so an export is whole or not there.
The same run, started again, writes only the files that are missing.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open

from tuna_jax.parallel import distributed
from tuna_jax.training import staging
from tuna_jax.training.weights_file import MODEL_FILE, MODEL_INDEX
from tuna_jax.utils import safetensors_files
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.param_tree import flatten

SLAB_BYTES = 256 << 20
ONE_FILE_BYTES = 5 * 10**9
"""A smaller model is one file, `model.safetensors`."""
PATIENCE = 24 * 3600
"""Seconds that a process waits for the slowest one to finish its file."""
_AHEAD = 4  # Slabs that wait to be written.


def export(
    workdir: str | Path,
    params: Any,
    settings: Mapping[str, Any],
    step: int,
    *,
    one_file_bytes: int = ONE_FILE_BYTES,
    slab_bytes: int = SLAB_BYTES,
    name: str = MODEL_FILE,
) -> None:
    """Writes the parameters of a run of several processes; all of them must call it.

    Args:
      workdir: the run's, which all processes see.
      params: nested dict of arrays over all processes.
      settings: the run's, as JSON values.
      step: the run's.
      one_file_bytes: models up to this size become one file.
      slab_bytes: the most bytes that are gathered at once.
      name: of the file of a small model; an adapter is one file whatever its size.

    Raises:
      OSError: a process could not write its file, on every process; finished files stay.
    """
    workdir, process = Path(workdir), jax.process_index()
    leaves = dict(sorted(flatten(params).items()))
    metadata = {"settings": json.dumps(settings), "step": str(step)}
    total = sum(leaf.nbytes for leaf in leaves.values())
    one = total <= one_file_bytes or name != MODEL_FILE
    files = _divide(leaves, 1 if one else jax.process_count())
    names = [name]
    if len(files) > 1:
        names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    own = process if process < len(files) else None
    finished = own is None or _is_finished(workdir / names[own], files[own], metadata)
    all_finished = multihost_utils.process_allgather(np.array(finished)).reshape(-1)
    if process == 0 and not all_finished.all():
        (workdir / MODEL_INDEX).unlink(missing_ok=True)  # It would name a mixture of two steps.
        staging.flush(workdir)

    error: OSError | None = None
    for number, (file_name, keys) in enumerate(zip(names, files, strict=True)):
        if all_finished[number]:
            continue
        slabs = (slab for key in keys for slab in _slabs(leaves[key], slab_bytes))
        if number != own:
            for _ in slabs:
                pass
            continue
        header = _header({key: leaves[key] for key in keys}, metadata)
        for left in workdir.glob(f".{file_name}-*"):  # Of a process that was killed.
            left.unlink(missing_ok=True)
        try:
            with atomic_file(workdir / file_name) as scratch, _Writer(scratch) as writer:
                writer.put(header)
                for slab in slabs:
                    writer.put(np.ascontiguousarray(np.asarray(slab)).tobytes())
            staging.flush(workdir)
        except OSError as raised:
            error = raised
            for _ in slabs:  # The others gather the rest, too.
                pass
    distributed.wait_for_all(PATIENCE)
    if not distributed.all_agree(error is None):
        where = f"process {process}: {error}" if error is not None else "another process"
        raise OSError(
            f"the weights could not be exported to {workdir} ({where}); free some space, and the same command "
            f"writes what is missing"
        )
    if process == 0:
        _commit(workdir, names, files, total)
    distributed.wait_for_all(PATIENCE)


def _divide(leaves: Mapping[str, Any], count: int) -> list[list[str]]:
    """The names of the parameters of each of `count` files, of about equal sizes, in order."""
    total, done = sum(leaf.nbytes for leaf in leaves.values()), 0
    files: list[list[str]] = [[] for _ in range(count)]
    for name, leaf in leaves.items():
        files[min(count - 1, done * count // max(total, 1))].append(name)
        done += leaf.nbytes
    return files


def _is_finished(path: Path, keys: list[str], metadata: Mapping[str, str]) -> bool:
    """Whether an earlier export of the same step has written this file."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() == metadata and sorted(file.keys()) == sorted(keys)
    except (OSError, SafetensorError):
        return False


def _slabs(leaf: jax.Array, slab_bytes: int) -> Iterator[Any]:
    """The parameter in parts along its first axis, each whole on every device of every process."""
    if leaf.ndim == 0 or leaf.is_fully_replicated:
        yield leaf.addressable_data(0)
        return
    rows = max(1, slab_bytes // max(leaf.nbytes // leaf.shape[0], 1))
    assert isinstance(leaf.sharding, NamedSharding)
    replicated = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    for start in range(0, leaf.shape[0], rows):
        size = min(rows, leaf.shape[0] - start)
        yield _gather(replicated, size)(leaf, start).addressable_data(0)


@functools.cache
def _gather(replicated: NamedSharding, size: int) -> Any:
    return jax.jit(
        lambda leaf, start: jax.lax.dynamic_slice_in_dim(leaf, start, size),
        out_shardings=replicated,
    )


def _header(leaves: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """The header of a safetensors file of float32 parameters, in their order."""
    for name, leaf in leaves.items():
        if leaf.dtype != np.float32:
            raise ValueError(f"the parameter {name} is {leaf.dtype}; an export holds float32")
    entries = {name: ("F32", leaf.shape, leaf.nbytes) for name, leaf in leaves.items()}
    return safetensors_files.header(entries, metadata)


class _Writer:
    """Appends to a file in a thread; leaving the context waits for it, and raises the error that it met."""

    def __init__(self, path: Path):
        self._path, self._error = path, None
        self._queue: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._run, name="export", daemon=True)

    def put(self, content: bytes) -> None:
        """Queues bytes; raises OSError if earlier ones could not be written."""
        if self._error is not None:
            raise self._error
        self._queue.put(content)

    def _run(self) -> None:
        try:
            with self._path.open("wb") as file:
                while (content := self._queue.get()) is not None:
                    write(file, content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._error = error
            while self._queue.get() is not None:  # A caller that puts more must not wait forever.
                pass

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error


def write(file: Any, content: bytes) -> None:
    """Appends to a file."""
    file.write(content)


def _commit(workdir: Path, names: list[str], files: list[list[str]], total: int) -> None:
    """Makes the export visible, and removes files of earlier ones."""
    if len(names) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {
                key: name for name, keys in zip(names, files, strict=True) for key in keys
            },
        }
        with atomic_file(workdir / MODEL_INDEX) as scratch:
            scratch.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        (workdir / MODEL_FILE).unlink(missing_ok=True)
    else:
        (workdir / MODEL_INDEX).unlink(missing_ok=True)
    for path in workdir.glob("model-*-of-*.safetensors"):
        if path.name not in names:
            path.unlink(missing_ok=True)
