"""The checkpoints of a run, for sweeps: which exist, whether their content is the same, and how they are loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jax.sharding import Mesh

from tuna_jax.conversion import checkpoint_source
from tuna_jax.conversion.image_vae_file import shipped_image_vae
from tuna_jax.inference import run_record
from tuna_jax.inference.components import read_parameters, read_tokenizer, read_vae
from tuna_jax.inference.pipeline import Model, on_mesh
from tuna_jax.models import tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.training.checkpoints import finished_checkpoints, open_arrays
from tuna_jax.training.weights_file import MODEL_FILE
from tuna_jax.utils.atomic_io import atomic_file


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
        exported = workdir / MODEL_FILE
        return [Checkpoint(workdir.name, 0, exported if exported.is_file() else workdir)]
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
            self._hashes: dict[str, list[str]] = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
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
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def vae_of(path: Path) -> Path | None:
    """The VAE file that a run names, or the packaged one; None if the model contains its VAE.

    Raises:
      ValueError, RuntimeError: the model cannot be read.
    """
    record = checkpoint_source.settings_of(path, checkpoint_source.open_parameters(path)[1])
    return None if record is None else Path(record.get("vae") or shipped_image_vae())


def load(
    path: Path, mesh: Mesh, *, averaged: bool = True, vae: str = "", tokenizer: str = ""
) -> Model:
    """The model of a checkpoint, with its parameters and computations sharded over a mesh.

    Args:
      path: a checkpoint's folder, `model.safetensors`, or a converted model.
      mesh: the devices.
      averaged: load the averaged parameters, if the checkpoint has some.
      vae, tokenizer: as for `Tuna.load`; empty uses a run's own, or the VAE in the model and the full tokenizer.

    Raises:
      FileNotFoundError, ValueError, RuntimeError: it does not exist, or is incomplete.
    """
    config, state = checkpoint_source.open_parameters(path, averaged=averaged)
    shapes = tuna.shapes(config)
    params = read_parameters(
        path, shapes, param_sharding.shardings(shapes, mesh), averaged=averaged
    )
    record = checkpoint_source.settings_of(path, state)
    if record is not None:
        model = run_record.of_run(record, params, vae or None, tokenizer or None)
    else:
        vae_config, vae_params = read_vae(Path(vae) if vae else path, config)
        config = dataclasses.replace(config, vae=vae_config)
        side = config.representation.grid * config.vae.spatial_factor
        words = read_tokenizer(tokenizer or None, config)
        model = Model(config, params, vae_params, words, (side, side))
    return on_mesh(model, mesh)
