"""The interpreted kernel against the dense attention, and that image tokens see later ones."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tuna_jax.config import preset
from tuna_jax.models import logical_sharding, splash
from tuna_jax.models.attention import _fastest, attention, sequence_layout
from tuna_jax.models.representation import RepresentationEncoder


def arrays(batch, length, heads, groups, head_dim):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, length, count, head_dim) for count in (heads, groups, groups, heads)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def spans(batch, length, count=3):
    """Random spans, none touching another."""
    random = np.random.default_rng(1)
    edges = np.sort(random.choice(np.arange(1, length), (batch, 2 * count), replace=False), -1)
    offset, end = edges.reshape(batch, count, 2).transpose(2, 0, 1)
    return jnp.asarray(np.stack([offset, end - offset], -1), jnp.int32)


def error(got, want):
    return float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "packed", "limits"),
    [
        pytest.param((2, 256, 4, 2, 64), 0, {}, id="spans"),
        pytest.param(
            (1, 256, 2, 2, 128), 85, {"_FUSED_TOKENS": 0}, id="packed, unfused backward pass"
        ),
        pytest.param((1, 200, 3, 1, 48), 66, {}, id="padded"),
        pytest.param((1, 512, 2, 1, 64), 170, {"_KEYS_AT_ONCE": 256}, id="keys in two parts"),
        pytest.param((2, 256, 4, 2, 128), 140, {}, id="packed, maps shared"),
        pytest.param((2, 256, 2, 1, 64), 140, {"_SHARED_BLOCKS": 0}, id="packed, separate maps"),
    ],
)
def test_kernel_is_the_dense_attention(monkeypatch, sizes, packed, limits):
    for name, limit in limits.items():
        monkeypatch.setattr(splash, name, limit)
    query, key, value, weight = arrays(*sizes)
    batch, length = sizes[:2]
    layout = sequence_layout(spans(batch, length), length)
    begin = None
    if packed:
        # A second document in every row, that begins where no span does.
        later = (layout.slot < 0) & (jnp.arange(length) > packed)
        cut = jnp.argmax(later, 1)[:, None]
        begin = jnp.where(layout.position >= cut, cut, 0)

    def run(compute, query, key, value):
        out = compute(query, key, value, layout.visible_end, begin)
        return jnp.sum(out * weight), out

    def both(compute):
        return jax.jit(jax.value_and_grad(functools.partial(run, compute), (0, 1, 2), has_aux=True))

    (_, want), wanted = both(attention)(query, key, value)
    (_, got), found = both(functools.partial(splash.attention, block=128))(query, key, value)
    assert error(got, want) <= 1e-5
    for mine, dense in zip(found, wanted, strict=True):
        assert error(mine, dense) <= 1e-3


@pytest.mark.slow
def test_without_a_mask_everybody_sees_everybody():
    """Three rows of 200 tokens with 72 channels, as the representation encoder has: both are padded."""
    query, key, value, weight = arrays(3, 200, 2, 2, 72)

    def run(backend, *arguments):
        out = attention(*arguments, backend=backend)
        return jnp.sum(out * weight), out

    def both(backend):
        run_it = jax.value_and_grad(functools.partial(run, backend), (0, 1, 2), has_aux=True)
        return jax.jit(run_it)(query, key, value)

    (_, want), wanted = both("xla")
    (_, got), found = both("splash")
    assert error(got, want) <= 1e-5
    for mine, dense in zip(found, wanted, strict=True):
        assert error(mine, dense) <= 1e-3


def test_rows_are_an_axis_of_the_grid_where_they_share_their_maps():
    """Otherwise they are a loop, which copies each row in and out."""

    def grid(length, channels=128, masked=True):
        heads = jax.ShapeDtypeStruct((4, length, 2, channels), jnp.bfloat16)
        ends = [jax.ShapeDtypeStruct((4, length), jnp.int32)] if masked else []
        run = lambda *a: attention(*a, backend="splash")
        traced = str(jax.make_jaxpr(run)(heads, heads, heads, *ends))
        return re.findall(r"grid=\(([^)]*)\)", traced)

    assert grid(1_280) == ["4, 2, 2, 2"]
    assert grid(4_096, masked=False) == ["4, 2, 8, 8"]
    assert grid(4_096) == ["2, 8, 8"]
    assert grid(1_280, channels=64) == ["2, 2, 2"]


@pytest.mark.parametrize(("backend", "used"), [("splash", 1), ("auto", 0), ("cudnn", 0)])
def test_the_representation_encoder_follows_the_setting(backend, used):
    config = preset("tiny").representation
    encoder = nnx.eval_shape(lambda: RepresentationEncoder(config, 8, backend, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(encoder)
    frames = jax.ShapeDtypeStruct((2, 1, 4, 4, 8), jnp.float32)
    traced = jax.make_jaxpr(lambda p, x: nnx.merge(graphdef, p)(x))(params, frames)
    assert str(traced).count("pallas_call") == used, "cuDNN is for what has a mask"


def test_an_image_token_sees_a_later_one_and_text_does_not():
    query, key, value, _ = arrays(1, 128, 1, 1, 64)
    end = sequence_layout(jnp.asarray([[[20, 60]]]), 128).visible_end
    run = jax.jit(functools.partial(attention, backend="splash"))
    before = run(query, key, value, end)
    after = run(query, key, value.at[0, 70].add(5.0), end)
    changed = np.abs(after - before)[0].max((1, 2)) > 1e-4
    assert changed[20:80].all(), "the whole span sees its token 70"
    assert changed[80:].all() and not changed[:20].any()


@pytest.mark.parametrize("size", [4, 8])
def test_maps_hold_every_block_that_some_query_sees_and_lead_from_each_to_the_next(size):
    block, count, keys = 4, 6, 24 // size
    random = np.random.default_rng(3)
    end = np.minimum(np.arange(1, 25) + random.integers(0, 9, 24), 24)
    start = np.maximum(np.arange(24) - random.integers(0, 14, 24), 0)
    maps = jax.tree.map(
        np.asarray, splash.block_maps(jnp.asarray(start), jnp.asarray(end), block, keys, size)
    )
    sees = (np.arange(24) >= start[:, None]) & (np.arange(24) < end[:, None])
    blocks = sees.reshape(count, block, keys, size).any((1, 3))
    assert (maps.runs >= blocks).all() and maps.runs.sum() < count * keys
    np.testing.assert_array_equal(maps.runs, blocks)
    rows, columns = np.nonzero(maps.runs)
    for row, column in np.ndindex(count, keys):
        later = (rows > row) | ((rows == row) & (columns >= column))
        following = columns[later][0] if later.any() else columns[0]
        assert maps.next_keys[row, column] == following
        mine = np.nonzero(maps.runs[:, column])[0]
        later = mine[mine >= row]
        assert maps.next_queries[row, column] == (later[0] if len(later) else mine[0])


def test_blocks_are_large_and_pad_little():
    lengths = (4096, 2048, 1153, 1280, 200, 640)
    assert [splash.block_size(n) for n in lengths] == [512, 512, 640, 640, 256, 640]


def test_the_fewest_parts_of_keys_that_the_core_holds():
    cases = [(1280, 640), (2048, 512), (2304, 384), (4096, 512), (1280, 256)]
    assert [splash.keys_at_once(*case) for case in cases] == [1280, 2048, 1152, 2048, 1280]


def test_ends_of_a_late_document_survive_the_packing():
    both = (jnp.int32(40_000) << 16) | jnp.int32(65_535)
    seen = [bool(splash._sees(both, jnp.int32(key))) for key in (39_999, 40_000, 65_534, 65_535)]
    assert seen == [False, True, True, False]


def shapes(length, keys=None):
    make = lambda n: jax.ShapeDtypeStruct((1, n, 2, 64), jnp.bfloat16)
    end = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return make(length), make(keys or length), make(keys or length), end


class OnTpu:
    """A sharding that only reports the platform that the program is compiled for."""

    platform = "tpu"

    def constrain(self, x, axes):
        return x

    def parts(self, name, size):
        return 1

    def ring_axes(self):
        return {}

    def local(self, function, inputs, output):
        return function


def kernels(*arguments):
    # A new function per call, because JAX caches traces.
    return str(jax.make_jaxpr(lambda *a: attention(*a, backend="auto"))(*arguments)).count(
        "pallas_call"
    )


def test_auto_takes_the_kernel_on_tpus_where_it_can_be_had():
    assert kernels(*shapes(512)) == 0, "not on a CPU"
    with logical_sharding.use_sharding(OnTpu()):
        assert kernels(*shapes(512)) == 1
        assert kernels(*shapes(8)) == 0, "short sequences are dense"
        assert kernels(*shapes(131_072)) == 1, "of any length"
        assert kernels(*shapes(512, keys=700)) == 0, "cached"
        assert kernels(*shapes(512)[:3]) == 1, "no mask"


class OnGpu(OnTpu):
    platform = "gpu"


def test_auto_takes_cudnn_on_gpus_only_for_half_precision():
    def chosen(tokens, dtype, keys=None, masked=True):
        query, key = (jnp.zeros((1, n, 2, 64), dtype) for n in (tokens, keys or tokens))
        return _fastest(query, key, masked=masked)

    with logical_sharding.use_sharding(OnGpu()):
        assert chosen(512, jnp.bfloat16) == "cudnn"
        assert chosen(512, jnp.bfloat16, keys=700) == "cudnn", "cached"
        assert chosen(512, jnp.float32) == "xla"
        assert chosen(8, jnp.bfloat16) == "xla", "short"
        assert chosen(512, jnp.bfloat16, masked=False) == "xla", "no mask"
        with pytest.raises(ValueError, match="compute_dtype 'bfloat16'"):
            whole = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in shapes(512)[:3]]
            jax.eval_shape(functools.partial(attention, backend="cudnn"), *whole, shapes(512)[3])


def test_what_a_backend_cannot_do_is_an_error():
    run = lambda backend, *arguments: jax.eval_shape(
        functools.partial(attention, backend=backend), *arguments
    )
    with pytest.raises(ValueError, match="512 queries.*700 keys"):
        run("splash", *shapes(512, keys=700))
    with pytest.raises(ValueError, match="'cudnn'.*cpu"):
        run("cudnn", *shapes(512))
    with pytest.raises(ValueError, match="'flash'"):
        run("flash", *shapes(512))
