"""The private names of JAX that `compat/jax_internals.py` relies on, with the parameters that it passes."""

import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax._src import distributed, xla_bridge
from jax._src.lib import _jax
from jax.experimental import pallas as pl
from jax.extend import core
from jax.interpreters import partial_eval
from jax.sharding import Mesh, PartitionSpec

from tuna_jax.compat import jax_internals

KNOWN = f"compat/jax_internals.py was written for jax {jax_internals.VERSION}; this is {jax.__version__}"


def equation(name: str, function, *arguments):
    """The first equation of this primitive in the function's jaxpr."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return next(each for each in jaxpr.eqns if each.primitive.name == name)


def test_the_coordinators_client_is_where_it_was():
    assert hasattr(distributed.global_state, "client"), KNOWN
    assert hasattr(_jax.DistributedRuntimeClient, "wait_at_barrier"), KNOWN
    described = _jax.DistributedRuntimeClient.wait_at_barrier.__doc__ or ""
    assert "timeout_in_ms" in described, KNOWN


def test_a_barrier_without_other_processes_is_refused():
    with pytest.raises(RuntimeError, match=r"jax\.distributed"):
        jax_internals.barrier("a name", 1)


def test_asking_for_backends_starts_none():
    assert list(inspect.signature(xla_bridge.backends_are_initialized).parameters) == [], KNOWN
    code = (
        "from tuna_jax.compat.jax_internals import backends_started as started\n"
        "import jax\n"
        "print(started(), started(), len(jax.devices()) > 0, started())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "True"], KNOWN


def test_dead_code_is_left_out():
    names = list(inspect.signature(partial_eval.dce_jaxpr).parameters)
    assert names[:2] == ["jaxpr", "used_outputs"], KNOWN

    def function(x):
        _ = jnp.sin(x)
        return jnp.cos(x)

    closed = jax.make_jaxpr(function)(1.0)
    assert isinstance(closed, core.ClosedJaxpr)
    kept = jax_internals.without_dead_code(closed)
    assert [each.primitive.name for each in kept.eqns] == ["cos"], KNOWN


def test_a_shard_maps_equation_names_its_axes():
    mesh = Mesh(jax.devices()[:1], "a")
    mapped = jax.shard_map(
        jnp.sin, mesh=mesh, in_specs=PartitionSpec("a"), out_specs=PartitionSpec("a")
    )
    found = equation("shard_map", mapped, jnp.ones(4))
    assert set(found.params["newly_manual_axes"]) == {"a"}, KNOWN
    assert jax_internals.shard_map_devices(found.params) == 1


def test_a_kernels_equation_tells_its_grid():
    def kernel(x, out):
        out[...] = x[...]

    call = pl.pallas_call(
        kernel,
        grid=(2, 3),
        out_shape=jax.ShapeDtypeStruct((4,), jnp.float32),
        interpret=True,
    )
    found = equation("pallas_call", call, jnp.ones(4))
    assert "grid_mapping" in found.params, KNOWN
    assert jax_internals.pallas_grid(found.params) == 6
