"""What test_leader.py and test_sharded_export.py run on two processes with two devices each; see `main`."""

import dataclasses
import errno
import functools
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import two_processes as this  # `__main__` has another name on the other process.
from jax.sharding import NamedSharding, PartitionSpec

from tuna_jax.parallel import agreement, distributed, leader
from tuna_jax.parallel.mesh import MeshSettings, make_mesh
from tuna_jax.training import host_waits, sharded_export
from tuna_jax.training.config import LocalSaveSettings
from tuna_jax.training.local_saves import LocalSaves
from tuna_jax.training.weights_file import load_model


@dataclasses.dataclass(frozen=True)
class Model:
    """Something of which every process holds a part."""

    numbers: Any
    scale: float = 1.0
    shared: Any = None
    shared_fields = ("scale",)


@leader.on_all_processes_shared
def load(start: float) -> Model:
    mesh = make_mesh(MeshSettings(data=1, fsdp=4))
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = np.arange(8, dtype=np.float32) + start
    return Model(jax.make_array_from_callback((8,), sharding, lambda index: whole[index]))


@leader.on_all_processes
def total(model: Model, more: np.ndarray, *, fail_on: int | None = None) -> float:
    if fail_on in (jax.process_index(), -1):
        raise ValueError(f"no sum on {fail_on}")
    leader.agree()
    result = jax.jit(lambda x, y: (x * model.scale).sum() + y.sum())(model.numbers, more)
    return float(distributed.to_host(result))


@leader.on_all_processes
def fail_late(process: int) -> int:
    """Has nothing that devices do together, and no `agree`."""
    if jax.process_index() == process:
        raise ValueError(f"late on {process}")
    return process


@leader.on_all_processes
def objects_held() -> list[int]:
    gc.collect()
    return distributed.to_host(
        distributed_counts(len(leader._state.objects))  # What is under test is that it shrinks.
    ).tolist()


def distributed_counts(count: int) -> np.ndarray:
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.array(count))


def command() -> dict[str, Any]:
    """What process 0 runs."""
    results: dict[str, Any] = {}
    model = this.load(1.0)
    large = np.ones(3_000_000, np.float32)  # Travels in several parts.
    results["sum"] = this.total(model, large)
    results["scaled"] = this.total(dataclasses.replace(model, scale=2.0), np.zeros(1, np.float32))
    for process in (1, -1):
        try:
            this.total(model, large, fail_on=process)
        except Exception as error:
            results[f"fail_on_{process}"] = [type(error).__name__, str(error)]
    for process in (0, 1):
        try:
            this.fail_late(process)
        except Exception as error:
            results[f"late_on_{process}"] = [type(error).__name__, str(error)]
    results["after"] = this.total(model, np.zeros(1, np.float32))
    results["held"] = this.objects_held()
    del model
    gc.collect()
    other = this.load(2.0)
    results["held_later"] = this.objects_held()
    results["other"] = this.total(other, np.zeros(1, np.float32))
    return results


def broken() -> None:
    raise RuntimeError("the command failed")


def parameters() -> dict[str, Any]:
    """Parameters over all devices: split along the first or second axis, and whole ones."""
    mesh = make_mesh(MeshSettings(data=1, fsdp=4))

    def put(shape: tuple[int, ...], *axes: str | None) -> jax.Array:
        whole = np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(shape, sharding, lambda index: whole[index])

    layers = {"kernel": put((6, 8, 12), None, None, "fsdp"), "bias": put((6, 12))}
    return {"layers": layers, "table": put((20, 8), "fsdp"), "scale": put(())}


def exports(folder: Path) -> dict[str, Any]:
    """Exports in one file, in one per process, after a full disk, and again."""
    results: dict[str, Any] = {}
    params, settings = parameters(), {"model": {"name": "x"}}

    def export(name: str, step: int = 7, one_file_bytes: int = 0) -> None:
        (folder / name).mkdir(exist_ok=True)
        sharded_export.export(
            folder / name, params, settings, step, one_file_bytes=one_file_bytes, slab_bytes=400
        )

    export("one", one_file_bytes=10**9)
    (folder / "two").mkdir(exist_ok=True)
    (folder / "two" / ".model-00001-of-00002.safetensors-0123").touch()  # Of a killed process.
    distributed.wait_for_all()
    export("two")
    # The disk of process 1 is full, then it is not: only its file is written again.
    write = sharded_export.write
    if jax.process_index() == 1:

        def full(file: Any, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        sharded_export.write = full
    try:
        export("full")
    except OSError as error:
        results["full"] = str(error)
    results["files_when_full"] = sorted(path.name for path in (folder / "full").iterdir())
    sharded_export.write = write
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "full").glob("model-*")}
    export("full")
    results["written_again"] = [
        path.name
        for path in (folder / "full").glob("model-*")
        if before.get(path.name) != path.stat().st_mtime_ns
    ]
    export("full", step=8)  # A later step replaces all.
    # One process is slow; the others wait for it.
    if jax.process_index() == 1:

        def slow(file: Any, content: bytes) -> None:
            time.sleep(0.05)
            write(file, content)

        sharded_export.write = slow
    export("slow")
    expected = {name: distributed.to_host(leaf) for name, leaf in _flat(params).items()}
    for name, step in (("one", 7), ("two", 7), ("full", 8), ("slow", 7)):
        loaded, _, loaded_step = load_model(folder / name)
        results[f"equal_{name}"] = loaded_step == step and all(
            np.array_equal(array, expected[key]) for key, array in _flat(loaded).items()
        )
        results[f"files_{name}"] = sorted(path.name for path in (folder / name).iterdir())
    return results


