"""Programs without a backward pass, on meshes of eight devices, against one device: a pass over whole sequences,
pictures and text from a prefix cache, and the splash kernel.

XLA's partitioner once exchanged rows of the connector's output in such programs.
"""

import pytest

PROGRAM = """
import dataclasses, functools, json
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from tuna_jax.config import DINOv3Config, preset
from tuna_jax.inference.generation import flow_sampler as images, prefix_cache as prefix, text_decoder as text
from tuna_jax.models import attention, layers, splash, tuna
from tuna_jax.models.dinov3 import DINOv3Encoder
from tuna_jax.models.logical_sharding import use_sharding
from tuna_jax.parallel import param_sharding as rules
from tuna_jax.parallel.activation_sharding import Activations
from tuna_jax.parallel.mesh import MeshSettings, make_mesh

config = preset("tiny")
VISION_RULES = [rule for rule in rules.RULES if "representation" in rule.pattern or "bias|scale" in rule.pattern]
random = np.random.default_rng(0)
params = jax.tree.map(
    lambda x: x + 0.05 * random.standard_normal(x.shape).astype(np.float32),
    jax.jit(functools.partial(tuna.init, config))(jax.random.key(0)),
)
def normal(*shape):
    return random.standard_normal(shape).astype(np.float32)

def report(name, got, want, **more):
    error = float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))
    print(json.dumps({"name": name, "error": error, **more}))

def on(mesh):
    return jax.device_put(params, rules.shardings(params, mesh))

# ---- whole sequences, split over context
long = make_mesh(MeshSettings(data=1, fsdp=2, context=2, tensor=2))
inputs = (random.integers(0, 500, (4, 24)), np.tile(np.array([[[3, 5]]]), (4, 1, 1)), normal(4, 1, 1, 2, 2, 8),
          np.full((4, 1), 0.4, np.float32))
def forward(params, sharding):
    with use_sharding(sharding):
        return tuna.forward(config, params, *inputs)
run = jax.jit(forward, static_argnums=1)
want = jax.device_get(run(params, None))
got = run(on(long), Activations(long))
shard = got.hidden.addressable_shards[0].data.shape
report("hidden", jax.device_get(got.hidden), want.hidden, shard=shard)
report("velocity", jax.device_get(got.prediction), want.prediction)

# ---- DINOv3, whose five tokens before the patches do not divide by the context axis
vision = dataclasses.replace(config.representation, kind="dinov3", dinov3=DINOv3Config(gated=True))
structure, encoder = layers.split(DINOv3Encoder(vision, 8, rngs=nnx.Rngs(0)))
split = rules.shardings({"representation": encoder}, long, rules=VISION_RULES)["representation"]
def encode(params, latents, sharding):
    with use_sharding(sharding):
        return layers.merge(structure, params)(latents)
run_encoder = jax.jit(encode, static_argnums=2)
latents = normal(4, 2, 3, 5, 8)
want_features = jax.device_get(run_encoder(encoder, latents, None))
for name, where in (("training", Activations(long)), ("generation", Activations(long, generation=True))):
    report(f"dinov3 in {name}", jax.device_get(run_encoder(jax.device_put(encoder, split), latents, where)),
           want_features)

# ---- pictures and text from a prefix
wide = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
where = Activations(wide, generation=True)
tokens = random.integers(1, 500, (4, 6)).astype(np.int32)
spans = jnp.tile(jnp.asarray([[[0, 5]]]), (4, 1, 1))
source = jnp.asarray(normal(4, 1, 1, 2, 2, 8))
positive = prefix.Prefix(jnp.asarray(tokens), jnp.asarray([6, 6, 6, 6]), spans, source)
noise = jnp.asarray(normal(4, 1, 2, 2, 8))
def sample(params, sharding):
    return jax.device_get(images.sample(config, params, positive, noise, negative=positive._replace(
        tokens=positive.tokens[::-1]), guidance=2.0, steps=2, sharding=sharding))
report("pictures", sample(on(wide), where), sample(params, None))
def decode(params, sharding):
    out = text.generate(config, params, positive, jax.random.key(0), eos=-1, max_new_tokens=3, keep_logits=True,
                        sharding=sharding)
    return jax.device_get(out.logits)
report("text", decode(on(wide), where), decode(params, None))

# ---- the kernel: queries over context, heads over tensor, of which there are more than heads of keys
query, key, value, weight = (jnp.asarray(normal(2, 256, heads, 64)) for heads in (4, 1, 1, 4))
end = attention.sequence_layout(jnp.asarray([[[10, 150]], [[120, 60]]]), 256).visible_end
def value_of(query, key, value, backend, sharding):
    with use_sharding(sharding):
        out = attention.attention(query, key, value, end, backend=backend)
    return jnp.sum(out * weight), out
grad = jax.jit(jax.value_and_grad(value_of, (0, 1, 2), has_aux=True), static_argnums=(3, 4))
(_, want), expected = jax.device_get(grad(query, key, value, "xla", None))
(_, got), found = jax.device_get(grad(query, key, value, "splash", Activations(long)))
report("splash", got, want)
for name, a, b in zip(("dq", "dk", "dv"), found, expected):
    report(name, a, b)

# ---- the same without a mask, rows over fsdp
single = tuple(jnp.asarray(normal(4, 200, 2, 72)) for _ in range(3))
def sum_of(arguments, backend, sharding):
    with use_sharding(sharding):
        out = attention.attention(*arguments, backend=backend)
    return jnp.sum(out * out), out
grad = jax.jit(jax.grad(sum_of, has_aux=True), static_argnums=(1, 2))
expected, want = jax.device_get(grad(single, "xla", None))
found, got = jax.device_get(grad(single, "splash", Activations(long)))
report("unmasked", got, want)
report("unmasked gradients", jnp.stack(found), jnp.stack(expected))
"""


@pytest.mark.slow
def test_programs_without_a_backward_pass_are_those_of_one_device(on_eight_devices):
    found = {line["name"]: line for line in on_eight_devices(PROGRAM)}
    kernel = {"splash", "dq", "dk", "dv", "unmasked", "unmasked gradients"}
    encoder = {"dinov3 in training", "dinov3 in generation"}
    assert {*found} == {"hidden", "velocity", "pictures", "text"} | kernel | encoder
    for name, line in found.items():
        assert line["error"] <= 1e-5, name
    assert found["hidden"]["shard"] == [2, 12, 64], (
        "batch 4 over fsdp 2, sequence 24 over context 2"
    )
