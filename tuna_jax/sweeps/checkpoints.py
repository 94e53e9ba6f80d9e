"""The checkpoints of a run, for whoever measures them: which there are, whether they are the same, what is in them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tuna_jax.training.checkpoints import finished_checkpoints, open_arrays
from tuna_jax.training.weights_file import MODEL_FILE
from tuna_jax.utils.atomic_io import atomic_file


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One of a run's checkpoints, or a model that is none.

    Attributes:
      run: the workdir's name.
      step: after so many; 0 for a converted model.
      path: its folder or file.
    """

    run: str
    step: int
    path: Path


def listed(workdir: Path) -> list[Checkpoint]:
    """The checkpoints that a run has now, oldest first; of what has none, such as a converted model, the model.

    Raises:
      FileNotFoundError: nothing there.
    """
    if not workdir.exists():
        raise FileNotFoundError(
            f"no run at {workdir}; name a workdir of `python -m tuna_jax.train`"
        )
    if not (workdir / "checkpoints").is_dir():
        exported = workdir / MODEL_FILE
        return [Checkpoint(workdir.name, 0, exported if exported.is_file() else workdir)]
    return [
        Checkpoint(workdir.name, int(path.name), path) for path in finished_checkpoints(workdir)
    ]


def chosen(workdir: Path, steps: tuple[int, ...]) -> list[Checkpoint]:
    """The checkpoints of these steps, of which some may not be there; no steps: all that the run has now."""
    found = listed(workdir)
    if not steps:
        return found
    known = {one.step: one for one in found}
    folder = workdir / "checkpoints"
    return [known.get(s, Checkpoint(workdir.name, s, folder / f"{s:08d}")) for s in steps]


def followed(
    workdir: Path,
    *,
    until: int,
    patience: float,
    wait: Callable[[float], None] = time.sleep,
    interval: float = 5.0,
) -> Iterator[Checkpoint]:
    """Every checkpoint as it appears, oldest first.

    Ends with the checkpoint of step `until`, or of the run's own last step if that is 0; or when none has come for
    `patience` seconds.

    Args:
      workdir: of a run that is still training; it need not have begun.
      until, patience: see above.
      wait: sleeps.
      interval: seconds between two looks.
    """
    seen: set[int] = set()
    waited = 0.0
    while True:
        folder = workdir / "checkpoints"
        fresh = [
            one for one in (listed(workdir) if folder.is_dir() else []) if one.step not in seen
        ]
        for one in fresh:
            seen.add(one.step)
            yield one
        if fresh:
            waited = 0.0
            # One of them may have gone while it was measured.
            ends = {until or _last_step(one.path) for one in fresh} - {0}
            if ends and max(seen) >= max(ends):
                return
            continue
        if waited >= patience:
            return
        wait(interval)
        waited += interval


def _last_step(path: Path) -> int:
    """How long the run of a checkpoint is meant to be; 0: it is gone."""
    try:
        arrays = open_arrays(path)
    except (OSError, RuntimeError):
        return 0
    return 0 if arrays is None else int(arrays.config.get("steps", 0))


class Hashes:
    """Hashes of files and folders, remembered in a file for as long as sizes and times stay as they were.

    What has gone since keeps its last hash: results of a checkpoint outlive it.

    Args:
      memory: JSON file of what was hashed before.
    """

    def __init__(self, memory: Path):
        self._memory = memory
        try:
            self._known: dict[str, list[str]] = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            self._known = {}

    def __call__(self, path: Path) -> str:
        """The hash of a file's content, or of the names and contents of all files in a folder.

        Raises:
          FileNotFoundError: it is not there, and never was.
        """
        path = path.resolve()
        known = self._known.get(str(path))
        if not path.exists():
            if known is None:
                raise FileNotFoundError(f"{path} is not there")
            return known[1]
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        stats = [(str(file.relative_to(path)), file.stat()) for file in files]
        stamp = _sha([f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats])
        if known is None or known[0] != stamp:
            content = [
                f"{name} {_hash_file(file)}" for (name, _), file in zip(stats, files, strict=True)
            ]
            known = [stamp, _sha(content)]
            self._keep(str(path), known)
        return known[1]

    def once(self, name: str, find: Callable[[], str]) -> str:
        """A text that `find` finds, remembered by a name that says all that it depends on."""
        if name not in self._known:
            self._keep(name, ["", find()])
        return self._known[name][1]

    def _keep(self, name: str, known: list[str]) -> None:
        self._known[name] = known
        with atomic_file(self._memory) as scratch:
            scratch.write_text(json.dumps(self._known, indent=1) + "\n", encoding="utf-8")


def _sha(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
