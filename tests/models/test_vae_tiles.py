"""Frames in tiles against whole frames: where they must be equal, how near they are elsewhere, and what it saves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.data.mixture.bucketing import SIZES_512, SIZES_1024
from tuna_jax.inference import batching
from tuna_jax.models import vae, vae_layers, vae_tiles
from tuna_jax.models.vae_tiles import Tiling

CONFIG = preset("tiny").vae
# Attention begins with zeros behind it, which would hide that it sees the whole frame.
PARAMS = jax.tree.map(
    lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape),
    vae.init(CONFIG, jax.random.key(0)),
)
HOW = ("chunked", "tiles")
encode = jax.jit(functools.partial(vae.encode, CONFIG), static_argnames=HOW)
decode = jax.jit(functools.partial(vae.decode, CONFIG), static_argnames=HOW)
SEEN = 13  # latent positions that a pixel sees to each side outside the parts that see everything, rounded up


def _latents(frames: int, height: int, width: int) -> jax.Array:
    shape = (1, frames, height, width, CONFIG.latent_channels)
    return jax.random.normal(jax.random.key(1), shape)


def _pixels(frames: int, height: int, width: int) -> jax.Array:
    shape = (1, frames, 16 * height, 16 * width, 3)
    return jax.random.uniform(jax.random.key(2), shape, minval=-1.0)


def _relative(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.parametrize(
    ("length", "most", "overlap"), [(64, 40, 8), (120, 40, 8), (41, 40, 20), (9, 4, 1)]
)
@pytest.mark.parametrize("scale", [1, 8])
def test_tiles_cover_an_axis_and_count_as_one(
    length: int, most: int, overlap: int, scale: int
) -> None:
    found = vae_tiles.cover(length, Tiling(most, overlap))
    starts, size = found
    assert starts[0] == 0 and starts[-1] + size == length and size <= most
    assert all(a + size - b >= overlap for a, b in zip(starts, starts[1:], strict=False))
    total = np.zeros(length * scale)
    for start, row in zip(starts, vae_tiles.weights(found, scale), strict=True):
        total[start * scale : (start + size) * scale] += row
        if start:
            assert not row[: overlap * scale // 4].any()
    np.testing.assert_allclose(total, 1.0, atol=1e-6)


@pytest.mark.parametrize("tiles", [Tiling(8, 5), Tiling(8, 0)])
def test_an_overlap_that_does_not_fit_is_named(tiles: Tiling) -> None:
    with pytest.raises(ValueError, match="tiles of 8 cannot overlap by"):
        vae_tiles.cover(20, tiles)


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 1, 190), (1, 190, 1), (3, 190, 1)])
def test_with_enough_overlap_tiles_are_the_whole(frames: int, height: int, width: int) -> None:
    tiles, chunked = Tiling(110, 52), frames > 1
    assert len(vae_tiles.cover(190, tiles).starts) == 3
    latents, pixels = _latents(frames, height, width), _pixels(4 * frames - 3, height, width)
    whole = decode(PARAMS, latents)
    assert _relative(decode(PARAMS, latents, tiles=tiles, chunked=chunked), whole) < 1e-5
    for cut, uncut in zip(
        encode(PARAMS, pixels, tiles=tiles, chunked=chunked), encode(PARAMS, pixels), strict=True
    ):
        assert _relative(cut, uncut) < 1e-5


@pytest.mark.slow
def test_with_little_overlap_only_the_seams_differ() -> None:
    """Two tiles of 24 positions a side that overlap by 8, and attention over the whole frame in both."""
    tiles, side = Tiling(24, 8), 40
    assert vae_tiles.cover(side, tiles) == ((0, 16), 24)
    latents, pixels = _latents(1, side, side), _pixels(1, side, side)
    inner = np.r_[0 : 24 - SEEN, 16 + SEEN : side]
    pairs = {
        "decoded": (decode(PARAMS, latents, tiles=tiles), decode(PARAMS, latents), 16),
        "encoded": (encode(PARAMS, pixels, tiles=tiles)[0], encode(PARAMS, pixels)[0], 1),
    }
    for name, (cut, whole, scale) in pairs.items():
        places = (inner[:, None] * scale + np.arange(scale)).ravel()
        same = [x[:, :, places][:, :, :, places] for x in (cut, whole)]
        # The encoder's attention comes after its tiles, and carries a little of the seams everywhere.
        assert _relative(*same) < (1e-5 if name == "decoded" else 5e-5)
        assert 1e-4 < _relative(cut, whole) < 0.01


def test_large_frames_alone_are_cut() -> None:
    sizes = (*SIZES_512, *SIZES_1024)
    assert not any(vae_tiles.tiling(size.height, size.width) for size in sizes)
    assert vae_tiles.tiling(1040, 1024) == vae_tiles.tiling(720, 1472) == Tiling()
    config = preset("tiny")
    shapes = jax.ShapeDtypeStruct((1, 1, 8, 8, CONFIG.latent_channels), jnp.float32)
    usual = batching.decode.lower(config, PARAMS, shapes).as_text()
    assert usual == batching.decode.lower(config, PARAMS, shapes, tile_above=10**9).as_text()
    assert usual != batching.decode.lower(config, PARAMS, shapes, tile_above=0).as_text()


def test_attention_row_by_row_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = _latents(2, 6, 10)
    whole = vae.decode(CONFIG, PARAMS, latents)
    monkeypatch.setattr(vae_layers, "_AT_ONCE", 59)
    assert _relative(vae.decode(CONFIG, PARAMS, latents), whole) < 1e-5
    assert "scan" in str(jax.make_jaxpr(lambda x: vae.decode(CONFIG, PARAMS, x))(latents))


def test_tiles_take_less_memory() -> None:
    def scratch(side: int, tiles: Tiling | None) -> int:
        shape = jax.ShapeDtypeStruct((1, 1, side, side, CONFIG.latent_channels), jnp.float32)
        analysis = decode.lower(PARAMS, shape, tiles=tiles).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    whole, cut = scratch(96, None), scratch(96, Tiling(32, 8))
    assert cut < whole / 2
