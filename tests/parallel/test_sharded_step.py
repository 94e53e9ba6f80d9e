"""Loss and gradients on meshes of eight devices are those of one; a step on a mesh takes them, and really is split."""

import pytest

PROGRAM = """
import functools, json
import jax, jax.numpy as jnp, numpy as np
from tuna_jax import flow
from tuna_jax.config import preset
from tuna_jax.models import tuna
from tuna_jax.models.logical_sharding import use_sharding
from tuna_jax.parallel import param_sharding as rules
from tuna_jax.parallel.activation_sharding import Activations
from tuna_jax.parallel.mesh import AXES, MeshSettings, make_mesh
from tuna_jax.training.optimizer import OptimizerSettings
from tuna_jax.training.train_program import LoopSettings, Program
from tuna_jax.training.step import Heads

config = preset("tiny")
random = np.random.default_rng(0)
rows = 8
batch = {
    "tokens": random.integers(0, 500, (rows, 24)).astype(np.int32),
    "labels": np.where((np.arange(24) > 14) & (np.arange(rows) >= 4)[:, None], 7, -100).astype(np.int32),
    "spans": np.tile(np.array([[[3, 5]]], np.int32), (rows, 1, 1)),
    "is_target": np.arange(rows)[:, None] < 4,
    "latents": random.standard_normal((rows, 1, 1, 2, 2, 8)).astype(np.float32),
    "stream": (np.arange(rows) >= 4).astype(np.int32),
}
params = jax.tree.map(
    # AdaLN-Zero would hide what reaches the velocities.
    lambda x: x + 0.05 * random.standard_normal(x.shape).astype(np.float32),
    jax.device_get(jax.jit(functools.partial(tuna.init, config))(jax.random.key(0))),
)
# As the first step of a run draws them.
key = np.asarray([3, 5], np.uint32)
time_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(key), 0))
t = np.asarray(flow.sample_time(time_key, (rows, 1), mean=0.0, std=1.0, mu=flow.shift_mu()))
noise = np.asarray(jax.random.normal(noise_key, batch["latents"].shape))

def mesh_of(*sizes):
    return make_mesh(MeshSettings(**dict(zip(AXES, sizes))), jax.devices()[: np.prod(sizes)])

def distance(a, b):
    # A part at a time, so that a small one's error is seen.
    def norm(tree):
        return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree))))
    return max(norm(jax.tree.map(np.subtract, a[part], b[part])) / norm(b[part]) for part in b)

single = None
for sizes in ((1, 1, 1, 1, 1), (1, 8, 1, 1, 1), (1, 1, 8, 1, 1), (1, 2, 2, 1, 2), (1, 1, 2, 2, 2)):
    mesh = mesh_of(*sizes)
    def loss(params, batch):
        with use_sharding(Activations(mesh)):
            return tuna.loss(config, params, batch, noise, t)
    sharded = rules.shardings(params, mesh)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True), in_shardings=(sharded, rules.batch_sharding(mesh)),
                  out_shardings=(None, sharded))
    (value, _), gradients = jax.device_get(run(params, batch))
    single = single or (float(value), gradients)
    print(json.dumps({"mesh": sizes, "loss": float(value), "distance": distance(gradients, single[1])}), flush=True)

# ---- a step in two slices, its batch in two parts, its heads on the rows that need them
mesh = mesh_of(2, 1, 2, 1, 2)
adam = OptimizerSettings(learning_rate=1e-2, warmup=1, weight_decay=0.0, clip_norm=1e9)
program = Program(LoopSettings(steps=10, log_every=1, optimizer=adam, accumulate=2), config, ("a", "b"), mesh)
start = jax.device_put(program.initial()._replace(params=params, key=key), program.shardings)
state, window = program.compile(batch, None, Heads(4, 4))(start, program.place(batch), None)
(moments,) = [part.mu for part in jax.tree.leaves(state.optimizer, is_leaf=lambda x: hasattr(x, "mu"))
              if hasattr(part, "mu")]
# Adam's first moment after one step is the gradient, times a number.
gradients = jax.tree.map(lambda x: np.asarray(x) / (1 - adam.b1), moments)
kernels = [tree["language"]["layers"]["query"]["kernel"] for tree in (state.params, state.ema, moments)]
print(json.dumps({
    "mesh": "step",
    "loss": float(window["loss"]),
    "distance": distance(gradients, single[1]),
    "parts": [kernel.size // kernel.addressable_shards[0].data.size for kernel in kernels],
    "counts": [np.asarray(window[name]).tolist() for name in ("flow_count", "text_count")],
}))
"""


@pytest.mark.slow
def test_loss_and_gradients_on_every_mesh_are_those_of_one_device(on_eight_devices):
    single, *others = on_eight_devices(PROGRAM)
    assert single["loss"] > 0
    assert [other["mesh"] for other in others[:-1]] == [
        [1, 8, 1, 1, 1],
        [1, 1, 8, 1, 1],
        [1, 2, 2, 1, 2],
        [1, 1, 2, 2, 2],
    ]
    for other in others:
        assert other["loss"] == pytest.approx(single["loss"], rel=1e-5), other["mesh"]
        assert other["distance"] <= 1e-5, other["mesh"]
    step = others[-1]
    assert step["parts"] == [4, 4, 4], "parameter, average and moment over fsdp 2 x tensor 2"
    # A picture has 2 x 2 x 8 numbers; the label at place 0 is nobody's next.
    assert step["counts"] == [[4 * 32, 0], [0, 4 * 9]]
