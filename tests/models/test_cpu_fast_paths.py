"""The CPU paths compute what the plain operations compute, and other platforms do not get them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.config import preset
from tuna_jax.models import cpu_fast_paths, language, tuna
from tuna_jax.models.attention import Layout, text_layout
from tuna_jax.models.cpu_fast_paths import Unstacked, matmul, unstack, unstack_layers
from tuna_jax.models.logical_sharding import use_sharding

CONFIG = preset("tiny")
PARAMS = tuna.init(CONFIG, jax.random.key(0))


class OnTpu:
    """A sharding that only reports the platform that the program is compiled for."""

    platform = "tpu"

    def constrain(self, x: Any, axes: Any) -> Any:
        return x

    def parts(self, name: str, size: int) -> int:
        return 1

    def ring_axes(self) -> dict[str, int]:
        return {}

    def local(self, function: Any, inputs: Any, output: Any) -> Any:
        return function


def _random(number: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), number), shape)


def test_matmul_has_the_gradients_of_the_plain_product() -> None:
    x, kernel, weight = _random(0, 2, 3, 4), _random(1, 4, 5), _random(2, 2, 3, 5)

    def total(product: Any) -> Any:
        return jax.value_and_grad(lambda x, k: jnp.sum(weight * product(x, k)), (0, 1))

    fast, plain = total(matmul)(x, kernel), total(jnp.matmul)(x, kernel)
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_only_programs_for_cpu_get_the_fast_paths() -> None:
    arguments = _random(0, 2, 4), _random(1, 4, 5)
    unrolled = dataclasses.replace(CONFIG, unroll=True)
    assert cpu_fast_paths.unstacks(unrolled) and not cpu_fast_paths.unstacks(CONFIG)
    assert "custom_vjp" in str(jax.make_jaxpr(lambda *a: matmul(*a))(*arguments))
    with use_sharding(OnTpu()):
        assert not cpu_fast_paths.unstacks(unrolled)
        assert "custom_vjp" not in str(jax.make_jaxpr(lambda *a: matmul(*a))(*arguments))


def test_unstacked_layers_compute_what_stacked_ones_do() -> None:
    def hidden(params: Any, cache: Any, layout: Layout) -> Any:
        model = tuna.bind(CONFIG, params).language
        x = model.embed(jnp.asarray([[5, 6, 7]]), jnp.dtype("float32"))
        return model(x, layout, cache)

    layout = text_layout(jnp.zeros(1, jnp.int32), 3)
    cache = language.new_cache(CONFIG, 1, 4)
    expected, written = hidden(PARAMS, cache, layout)
    params = unstack_layers(PARAMS)
    for keys in (cache, unstack(cache)):
        result, new = hidden(params, keys, layout)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
        for name, array in new.items():
            stacked = jnp.stack(array.layers) if isinstance(array, Unstacked) else array
            np.testing.assert_allclose(stacked, written[name], rtol=1e-5, atol=1e-5)


def test_only_stacks_of_layers_are_unstacked_and_only_once() -> None:
    params = unstack_layers(PARAMS)
    kernel = params["language"]["layers"]["query"]["kernel"]
    assert isinstance(kernel, Unstacked) and len(kernel.layers) == CONFIG.language.layers
    assert not cpu_fast_paths.any_unstacked(params["connector"])
    again = unstack_layers(params)
    assert again["language"]["layers"]["query"]["kernel"] is kernel
