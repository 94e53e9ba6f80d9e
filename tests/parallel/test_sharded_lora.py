"""A step of an adapter on meshes of eight devices is that of one; the frozen model and the adapter are split."""

import jax
import pytest
from jax.sharding import AbstractMesh

from tuna_jax.adapters.lora import Adapters
from tuna_jax.adapters.settings import LoraSettings
from tuna_jax.config import preset
from tuna_jax.models import tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import AXES
from tuna_jax.utils.param_tree import flatten

PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from tuna_jax.adapters.settings import LoraSettings
from tuna_jax.config import preset
from tuna_jax.models import tuna
from tuna_jax.parallel.mesh import AXES, MeshSettings, make_mesh
from tuna_jax.training.optimizer import OptimizerSettings
from tuna_jax.training.train_program import LoopSettings, Program

config = preset("tiny")
random = np.random.default_rng(0)
rows = 8
batch = {
    "tokens": random.integers(0, 500, (rows, 24)).astype(np.int32),
    "labels": np.where(np.arange(24) > 14, 7, -100).astype(np.int32) * np.ones((rows, 1), np.int32),
    "spans": np.tile(np.array([[[3, 5]]], np.int32), (rows, 1, 1)),
    "is_target": np.arange(rows)[:, None] < 4,
    "latents": random.standard_normal((rows, 1, 1, 2, 2, 8)).astype(np.float32),
    "stream": np.zeros(rows, np.int32),
}
params = jax.tree.map(  # Kernels keep the size of what they multiply.
    lambda x: random.standard_normal(x.shape).astype(np.float32) / max(np.sqrt(np.prod(x.shape[:-1])), 1),
    tuna.shapes(config),
)
adam = OptimizerSettings(learning_rate=1e-2, warmup=1, weight_decay=0.0)
lora = LoraSettings(targets=("all-linear",), rank=2, trained=("language.norm",), dropout=0.3)
for sizes in ((1, 1, 1, 1, 1), (1, 1, 2, 2, 2)):
    mesh = make_mesh(MeshSettings(**dict(zip(AXES, sizes))), jax.devices()[: np.prod(sizes)])
    program = Program(LoopSettings(steps=10, log_every=1, optimizer=adam, lora=lora), config, ("a",), mesh)
    base = jax.device_put(params, program.network_shardings)
    frozen = program.frozen(None, base)
    state, losses = program.initial(base=base), []
    run = program.compile(batch, frozen)
    for _ in range(3):
        state, window = run(state, program.place(batch), frozen)
        losses.append(float(window["loss"]))
    query, average = (tree["language"]["layers"]["query"]["lora"] for tree in (state.params, state.ema))
    held = [frozen.base["language"]["layers"]["query"]["kernel"], query["a"], query["b"], average["a"]]
    parts = [x.size // x.addressable_shards[0].data.size for x in held]
    print(json.dumps({"losses": losses, "parts": parts}))
"""


@pytest.mark.slow
def test_a_step_on_a_mesh_is_that_of_one_device(on_eight_devices) -> None:
    single, sharded = on_eight_devices(PROGRAM)
    assert single["losses"][2] < single["losses"][0]
    assert sharded["losses"] == pytest.approx(single["losses"], rel=1e-4)
    assert sharded["parts"] == [4, 2, 2, 2], "kernel over fsdp x tensor; a over fsdp, b over tensor"


@pytest.mark.parametrize("model", ["tuna_7b", "tuna_2_7b"])
def test_matrices_are_split_as_their_kernels(model: str) -> None:
    network = tuna.shapes(preset(model))
    adapters = Adapters(LoraSettings(targets=("all-linear",)), network)
    mesh = AbstractMesh((1, 1, 8, 1, 2), AXES)
    kernels = flatten(param_sharding.shardings(network, mesh))
    split = flatten(param_sharding.shardings(adapters.shapes, mesh, whole=False))
    assert len(split) == 2 * len(adapters.layers)
    for path in adapters.layers:
        *stack, inputs, outputs = kernels[f"{path}.kernel"].spec
        assert tuple(split[f"{path}.lora.a"].spec) == (*stack, inputs, None), path
        assert tuple(split[f"{path}.lora.b"].spec) == (*stack, None, outputs), path
    with pytest.raises(ValueError, match="matches no parameter"):
        param_sharding.shardings(adapters.shapes, mesh)
    unknown = {
        "language": {"layers": {"speed": {"lora": {"a": jax.ShapeDtypeStruct((2, 2), "f4")}}}}
    }
    with pytest.raises(ValueError, match=r"language\.layers\.speed\.lora\.a"):
        param_sharding.shardings(unknown, mesh, whole=False)
