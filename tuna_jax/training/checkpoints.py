"""Checkpoints: the one module that knows Orbax.

A checkpoint is a folder named after its step that holds, saved together and restored together:

    state      arrays: parameters, EMA, optimizer, random key, counters
    config     JSON: the settings that the run was started with
    identity   JSON: a random name of this save, by which sweeps know it without reading the arrays
    data       JSON: the position of the data iterator, if the run has one; the same on all hosts, so that a run may
               continue with another number of hosts

A save is atomic (`training/commit.py` says how): a checkpoint that is listed is complete unless it was damaged later.
Restoring tries the newest first; one that cannot be read is reported as an error and the next older
one is tried. If none can be read, that is an error: a run never starts from scratch by accident.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from tuna_jax.parallel import distributed
from tuna_jax.training import commit, staging
from tuna_jax.utils import buckets
from tuna_jax.utils.file_systems import renames_atomically
from tuna_jax.utils.regular_files import passing_fault

_STEP_FOLDER = re.compile(r"\d{8,}")
_PAUSES = (1.0, 4.0)  # Seconds before an unreadable checkpoint is read again.
# A save that Orbax has not renamed yet, or a removal of ours that was interrupted.
_REMAINS = re.compile(r"\d{8,}\..+|removed-\d{8,}")


class DamagedCheckpointError(RuntimeError):
    """A run has checkpoints, and none of them can be read."""


class UnreadableStorageError(OSError):
    """The storage of a checkpoint fails, which says nothing about the checkpoint."""


class UnwrittenCheckpointError(OSError):
    """A checkpoint could not be written: a full disk, or storage that fails."""


class MismatchedCheckpointError(ValueError):
    """A checkpoint is complete, but it belongs to another model or optimizer."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint: the step that was saved, the state as a tree like the template, and the
    saved settings."""

    step: int
    state: Any
    config: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, under `directory`.

    Args:
      directory: folder of the checkpoints, created if absent. Local, or in a bucket: its address (`gs://...`), or the
        folder in a workdir that mirrors it (`training/staging.py`).
      keep: how many of the newest checkpoints are kept; at least 1.
      asynchronous: write in the background. `save` then blocks only for the copy to host memory.

    As a context manager it closes on exit, also after an error, and so finishes a checkpoint that is being written.
    """

    def __init__(self, directory: str | Path, *, keep: int = 3, asynchronous: bool = True) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep} would delete every checkpoint; keep at least 1")
        self._workdir = Path(directory).parent
        self._directory = staging.stored(directory)
        if not buckets.is_address(self._directory):
            self._directory = epath.Path(Path(self._directory).resolve())
        self._directory.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._asynchronous = asynchronous
        self._damaged: set[int] = set()  # They do not count as kept.
        self._step = 0  # Of the latest save.
        step_folder, item_folder = commit.temporary_path_classes(self._directory)
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(),
                config=ocp.JsonCheckpointHandler(),
                data=ocp.JsonCheckpointHandler(),
                identity=ocp.JsonCheckpointHandler(),
                composite_options=ocp.CompositeOptions(temporary_path_class=item_folder),
            ),
            temporary_path_class=step_folder,
        )

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        existing = staging.entries(self._directory)
        folders = [path for path in existing if _STEP_FOLDER.fullmatch(path.name)]
        return sorted(int(path.name) for path in folders if commit.is_finished(path))

    def save(
        self, step: int, state: Any, *, config: dict[str, Any], iterator: Any | None = None
    ) -> None:
        """Saves `state` (a tree of arrays), `config` (JSON) and the position of the data
        `iterator` (its `get_state`, JSON) as one checkpoint.

        Waits for the previous save first, so that at most one is in progress and the oldest can be removed.

        Raises:
          UnwrittenCheckpointError: this save or the previous one failed.
        """
        self.wait()
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
            "config": ocp.args.JsonSave(config),  # pyright: ignore[reportCallIssue]
            "identity": ocp.args.JsonSave({"id": uuid.uuid4().hex}),  # pyright: ignore[reportCallIssue]
        }
        if iterator is not None:
            items["data"] = ocp.args.JsonSave(iterator.get_state())  # pyright: ignore[reportCallIssue]
        # The save in flight is not on the list yet: it takes the place of the one that is removed now, but only if
        # that leaves one behind that can be read.
        readable = [old for old in self.steps() if old not in self._damaged]
        for old in readable[: -max(self._keep - 1, 1)]:
            self._remove(old)
        self._damaged.discard(step)
        self._step = step
        with self._writing(step):
            staging.flush(self._workdir)  # The log reaches the bucket before the checkpoint does.
            self._checkpointer.save(self._folder(step), ocp.args.Composite(**items), force=True)
        if not self._asynchronous:
            self.wait()

    def restore(self, template: Any, *, iterator: Any | None = None) -> Restored | None:
        """The newest checkpoint that can be read, or None if the run has none.

        Removes what a killed process left of a save: only the process that restores a run saves in it.

        Args:
          template: tree of `jax.ShapeDtypeStruct` (with shardings, if the arrays are to be
            restored sharded) or of arrays.
          iterator: the data iterator, whose position is set to the saved one (`set_state`).

        Raises:
          MismatchedCheckpointError: the saved tree or a shape in it differs from the template; the
            first leaves that differ are named. Older checkpoints are not tried: they would differ
            too.
          DamagedCheckpointError: there are checkpoints, and none can be read.
          UnreadableStorageError: input and output fail while a checkpoint is read, repeatedly.
        """
        self.tidy()
        steps = distributed.from_first(self.steps())
        for step in reversed(steps):
            restored = self._restore_with_retries(step, template, iterator)
            if restored is not None:
                return restored
            self._damaged.add(step)
        if steps:
            raise DamagedCheckpointError(
                f"none of the checkpoints {steps} in {self._directory} can be read. To start this "
                f"run from nothing, move that folder away or choose another --workdir"
            )
        return None

    def wait(self) -> None:
        """Blocks until a save in the background is finished.

        Raises:
          UnwrittenCheckpointError: it failed, on this process or another.
        """
        with self._writing(self._step):
            self._checkpointer.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and frees the background threads."""
        self.wait()
        self._checkpointer.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            self.close()
        except Exception:
            if kind is None:
                raise
            logging.exception("the last checkpoint could not be written either")

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """TensorStore raises ValueError for a full disk, which would read like a wrong setting."""
        try:
            yield
        except Exception as error:
            try:
                left = ", ".join(map(str, self.steps())) or "none"
            except OSError:
                left = "unknown"
            raise UnwrittenCheckpointError(
                f"the checkpoint {self._folder(step)} could not be written ({type(error).__name__}: "
                f"{str(error)[:500]}). Finished checkpoints: {left}. Free space or repair the storage; the same "
                f"command resumes"
            ) from error

    def _folder(self, step: int) -> epath.Path:
        return self._directory / f"{step:08d}"

    def _remove(self, step: int) -> None:
        folder = self._folder(step)
        if jax.process_index() != 0:  # All hosts share one folder; one of them removes from it.
            return
        if not renames_atomically(folder):
            commit.remove(folder)
            return
        # Rename first: a process killed in the middle of the removal must not leave half a
        # checkpoint under its name.
        trash = Path(folder).with_name(f"removed-{folder.name}")
        Path(folder).rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def tidy(self) -> None:
        """Removes unfinished saves; in buckets they have a checkpoint's name but lack its commit file."""
        if jax.process_index() != 0:
            return
        for path in staging.entries(self._directory):
            unfinished = _STEP_FOLDER.fullmatch(path.name) and not commit.is_finished(path)
            if unfinished or _REMAINS.fullmatch(path.name):
                logging.warning("removing what is left of an unfinished save: %s", path)
                commit.remove(path)

    def _restore_with_retries(
        self, step: int, template: Any, iterator: Any | None
    ) -> Restored | None:
        """A checkpoint, on all processes; None if it is damaged."""
        for pause in (*_PAUSES, None):
            restored = fault = cause = None
            try:
                restored = self._restore(step, template, iterator)
            except MismatchedCheckpointError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file.
                cause, fault = error, passing_fault(error)
            if distributed.all_agree(restored is not None):
                return restored
            if distributed.all_agree(fault is None):
                if cause is not None:
                    logging.error(
                        "CHECKPOINT DAMAGED: %s cannot be read (%s: %s). Trying the next older one.",
                        self._folder(step),
                        type(cause).__name__,
                        str(cause)[:500],
                    )
                return None
            fault = fault or "on another process"
            if pause is None:
                raise UnreadableStorageError(
                    f"the checkpoint {self._folder(step)} could not be read in {len(_PAUSES) + 1} attempts ({fault}). "
                    f"The same command tries again; to resume from an older checkpoint, move this one away"
                ) from cause
            logging.warning("%s: %s. Trying again in %g seconds", self._folder(step), fault, pause)
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _restore(self, step: int, template: Any, iterator: Any | None) -> Restored:
        abstract = jax.tree.map(_abstract, template)
        _check_same(self._checkpointer.metadata(self._folder(step)), abstract, step)
        items: dict[str, Any] = {
            "state": ocp.args.StandardRestore(abstract),  # pyright: ignore[reportCallIssue]
            "config": ocp.args.JsonRestore(),
        }
        if iterator is not None:
            items["data"] = ocp.args.JsonRestore()
        loaded = self._checkpointer.restore(self._folder(step), ocp.args.Composite(**items))
        if iterator is not None:
            iterator.set_state(loaded.data)
        return Restored(step, loaded.state, loaded.config)


