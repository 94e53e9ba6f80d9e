"""Frequent saves of a run's state on each host's own disk or memory, between its checkpoints.

A checkpoint in a bucket is safe and slow; a preempted or failed run loses the steps since the last one. A local save
holds the shards of this process's devices only, and a thread writes it without a word to other processes. A restarted
run takes the newest local save that *all* processes have, if it is newer than the newest checkpoint and has the shards
that their devices need; otherwise it takes the checkpoint. So a replaced host, or another mesh, costs the steps since
the checkpoint, and everything else only those since the local save.

    FOLDER/RUN/process-I-of-N/STEP.safetensors

A tensor is a shard, `params.language.embedding@0:512,0:256`; the metadata have the settings of the run and the position
of the data iterator. RUN is a random name, kept in the workdir, so that saves of an earlier run are never taken.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from safetensors import safe_open

from tuna_jax.parallel import distributed
from tuna_jax.training import staging
from tuna_jax.training.checkpoints import Restored, leaf_name
from tuna_jax.training.config import LocalSaveSettings
from tuna_jax.utils import safetensors_files
from tuna_jax.utils.text_files import read_text

VARIABLE = "TUNA_JAX_LOCAL_SAVES"
"""The environment variable with the folder, which launchers set."""
_ID_FILE = "run_id.txt"
_SUFFIX = ".safetensors"
_ID_LENGTH = 16


class LocalSaves:
    """The local saves of one process of a run.

    Args:
      settings: see `LocalSaveSettings`.
      workdir: of the run; receives the run's name.

    As a context manager it waits for the last save on exit.
    """

    def __init__(self, settings: LocalSaveSettings, workdir: str | Path) -> None:
        self._settings, self._workdir = settings, workdir
        self._thread: threading.Thread | None = None
        self._failed = False
        if not settings.every:
            return
        root = settings.folder or os.environ.get(VARIABLE) or _default_folder()
        process = f"process-{jax.process_index()}-of-{jax.process_count()}"
        self._folder = Path(root) / _run_id(Path(workdir)) / process

    def due(self, step: int) -> bool:
        """Whether a save follows this step."""
        return bool(self._settings.every) and step % self._settings.every == 0

    def save(
        self, step: int, state: Any, *, config: Mapping[str, Any], iterator: Any = None
    ) -> None:
        """Copies this process's shards to host memory, and writes them in a thread.

        A folder that cannot be written ends local saves with a warning, and not the run.
        """
        self.wait()
        if self._failed:
            return
        staging.flush(self._workdir)  # The log has the steps of every save.
        leaves = jax.tree_util.tree_leaves_with_path(state)
        for _, leaf in leaves:
            leaf.copy_to_host_async()
        tensors = {
            f"{leaf_name(path)}@{_key(shard.index, leaf.shape)}": np.array(shard.data)
            for path, leaf in leaves
            for shard in leaf.addressable_shards
        }
        content = {
            "step": str(step),
            "config": json.dumps(config),
            "data": json.dumps(iterator.get_state()) if iterator is not None else "null",
        }

        def write() -> None:
            try:
                old = self._steps()
                safetensors_files.write(self._file(step), tensors, content)
                for number in old[: len(old) + 1 - self._settings.keep]:
                    self._file(number).unlink(missing_ok=True)
            except OSError as error:
                self._failed = True
                logging.warning(
                    "no more local saves: %s cannot be written (%s). Checkpoints are written; free space there, or "
                    "set config.local_saves.folder",
                    self._file(step),
                    error,
                )

        self._thread = threading.Thread(target=write, name="local save")
        self._thread.start()

    def restore(
        self, template: Any, *, config: Mapping[str, Any], iterator: Any, newer_than: int
    ) -> Restored | None:
        """The newest save that all processes have, or None; all must call it.

        Saves that are not taken are removed: the run continues from another state.

        Args:
          template: tree of `jax.ShapeDtypeStruct` with shardings.
          config: the settings of the run. A save with another `mixture`, which says what batch n is, is not taken:
            trainers make it from the newest checkpoint.
          iterator: the data iterator, whose position is set to the saved one.
          newer_than: the step of the newest checkpoint; a save that is not newer is not taken.
        """
        if not self._settings.every:
            return None
        steps = [step for step in self._steps() if step > newer_than]
        for step in reversed(distributed.from_first(steps)):
            if not distributed.all_agree(step in steps):
                continue
            restored, data = None, None
            try:
                restored, data = self._read(step, template)
                if _order(restored.config) != _order(config):
                    restored = None
                    raise ValueError("the data, or the weights of their streams, have changed")
            except Exception as error:  # A damaged file, or shards of another mesh.
                logging.warning("the local save %s is not used: %s", self._file(step), error)
            if distributed.all_agree(restored is not None):
                if iterator is not None:
                    iterator.set_state(data)
                self._remove(newer_than=step)
                return restored
        self._remove(newer_than=-1)
        return None

    def remove(self) -> None:
        """Removes all saves of the run, which has ended."""
        if self._settings.every:
            self.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> LocalSaves:
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()

    def wait(self) -> None:
        """Blocks until the save in the thread is written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _file(self, step: int) -> Path:
        return self._folder / f"{step:08d}{_SUFFIX}"

    def _steps(self) -> list[int]:
        names = [path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}")]
        return sorted(int(name) for name in names if name.isdigit())

    def _remove(self, newer_than: int) -> None:
        for step in self._steps():
            if step > newer_than:
                self._file(step).unlink(missing_ok=True)

    def _read(self, step: int, template: Any) -> tuple[Restored, Any]:
        with safe_open(self._file(step), framework="numpy") as file:
            content, names = file.metadata(), set(file.keys())

            def array(path: Any, leaf: Any) -> jax.Array:
                shards = []
                for device, index in leaf.sharding.addressable_devices_indices_map(
                    leaf.shape
                ).items():
                    name = f"{leaf_name(path)}@{_key(index, leaf.shape)}"
                    if name not in names:
                        raise ValueError(f"it has no shard {name}")
                    values = file.get_tensor(name)
                    if values.dtype != leaf.dtype:
                        raise ValueError(f"{name} is {values.dtype} there, and {leaf.dtype} here")
                    shards.append(jax.device_put(values, device))
                return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)

            state = jax.tree_util.tree_map_with_path(array, template)
        return Restored(step, state, json.loads(content["config"])), json.loads(content["data"])


def _order(config: Mapping[str, Any]) -> str:
    """What determines which examples batch n has, as text."""
    return json.dumps(config.get("mixture"), sort_keys=True)


def _default_folder() -> Path:
    return Path(tempfile.gettempdir()) / "tuna_jax_saves"


def _run_id(workdir: Path) -> str:
    """A random name that the run keeps in its workdir, the same on all processes."""
    file, name = workdir / _ID_FILE, ""
    if jax.process_index() == 0:
        if not file.exists():
            file.write_text(uuid.uuid4().hex[:_ID_LENGTH] + "\n")
        name = read_text(file).strip()
    return "".join(map(chr, distributed.from_first(list(map(ord, name)))))


def _key(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """A shard's place in its array, such as `0:512,256:512`."""
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    return ",".join(f"{start}:{stop}" for start, stop in bounds)
