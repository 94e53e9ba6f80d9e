"""Ring attention on eight devices and on two processes: outputs and gradients are those of dense attention."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import functools, json
import jax, jax.numpy as jnp, numpy as np
from tuna_jax.models import attention, ring, splash
from tuna_jax.models.layers import ATTENTION
from tuna_jax.models.logical_sharding import use_sharding
from tuna_jax.parallel.activation_sharding import Activations
from tuna_jax.parallel.mesh import MeshSettings, make_mesh

random = np.random.default_rng(0)
# Spans over several devices, within one, and up to the end; of the second row, all after 60 is padding.
SPANS = jnp.asarray([[[10, 33], [50, 40]], [[3, 20], [-1, -1]]])
WHOLE = [[[0, 101], [-1, -1]]]

def normal(*shape):
    return jnp.asarray(random.standard_normal(shape), jnp.float32)

def arrays(rows, length, heads, groups, channels):
    return [normal(rows, length, n, channels) for n in (heads, groups, groups, heads)]

@functools.partial(jax.jit, static_argnums=(6, 7))
def value_and_gradients(query, key, value, weight, end, start, backend, sharding):
    def weighed(query, key, value):
        with use_sharding(sharding):
            seen = attention.attention(query, key, value, end, start, backend=backend)
        return jnp.sum(seen * weight), seen
    (_, seen), gradients = jax.value_and_grad(weighed, (0, 1, 2), has_aux=True)(query, key, value)
    return seen, *gradients

def compare(name, mesh, sizes, spans=SPANS, start=None, backend="xla"):
    inputs = arrays(*sizes)
    end = attention.sequence_layout(jnp.asarray(spans), sizes[1]).visible_end
    if start is not None:
        start = jnp.where(jnp.arange(sizes[1]) >= start, start, 0) + jnp.zeros_like(end)
    want = value_and_gradients(*inputs, end, start, "xla", None)
    got = value_and_gradients(*inputs, end, start, backend, Activations(mesh))
    error = max(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in zip(got, want))
    print(json.dumps({"name": name, "error": error}), flush=True)

eight = make_mesh(MeshSettings(data=1, context=8))
mixed = make_mesh(MeshSettings(data=1, fsdp=2, context=2, tensor=2))
compare("odd", eight, (2, 101, 4, 2, 16))
compare("packed", eight, (2, 101, 2, 2, 16), start=95)
compare("everybody sees everybody", eight, (1, 101, 2, 1, 16), WHOLE)
compare("more parts of heads than heads of keys", mixed, (2, 104, 4, 1, 16))
dense = ring.DENSE
ring.DENSE = dense._replace(most_keys=lambda queries: 5)
compare("blocks in parts", eight, (2, 109, 4, 2, 16))  # Another length, since JAX caches traces.
ring.DENSE = dense
splash._FUSED_TOKENS = 0
compare("splash", mixed, (2, 260, 4, 1, 64), start=200, backend="splash")
splash._FUSED_TOKENS = 4096
compare("splash, fused", make_mesh(MeshSettings(data=4, context=2)), (4, 261, 2, 1, 64), [[[10, 200]]] * 4,
        backend="splash")

# ---- a device that sees nothing of a block does not compute it: what is not a number would spread
query, key, value, weight = arrays(1, 104, 2, 1, 16)
key, value = (x.at[:, 91:].set(jnp.nan) for x in (key, value))
causal = jnp.arange(1, 105)[None]
seen, gradient, *_ = value_and_gradients(query, key, value, weight, causal, None, "xla", Activations(eight))
print(json.dumps({"name": "skipped", "finite": np.isfinite([seen, gradient]).all((0, 1, 3, 4)).tolist()}))

# ---- 100,003 tokens compile, in little memory, and keys and values of a whole sequence are nowhere
def shape(*extents, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(extents, dtype)
long = [shape(1, 100_003, n, 64, dtype=jnp.bfloat16) for n in (2, 1, 1, 2)]
end = shape(1, 100_003, dtype=jnp.int32)
compiled = value_and_gradients.lower(*long, end, None, "xla", Activations(eight)).compile()
short = [shape(1, 1_024, n, 64) for n in (2, 1, 1, 2)] + [shape(1, 1_024, dtype=jnp.int32)]
text = value_and_gradients.lower(*short, None, "xla", Activations(eight)).compile().as_text()
print(json.dumps({
    "name": "long",
    "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    "gathers": text.count("all-gather("), "hops": text.count("collective-permute("),
}))

# ---- rematerialisation that keeps attention's outputs does not go round again
def hops(policy):
    def run(query, key, value, end):
        with use_sharding(Activations(eight)):
            inner = jax.checkpoint(lambda *a: attention.attention(*a, end) ** 2, policy=policy)
            return inner(query, key, value).sum()
    return str(jax.make_jaxpr(jax.grad(run))(*short[:3], short[4])).count("ppermute")
policies = jax.checkpoint_policies
print(json.dumps({"name": "remat", "kept": hops(policies.save_only_these_names(ATTENTION)),
                  "again": hops(policies.nothing_saveable)}))
"""


@pytest.mark.slow
def test_ring_attention_on_eight_devices(on_eight_devices):
    found = {line["name"]: line for line in on_eight_devices(PROGRAM)}
    errors = {name: line["error"] for name, line in found.items() if "error" in line}
    assert len(errors) == 7
    assert all(error <= 1e-5 for error in errors.values()), errors
    assert found["skipped"]["finite"] == [True] * 91 + [False] * 13
    # 12,501 queries of 2 heads: their scores over all keys would be 10 GB, over one device's keys 1.3 GB.
    assert found["long"]["temporaries"] < 400e6
    assert found["long"]["gathers"] == 0 and found["long"]["hops"] > 0
    assert found["remat"]["again"] == found["remat"]["kept"] + 2


@pytest.mark.slow
def test_a_ring_over_two_processes(tmp_path):
    """Two processes with two devices each hold one sequence."""
    command = [sys.executable, "launchers/local.py", "--processes=2", "--devices=2", "--"]
    command += [sys.executable, "-m", "ring_over_hosts", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for process in range(2):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        assert found["part"] == [0, 1], "both read all rows"
        assert found["error"] <= 1e-5
        assert found["placed"] == [2, 24], "and the batch is no longer for that"