@dataclasses.dataclass(frozen=True)
class SavedArrays:
    """The arrays of one finished checkpoint, read one at a time.

    Attributes:
      folder: where the checkpoint is stored.
      leaves: dotted path -> shape and dtype.
      config: the saved settings.
    """

    folder: epath.Path
    leaves: dict[str, jax.ShapeDtypeStruct]
    config: dict[str, Any]

    def read(self, path: str) -> np.ndarray:
        """The array of a dotted path, on the host."""
        leaf: Any = self.leaves[path]
        spec: Any = ocp.RestoreArgs(restore_type=np.ndarray)
        for key in reversed(path.split(".")):
            leaf, spec = {key: leaf}, {key: spec}
        arguments = ocp.args.PyTreeRestore(item=leaf, restore_args=spec, partial_restore=True)  # pyright: ignore[reportCallIssue]
        with _local_reader(ocp.PyTreeCheckpointHandler) as reader:
            array = reader.restore(self.folder / "state", args=arguments)
        for key in path.split("."):
            array = array[key]
        return array

    def read_sharded(self, prefix: str, shapes: Any, shardings: Any) -> Any:
        """The arrays below a dotted path, sharded over devices; each process reads its own shards.

        Args:
          prefix: such as 'params'.
          shapes: nested dict of `ShapeDtypeStruct`; arrays are cast to its dtypes while they are read.
          shardings: the same structure with a sharding for each array.
        """
        item = {prefix: shapes}
        restore_arguments = jax.tree.map(
            lambda leaf, sharding: ocp.ArrayRestoreArgs(sharding=sharding, dtype=leaf.dtype),
            item,
            {prefix: shardings},
        )
        arguments = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
            item=item, restore_args=restore_arguments, partial_restore=True
        )
        with ocp.PyTreeCheckpointer() as reader:
            return reader.restore(self.folder / "state", args=arguments)[prefix]


