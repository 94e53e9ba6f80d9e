"""What every check receives: the processes, the folder under test, and the experiment."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import math
from collections.abc import Mapping
from typing import Any

from tuna_jax.diagnostics.processes import Processes
from tuna_jax.parallel.mesh import MeshSettings, settings_of
from tuna_jax.training.loop import Loop

TINY_STEPS = 12
"""Steps of `tiny_experiment`."""


@dataclasses.dataclass
class Context:
    """What every check receives.

    Attributes:
      processes: of this launch.
      folder: a new folder, or address in a bucket, for this examination; the same on all processes.
      is_shared: whether the user has named it; otherwise it is a temporary folder of process 0's host.
      scratch: a new local folder of process 0's host; `folder` itself unless that is in a bucket.
      trainers: 'module:function' by kind of experiment.
      values: the experiment, as a mapping.
      is_default: whether the experiment is `tiny_experiment`.
      mesh: of `--mesh`; None: the experiment's own.
      megabytes: size of the file with which rates are measured.
      kept: what checks leave for later ones.
    """

    processes: Processes
    folder: str
    is_shared: bool
    scratch: str
    trainers: Mapping[str, str]
    values: dict[str, Any]
    is_default: bool = True
    mesh: Mapping[str, int] | None = None
    megabytes: int = 128
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)

    def experiment(self) -> dict[str, Any]:
        """The experiment; JAX's backend must have started.

        `--mesh` is for the user's: the tiny model does not divide over every mesh.
        """
        if self.is_default:
            return tiny_experiment()
        return self.values if self.mesh is None else {**self.values, "mesh": dict(self.mesh)}

    def mesh_settings(self) -> MeshSettings:
        """The mesh of `--mesh`, or else that of `experiment`."""
        return settings_of(self.experiment().get("mesh", {}) if self.mesh is None else self.mesh)

    def trainer(self, kind: Any) -> str:
        """'module:function' of a kind of experiment; ValueError if it does not let others have its model and data."""
        if kind in self.trainers:
            module, _, function = self.trainers[kind].partition(":")
            run = getattr(importlib.import_module(module), function)
            if "train_loop" in inspect.signature(run).parameters:
                return self.trainers[kind]
        raise ValueError(
            f"config.kind is {kind!r}; doctor knows experiments of the kinds 'emoji' and 'multitask'"
        )


def call_trainer(name: str, values: Mapping[str, Any], workdir: str, train_loop: Loop) -> None:
    """Calls a trainer by 'module:function', with a loop in place of its own, and without what it prints.

    Raises:
      Exception: what it raised, with the last lines that it printed as a note.
    """
    module, _, function = name.partition(":")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            getattr(importlib.import_module(module), function)(
                values, workdir, train_loop=train_loop
            )
    except Exception as error:
        error.add_note("\n".join(printed.getvalue().split("\n")[-20:]))
        raise


def tiny_experiment() -> dict[str, Any]:
    """The emoji experiment with a tiny model on all devices, which trains for some seconds; starts JAX's backend.

    It is the same for all checks, so that its program compiles once.
    """
    import jax

    tpu_slices = {getattr(d, "slice_index", 0) for d in jax.devices() if d.platform == "tpu"}
    slices, devices = max(len(tpu_slices), 1), jax.device_count()
    rows = devices * max(2, 4 // devices)  # A multiple of the devices, of both tasks.
    return {
        "kind": "emoji",
        "steps": TINY_STEPS,
        "model": {
            "preset": "emoji",
            "language": {"layers": 1},
            "representation": {"layers": 1},
            "flow_head": {"layers": 1},
        },
        "data": {
            "scenes": 64,
            "generation_rows": rows - rows // 3,
            "understanding_rows": rows // 3,
        },
        "optimizer": {"algorithm": "adamw", "learning_rate": 1e-3, "warmup": 5},
        "mesh": {"slices": slices, "data": -1, "fsdp": math.gcd(devices // slices, 8)},
        "log_every": 1,
        "checkpoint_every": 5,
        "sample_every": 0,
    }