def _flat(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def agreements() -> list[str]:
    """The messages about equal facts, about other data, and about other code on process 1."""
    messages = []
    same = {"configuration": {"steps": 10}, "data": {"hash": "a"}, "code": agreement.code()}
    process = jax.process_index()
    data = same | {"data": {"hash": f"of {process}"}}
    edited = same | {"code": same["code"] | ({"flow.py": "0"} if process else {})}
    for facts in (same, data, edited):
        try:
            agreement.check(facts)
            messages.append("")
        except agreement.DisagreementError as error:
            messages.append(str(error))
    return messages


class Position:
    """A data iterator, as far as saves know it."""

    def __init__(self, position: int):
        self.position = position

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def local_saves(folder: Path) -> dict[str, Any]:
    """What is restored of saves that both processes have, that one lacks, and that another mesh needs."""
    results: dict[str, Any] = {}
    state, workdir = parameters(), folder / "run"
    workdir.mkdir(exist_ok=True)
    settings = LocalSaveSettings(every=1, folder=str(folder / "local"), keep=2)
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    whole = NamedSharding(make_mesh(MeshSettings(data=1, fsdp=4)), PartitionSpec())
    other = jax.tree.map(lambda leaf: leaf.update(sharding=whole), template)

    def restored(template: Any, newer_than: int) -> list[Any]:
        iterator = Position(-1)
        with LocalSaves(settings, workdir) as saves:
            found = saves.restore(template, config={}, iterator=iterator, newer_than=newer_than)
            left = saves._steps()
        if found is None:
            return [None, left]
        equal = all(
            leaf.sharding.is_equivalent_to(old.sharding, leaf.ndim)
            and np.array_equal(distributed.to_host(leaf), distributed.to_host(old) * found.step)
            for leaf, old in zip(jax.tree.leaves(found.state), jax.tree.leaves(state), strict=True)
        )
        return [found.step, iterator.position, found.config, equal, left]

    def save(*steps: int) -> None:
        with LocalSaves(settings, workdir) as saves:
            for step in steps:
                scaled = jax.tree.map(functools.partial(jnp.multiply, step), state)
                iterator = Position(10 * step)
                saves.save(step, scaled, config={"step": step}, iterator=iterator)
        distributed.wait_for_all()

    save(1, 2, 3)
    files = sorted((folder / "local").rglob("*.safetensors"))
    results["files"] = [f"{file.parent.name}/{file.name}" for file in files]
    distributed.wait_for_all()
    if jax.process_index() == 1:  # It was killed before it had written the last one.
        files[-1].unlink()
    distributed.wait_for_all()
    results["both"] = restored(template, 1)
    save(3)
    results["other_mesh"] = restored(other, 1)
    save(4)
    results["checkpoint_is_newer"] = restored(template, 4)
    return results


def main(folder: Path) -> None:
    """Writes what happened to FOLDER/PROCESS.json."""
    distributed.initialize()
    results: dict[str, Any] = {"returned": leader.together(command)}
    try:
        leader.together(broken)
    except Exception as error:
        results["broken"] = [type(error).__name__, str(error)]
    adopted = leader.adopt(Model(jnp.float32(3.0) + jax.process_index()))
    results["adopted"] = leader.together(lambda: this.part_of(adopted))
    results["exports"] = exports(folder)
    results["local_saves"] = local_saves(folder)
    results["agreement"] = agreements()
    host_waits.publish(20, 1.0 + jax.process_index())
    distributed.wait_for_all()
    results["slowest"] = host_waits.slowest(20, 1.0) if jax.process_index() == 0 else None
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(results))


@leader.on_all_processes
def part_of(model: Model) -> list[float]:
    return distributed_counts(int(model.numbers)).tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
