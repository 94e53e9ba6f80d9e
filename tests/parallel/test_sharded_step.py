"""The training step on a mesh of eight devices computes what it computes on one, and really is split.

Runs in a process of its own: the number of (pretended) devices is fixed when JAX starts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import functools, json, sys
import jax, jax.numpy as jnp, numpy as np
from tuna_jax import flow
from tuna_jax.config import preset
from tuna_jax.models import tuna
from tuna_jax.parallel.mesh import MeshSettings, make_mesh
from tuna_jax.training import optimizer, state, step

config = preset("tiny")
init = functools.partial(tuna.init, config)
update = optimizer.build(
    optimizer.OptimizerSettings(learning_rate=1e-2, warmup=1), jax.eval_shape(init, jax.random.key(0)), 10
)
make = functools.partial(state.initial, init, update, step.empty_window(2), seed=0, average=True)
random = np.random.default_rng(0)
rows = 8
batch = {
    "tokens": random.integers(0, 500, (rows, 24)).astype(np.int32),
    "labels": np.where(np.arange(24) > 14, 7, -100).astype(np.int32)[None].repeat(rows, 0),
    "spans": np.tile(np.array([[[3, 5]]], np.int32), (rows, 1, 1)),
    "is_target": np.arange(rows)[:, None] < 4,
    "latents": random.standard_normal((rows, 1, 1, 2, 2, 8)).astype(np.float32),
    "task": (np.arange(rows) >= 4).astype(np.int32),
}
for settings in (MeshSettings(data=1), MeshSettings(data=2, fsdp=2, tensor=2)):
    count = 1 if settings.data == 1 else 8
    mesh = make_mesh(settings, jax.devices()[:count])
    shardings = state.state_shardings(jax.eval_shape(make), mesh)
    current = jax.jit(make, out_shardings=shardings)()
    def loss(params, batch, noise, t, heads):
        return tuna.loss(config, params, batch, noise, t)
    run = step.compile_step(
        step.make_step(loss, update, flow.sample_time, ema=0.9, log_every=1, tasks=2), shardings, mesh
    )
    losses = []
    for _ in range(3):
        current, window = run(current, batch, None, step.NO_LIMITS)
        losses.append(step.summarize(window, ("a", "b")))
    kernel = current.params["language"]["layers"]["query"]["kernel"]
    moment = [m for m in jax.tree.leaves(current.optimizer) if m.shape == kernel.shape][0]
    print(json.dumps({
        "losses": losses,
        "whole": kernel.size,
        "kernel": kernel.addressable_shards[0].data.size,
        "average": current.ema["language"]["layers"]["query"]["kernel"].addressable_shards[0].data.size,
        "moment": moment.addressable_shards[0].data.size,
    }))
"""


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    environment = {
        **os.environ,
        # Most of the time goes into LLVM; slow code will do for three steps.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, eight = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    for a, b in zip(one["losses"], eight["losses"], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=1e-6), name
    assert one["losses"][0]["loss"] > one["losses"][2]["loss"]
    # Split over fsdp 2 x tensor 2, the optimizer and the average with it.
    assert one["kernel"] == one["whole"]
    assert eight["kernel"] == eight["average"] == eight["moment"] == one["whole"] // 4
