"""The checkpoints of a run, for sweeps: which exist, whether their content is the same, and how they are loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tuna_jax.training import staging
from tuna_jax.training.checkpoints import finished_checkpoints, identity, open_arrays
from tuna_jax.training.weights_file import exported
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.text_files import read_json


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One of a run's checkpoints, or a converted model.

    Attributes:
      run: the workdir's name.
      step: the number of training steps; 0 for a converted model.
      path: its folder or file.
    """

    run: str
    step: int
    path: Path


def listed(workdir: Path) -> list[Checkpoint]:
    """The checkpoints that a run has now, oldest first; for a converted model, the model.

    Raises:
      FileNotFoundError: the workdir does not exist.
    """
    if not workdir.exists():
        raise FileNotFoundError(
            f"no run at {workdir}; name a workdir of `python -m tuna_jax.train`"
        )
    if not (workdir / "checkpoints").is_dir():
        return [Checkpoint(workdir.name, 0, exported(workdir) or workdir)]
    return [
        Checkpoint(workdir.name, int(path.name), path) for path in finished_checkpoints(workdir)
    ]


def chosen(workdir: Path, steps: tuple[int, ...]) -> list[Checkpoint]:
    """The checkpoints of these steps, some of which may not exist; without steps, all that the run has now."""
    existing = listed(workdir)
    if not steps:
        return existing
    by_step = {checkpoint.step: checkpoint for checkpoint in existing}
    folder = workdir / "checkpoints"
    return [by_step.get(s, Checkpoint(workdir.name, s, folder / f"{s:08d}")) for s in steps]


def followed(
    workdir: Path,
    *,
    until: int,
    patience: float,
    wait: Callable[[float], None] = time.sleep,
    interval: float = 5.0,
) -> Iterator[Checkpoint]:
    """Every checkpoint as it appears, oldest first.

    Ends with the checkpoint of step `until`, or of the run's last step if `until` is 0; or when no new one has appeared
    for `patience` seconds.

    Args:
      workdir: of a run that is still training, or has not begun yet.
      until, patience: see above.
      wait: sleeps for a number of seconds.
      interval: seconds between two checks.
    """
    seen: set[int] = set()
    waited = 0.0
    while True:
        folder = workdir / "checkpoints"
        existing = listed(workdir) if folder.is_dir() else []
        new = [checkpoint for checkpoint in existing if checkpoint.step not in seen]
        for checkpoint in new:
            seen.add(checkpoint.step)
            yield checkpoint
        if new:
            waited = 0.0
            # One of them may have been removed while it was measured.
            ends = {until or _last_step(checkpoint.path) for checkpoint in new} - {0}
            if ends and max(seen) >= max(ends):
                return
            continue
        if waited >= patience:
            return
        wait(interval)
        waited += interval


def _last_step(path: Path) -> int:
    """The number of steps that a checkpoint's run is configured for; 0 if the checkpoint no longer exists."""
    try:
        arrays = open_arrays(path)
    except (OSError, RuntimeError):
        return 0
    return 0 if arrays is None else int(arrays.config.get("steps", 0))


class Hashes:
    """Hashes of files and folders, cached in a file until sizes or modification times change.

    A file that was removed keeps its last hash: results of a checkpoint outlive it.

    Args:
      memory: JSON file with earlier hashes.
    """

    def __init__(self, memory: Path):
        self._memory = memory
        try:
            self._hashes: dict[str, list[str]] = read_json(memory)
        except (OSError, ValueError):
            self._hashes = {}

    def __call__(self, path: Path) -> str:
        """The hash of a file's content, or of the names and contents of all files in a folder.

        Raises:
          FileNotFoundError: it does not exist, and was never hashed.
        """
        path = path.resolve()
        cached = self._hashes.get(str(path))
        if not path.exists():
            if cached is None:
                raise FileNotFoundError(f"{path} does not exist")
            return cached[1]
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        stats = [(str(file.relative_to(path)), file.stat()) for file in files]
        stamp = _sha([f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats])
        if cached is None or cached[0] != stamp:
            content = [
                f"{name} {_hash_file(file)}" for (name, _), file in zip(stats, files, strict=True)
            ]
            cached = [stamp, _sha(content)]
            self._keep(str(path), cached)
        return cached[1]

    def of_checkpoint(self, path: Path) -> str:
        """What identifies the parameters at a path: the name of the save, otherwise the hash of all files.

        Raises:
          FileNotFoundError: it does not exist, and was never identified.
        """
        name = f"save {staging.address_of(path)}"
        found = identity(path)
        if found is not None:
            if self._hashes.get(name) != ["", found]:
                self._keep(name, ["", found])
            return found
        if not path.exists() and name in self._hashes:
            return self._hashes[name][1]
        return self(path)

    def once(self, name: str, find: Callable[[], str]) -> str:
        """The text that `find` returns, cached under a name that states everything that it depends on."""
        if name not in self._hashes:
            self._keep(name, ["", find()])
        return self._hashes[name][1]

    def _keep(self, name: str, entry: list[str]) -> None:
        self._hashes[name] = entry
        with atomic_file(self._memory) as scratch:
            scratch.write_text(json.dumps(self._hashes, indent=1) + "\n", encoding="utf-8")


def _sha(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
