"""What each of several processes reads, and the most memory that it holds, while all load one sharded model: as ratios
to the bytes of its own shards. Weights are random, in bfloat16; processes and devices are virtual ones of this machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from tuna_jax.config import TunaConfig, preset
from tuna_jax.conversion.convert_checkpoint import parameter_shapes, parameters_writer
from tuna_jax.parallel import environment
from tuna_jax.perf import harness
from tuna_jax.utils.param_tree import flatten


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      preset: the model.
      layers: its language layers; 0: the preset's.
      processes, devices: processes, and virtual devices of each.
      tensor: size of the mesh's axis `tensor`; all other devices are along `fsdp`.
    """

    preset: str = "tuna_1p5b"
    layers: int = 0
    processes: int = 2
    devices: int = 4
    tensor: int = 1

    def __post_init__(self) -> None:
        harness.at_least(self, processes=1, devices=1, tensor=1)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What one process did.

    Attributes:
      process: its number.
      shards: bytes of the parameters on its devices.
      read: bytes that it read of files.
      peak: the most memory that it held, beyond what it held before, in bytes.
      seconds: it took.
    """

    process: int
    shards: int
    read: int
    peak: int
    seconds: float


def measure(settings: Settings, folder: Path) -> list[Loaded]:
    """One load by all processes, of a model that is written to `folder` first."""
    model = folder / "model.safetensors"
    _write_random(model, _config(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    work = (
        f"from tuna_jax.perf import loading; loading.load({str(model)!r}, tensor={settings.tensor})"
    )
    running = []
    for process in range(settings.processes):
        variables = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={settings.devices}",
            environment.COORDINATOR: f"127.0.0.1:{port}",
            environment.PROCESSES: str(settings.processes),
            environment.PROCESS: str(process),
        }
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", work],
                env={**os.environ, **variables},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a process could not load the model; see its error above")
    return [Loaded(**json.loads(text.split("\n")[-2])) for text in printed]


def table(loads: Sequence[Loaded]) -> str:
    """The processes as a table for a terminal."""
    lines = [
        "process    its shards          read    of shards   most memory    of shards   seconds"
    ]
    for one in loads:
        lines.append(
            f"{one.process:<9}{one.shards / 2**30:>8.2f} GiB{one.read / 2**30:>10.2f} GiB"
            f"{one.read / one.shards:>13.3f}{one.peak / 2**30:>10.2f} GiB{one.peak / one.shards:>13.3f}"
            f"{one.seconds:>10.1f}"
        )
    return "\n".join(lines)


def record(loads: Sequence[Loaded], settings: Settings) -> dict[str, Any]:
    """The numbers and settings, for JSON."""
    return harness.record([], settings) | {"loads": [dataclasses.asdict(one) for one in loads]}


def load(model: str, tensor: int) -> None:
    """What each process runs: loads the model's network, and prints a `Loaded` as JSON."""
    from tuna_jax.conversion.checkpoint_source import open_parameters
    from tuna_jax.inference.components import read_parameters
    from tuna_jax.models import tuna
    from tuna_jax.parallel import distributed, param_sharding
    from tuna_jax.parallel.mesh import MeshSettings, make_mesh

    distributed.initialize()
    config, _ = open_parameters(model)
    mesh = make_mesh(MeshSettings(data=1, fsdp=-1, tensor=tensor))
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, ml_dtypes.bfloat16), tuna.shapes(config)
    )
    shardings = param_sharding.shardings(shapes, mesh)
    distributed.wait_for_all()
    Path("/proc/self/clear_refs").write_bytes(b"5")  # The peak counts from now on.
    before, read, begun = _status("VmRSS"), _read_bytes(), time.perf_counter()
    params = jax.block_until_ready(read_parameters(model, shapes, shardings, check_weights=False))
    seconds, read = time.perf_counter() - begun, _read_bytes() - read
    shards = sum(
        shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards
    )
    peak = _status("VmHWM") - before
    loaded = Loaded(jax.process_index(), shards, read, peak, seconds)
    print(json.dumps(dataclasses.asdict(loaded)), flush=True)
    distributed.wait_for_all()


def _config(settings: Settings) -> TunaConfig:
    config = preset(settings.preset)
    if not settings.layers:
        return config
    language = dataclasses.replace(config.language, layers=settings.layers)
    return dataclasses.replace(config, language=language)


def _write_random(path: Path, config: TunaConfig) -> None:
    """A model with random weights in bfloat16, one parameter at a time."""
    shapes = {
        name: leaf
        for name, leaf in flatten(parameter_shapes(config)).items()
        if not name.startswith("vae.")
    }
    writer = parameters_writer(path, config, shard_bytes=10**12)(
        {name: (leaf.shape, np.dtype(ml_dtypes.bfloat16)) for name, leaf in shapes.items()}
    )
    some = np.random.default_rng(0).standard_normal(2**20).astype(ml_dtypes.bfloat16)
    with writer:
        for name, leaf in shapes.items():
            writer.write(name, np.resize(some, leaf.shape))


def _status(name: str) -> int:
    """A line of this process's memory, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(name))


def _read_bytes() -> int:
    """Bytes that this process has read by now, of files in memory too."""
    with open("/proc/self/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("rchar"))
