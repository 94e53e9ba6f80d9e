"""The TPU compiler itself: a stack of layers fits a v5e chip when it is recomputed, and does not when all is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GIB = 2**30

# Of 2,048 layers the backward pass wants the input, 2,048 x 1,024 bfloat16 numbers, which is 8 GiB of all; and what is
# inside of a layer, as much again or more, unless it is computed again.
PROGRAM = """
from tuna_jax.planning import topology
topology.prepare_environment()
import dataclasses, json, sys
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tuna_jax.planning import compiler, collectives

jax.config.update("jax_enable_compilation_cache", False)
mesh = Mesh(topology.devices("v5e:2x4"), "rows")
layers, rows, width = 2048, 2048, 1024

def shape(*extents, spec):
    return jax.ShapeDtypeStruct(extents, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

def layer(x, w):
    return x + jnp.tanh(x @ w) @ w.T, None

def loss(x, kernels, remat):
    body = jax.checkpoint(layer, prevent_cse=False) if remat else layer
    return jax.lax.scan(body, x, kernels)[0].astype(jnp.float32).sum()

x = shape(8 * rows, width, spec=("rows",))
kernels = shape(layers, width, width, spec=(None, "rows"))
for remat in (True, False):
    step = jax.jit(jax.grad(loss, 1), static_argnums=2, out_shardings=kernels.sharding)
    found = compiler.compile_lowered(step.lower(x, kernels, remat))
    values = dataclasses.asdict(found)
    text = values.pop("text")
    if text:
        values["traffic"] = dataclasses.asdict(collectives.traffic(text, 8))
    print(json.dumps(values))
"""


@pytest.fixture(scope="module")
def compiled():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)  # The tests' own is for programs on CPU.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 2
    return lines


def test_with_remat_it_fits(compiled):
    kept, _ = compiled
    assert kept["fits"]
    assert 8 * GIB < kept["peak"] < 15.75 * GIB
    kernels, x = 2048 * 1024 * 1024 * 2 / 8, 2048 * 1024 * 2
    assert kept["arguments"] == pytest.approx(kernels + x, rel=0.01)


def test_without_remat_it_does_not_fit(compiled):
    _, everything = compiled
    assert not everything["fits"]
    assert everything["capacity"] == pytest.approx(15.75 * GIB)
    assert everything["peak"] > everything["capacity"]


def test_every_layer_gathers_its_kernel_and_scatters_its_gradient(compiled):
    traffic = compiled[0]["traffic"]
    kernel = 1024 * 1024 * 2
    assert traffic["count"]["all-gather"] == pytest.approx(2 * 2048, rel=0.01)
    assert traffic["bytes"]["all-gather"] == pytest.approx(2 * 2048 * kernel * 7 / 8, rel=0.01)
    scattered = traffic["bytes"]["reduce-scatter"] + traffic["bytes"]["all-reduce"]
    assert scattered >= 2048 * kernel * 7 / 8