def finished_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a workdir, or of a folder of checkpoints, that were written completely; oldest first."""
    folder = Path(folder)
    inside = (folder / "checkpoints") if (folder / "checkpoints").is_dir() else folder
    existing = staging.entries(staging.stored(inside))
    steps = sorted(path.name for path in existing if _STEP_FOLDER.fullmatch(path.name))
    return [inside / name for name in steps if commit.is_finished(staging.stored(inside / name))]


def open_arrays(folder: str | Path) -> SavedArrays | None:
    """The arrays of a checkpoint, without reading them; None if there is no checkpoint.

    Args:
      folder: a checkpoint's own folder, the folder of a run's checkpoints (the newest is used), or a workdir.

    Raises:
      DamagedCheckpointError: a checkpoint whose list of arrays or settings cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    finished = finished_checkpoints(folder)
    step = finished[-1] if finished else folder
    stored = staging.stored(step)
    if not _STEP_FOLDER.fullmatch(step.name) or not (stored / "state").is_dir():
        return None
    step = stored if buckets.is_address(stored) else epath.Path(step.resolve())
    try:
        with _local_reader(ocp.PyTreeCheckpointHandler) as reader:
            metadata: Any = reader.metadata(step / "state")
        with _local_reader(ocp.JsonCheckpointHandler) as reader:
            config = reader.restore(step / "config")
        tree = metadata.item_metadata.tree
        named_leaves = jax.tree_util.tree_leaves_with_path(tree)
        leaves = {
            leaf_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in named_leaves
            if hasattr(leaf, "dtype")
        }
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file.
        raise DamagedCheckpointError(
            f"the checkpoint {step} cannot be read ({type(error).__name__}: {str(error)[:300]})"
        ) from error
    return SavedArrays(step, leaves, config)


