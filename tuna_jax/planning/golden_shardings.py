"""How each stage's parameters are sharded on a slice, as golden files that the tests compare with the code.

    python -m tuna_jax.planning.golden_shardings            writes tests/experiments/shardings/*.json
    python -m tuna_jax.planning.golden_shardings --check    only lists the files that differ from the code

It needs no devices, only the sizes of a mesh. Look at the difference before you commit new files.
"""

from __future__ import annotations

import argparse
import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from tuna_jax.hardware.chips import chip_of
from tuna_jax.models import tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import AXES, sizes
from tuna_jax.planning import stage
from tuna_jax.planning.topology import chip_count

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "experiments" / "shardings"
TOPOLOGIES = {
    "tuna_1p5b": ("v5e:8x8",),
    "tuna_7b": ("v5p:4x4x4",),
    "tuna_r_7b": ("v5p:4x4x4",),
    "tuna_2_7b": ("v5p:4x4x4",),
}
"""The slices that each model's stages are planned for; each slice has one golden file per stage."""


def stages() -> list[tuple[Path, str]]:
    """The (experiment file, topology) of every golden file."""
    files = sorted((ROOT / "experiments" / "tuna").glob("tuna_*_stage*.py"))
    return [(file, name) for file in files for name in TOPOLOGIES[file.stem.rsplit("_", 1)[0]]]


def golden(file: Path, topology: str) -> Path:
    """The golden file of an experiment on a topology."""
    return FOLDER / f"{file.stem}_{topology.replace(':', '_')}.json"


def describe(file: Path, topology: str) -> dict[str, Any]:
    """The mesh, the number of parts of a batch, and for every parameter its shape, its mesh axes and one device's part.

    Raises:
      ValueError: a parameter does not divide, or no rule matches it.
    """
    read = stage.read(file.stem, runpy.run_path(str(file))["get_config"]().to_dict())
    devices = chip_count(topology) * chip_of(topology).devices
    mesh = AbstractMesh(sizes(read.settings.mesh, devices), AXES)
    shapes = tuna.shapes(read.config)
    sharded = param_sharding.shardings(shapes, mesh)
    split = dict(jax.tree_util.tree_leaves_with_path(sharded))
    parameters = {
        param_sharding.dotted(
            path
        ): f"{leaf.dtype}{list(leaf.shape)} as {_axes(split[path].spec)}: "
        f"{list(split[path].shard_shape(leaf.shape))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    on_a_device = sum(
        math.prod(split[path].shard_shape(leaf.shape))
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    )
    return {
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "batch_parts": devices // param_sharding.batch_sharding(mesh).shard_shape((devices,))[0],
        "parameters_on_a_device": on_a_device,
        "parameters": dict(sorted(parameters.items())),
    }


def text(file: Path, topology: str) -> str:
    """The content of the golden file."""
    return json.dumps(describe(file, topology), indent=1) + "\n"


def _axes(spec: Any) -> str:
    """('fsdp', None) -> '[fsdp, -]'."""
    names = ["-" if axis is None else "+".join(axis) if isinstance(axis, tuple) else axis for axis in spec]  # fmt: skip
    return f"[{', '.join(names)}]"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.planning.golden_shardings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; the exit status is 1 if a file differs"
    )
    check = parser.parse_args(arguments).check
    changed = 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, topology in stages():
        path, expected = golden(file, topology), text(file, topology)
        if not path.exists() or path.read_text() != expected:
            changed += 1
            print(f"{path.relative_to(ROOT)} {'differs from the code' if check else 'written'}")
            if not check:
                path.write_text(expected)
    return int(check and changed > 0)


if __name__ == "__main__":
    sys.exit(main())
