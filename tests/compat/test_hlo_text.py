"""The formats of the compiler's text that `compat/hlo_text.py` knows, and the wordings of its memory errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuna_jax.compat import hlo_text
from tuna_jax.compat.hlo_text import out_of_memory
from tuna_jax.planning import hlo

ROOT = Path(__file__).parents[2]

OLD = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 170.00G of 15.75G hbm.
Exceeded hbm capacity by 154.25G.

Total hbm usage >= 170.26G:
    reserved        263.00M
"""
NEW = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Exceeded hbm capacity by 15.65G.

Total hbm usage >= 31.40G:
    reserved        263.00M
    program          31.15G
"""
TEMPORARIES = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for \
HLO temporaries (25.50G) exceeds available HBM (15.75G). HLO module: jit_loss.
"""
GIB = 2**30


def test_all_wordings_are_read():
    assert out_of_memory(TEMPORARIES) == pytest.approx((25.5 * GIB, 15.75 * GIB))
    assert out_of_memory(OLD) == pytest.approx((170 * GIB, 15.75 * GIB))
    used, capacity = out_of_memory(NEW)
    assert (used, capacity) == pytest.approx((31.4 * GIB, 15.75 * GIB))


def test_smaller_units_are_read():
    assert out_of_memory("Ran out of memory in memory space hbm. Used 900.5M of 512.0K hbm.") == (
        900.5 * 2**20,
        512 * 1024,
    )


@pytest.mark.parametrize(
    "message",
    [
        "INVALID_ARGUMENT: Mosaic failed to compile TPU kernel",
        "Ran out of memory in memory space vmem. Used 20.00M of 16.00M vmem.",
    ],
)
def test_another_error_is_no_lack_of_device_memory(message):
    assert out_of_memory(message) is None


# A loop whose every round gathers a kernel and scatters its gradient, by the TPU compiler that is installed.
PROGRAM = """
from tuna_jax.planning import topology
topology.prepare_environment()
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tuna_jax.planning import compiler

jax.config.update("jax_enable_compilation_cache", False)
mesh = Mesh(topology.devices("v5e:2x2"), "a")

def shape(*extents, spec):
    return jax.ShapeDtypeStruct(extents, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

@jax.checkpoint
def layer(x, w):
    return x + jnp.tanh(x @ w) @ w.T, None

def loss(x, kernels):
    return jax.lax.scan(layer, x, kernels)[0].astype(jnp.float32).sum()

x, kernels = shape(1024, 512, spec=("a",)), shape(6, 512, 512, spec=(None, "a"))
step = jax.jit(jax.grad(loss, 1), out_shardings=kernels.sharding)
compiled = compiler.compile_lowered(step.lower(x, kernels), estimates=True)
print(compiled.text)
print("ESTIMATES")
print(compiled.estimates)
"""
KNOWN = f"compat/hlo_text.py was written for libtpu {hlo_text.VERSION}"


@pytest.fixture(scope="module")
def written() -> tuple[str, str]:
    """The installed compiler's text of the program, and the same with its estimates."""
    pytest.importorskip("libtpu")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    text, estimates = done.stdout.split("ESTIMATES\n")
    return text, estimates


@pytest.mark.parametrize(
    "name", ["COMPUTATION", "COMPUTATION_END", "CALLS", "WHILE", "CONSTANT", "COLLECTIVE", "ARRAY", "OPERATION"]
)  # fmt: skip
def test_the_installed_compiler_writes_what_the_pattern_reads(written, name):
    pattern = getattr(hlo_text, name)
    lines = (line.strip().removeprefix("ROOT ") for line in written[0].splitlines())
    assert any(pattern.search(line) for line in lines), f"{KNOWN}: {name} matches nothing"


def test_the_installed_compilers_groups_are_read(written):
    collectives = [line for line in written[0].splitlines() if "replica_groups=" in line]
    groups = (hlo_text.EXPLICIT_GROUPS, hlo_text.IOTA_GROUPS, hlo_text.MESH_GROUPS)
    unread = [line for line in collectives if not any(group.search(line) for group in groups)]
    assert collectives and not unread, f"{KNOWN}: {unread[:1]}"


def test_the_installed_compilers_estimates_and_paths_are_read(written):
    assert hlo_text.CYCLES.search(written[1]), f"{KNOWN}: no estimate of cycles"
    paths = hlo_text.OPERATION.findall(written[1])
    assert any(hlo_text.RECOMPUTED in path for path in paths), KNOWN
    assert any(hlo_text.BACKWARD in path for path in paths), KNOWN


def test_the_constant_of_a_loop_is_its_number_of_rounds(written):
    computations, entry = hlo.computations(written[0])
    assert 6 in hlo.runs(computations, entry).values(), KNOWN