def identity(folder: str | Path) -> str | None:
    """The random name that a save was given; None of a checkpoint of an earlier version, or if it is none."""
    stored = staging.stored(folder)
    if not _STEP_FOLDER.fullmatch(stored.name) or not (stored / "identity").is_dir():
        return None
    with _local_reader(ocp.JsonCheckpointHandler) as reader:
        return reader.restore(stored / "identity")["id"]


def _local_reader(handler: Any) -> ocp.Checkpointer:
    """Reads only in this process: Orbax would otherwise wait for the others, which need not read the same."""
    if jax.process_count() == 1:
        return ocp.Checkpointer(handler())
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process_{process}",
    )
    return ocp.Checkpointer(
        handler(multiprocessing_options=options), multiprocessing_options=options
    )


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_same(metadata: Any, template: Any, step: int) -> None:
    """Raises MismatchedCheckpointError if the saved tree has other leaves or other shapes than the
    template."""
    saved = metadata.item_metadata if hasattr(metadata, "item_metadata") else metadata
    saved = saved["state"]
    saved = getattr(saved, "tree", saved)
    if saved is None:
        raise OSError("its list of arrays is missing or cannot be read")

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        # Orbax gives lists and dicts where a state has tuples and NamedTuples: compare names, not
        # containers.
        return {leaf_name(path): tuple(leaf.shape) for path, leaf in leaves}

    saved_shapes, expected_shapes = shapes(saved), shapes(template)
    differ = [
        f"{name}: checkpoint {saved_shapes.get(name, 'has none')}, this run {expected_shapes.get(name, 'has none')}"
        for name in sorted(saved_shapes.keys() | expected_shapes.keys())
        if saved_shapes.get(name) != expected_shapes.get(name)
    ]
    if differ:
        raise MismatchedCheckpointError(
            f"the checkpoint of step {step} belongs to another model or optimizer; {len(differ)} "
            f"arrays differ, the first being {'; '.join(differ[:3])}. Use the config it was started "
            f"with, or another --workdir"
        )


def leaf_name(path: Any) -> str:
    """The dotted path of a leaf of a saved tree, such as `params.language.embedding`."""
    return ".".join(_name(key) for key in path)


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
