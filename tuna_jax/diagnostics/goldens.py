"""Check `goldens`: a tiny model gives the numbers that it gave on a CPU in float32, which are in the package.

The released PyTorch code's goldens (tests/goldens, 26 MB) are not in the package. Tests hold our CPU float32 against
them; this check holds the device against our CPU float32: `assets/doctor_references.safetensors`, of 8 KB, written by
`python -m tuna_jax.diagnostics.goldens`. Parameters and inputs are NumPy's, of a fixed seed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.config import TunaConfig, preset
from tuna_jax.diagnostics import compiling
from tuna_jax.diagnostics.context import Context
from tuna_jax.diagnostics.finding import FAIL, PASS, Finding, joined
from tuna_jax.models import tuna, vae
from tuna_jax.utils import safetensors_files
from tuna_jax.utils.param_tree import flatten, unflatten

FILE = Path(__file__).parents[1] / "assets" / "doctor_references.safetensors"
BOUNDS = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest relative L2 error of each output: in float32 at matmul precision `highest`, and in bfloat16 (parameters and
activations) at the default precision, where a CPU has 2e-2."""
_WORDS, _SIDE = 6, 4  # Tokens of a prompt; side of a latent.


def goldens(context: Context) -> Finding:
    """Both dtypes, on this process's first device."""
    del context
    references = safetensors_files.read(FILE)[0]
    return joined(compare(dtype, computed(dtype), references) for dtype in BOUNDS)


def compare(
    dtype: str, values: Mapping[str, np.ndarray], references: Mapping[str, np.ndarray]
) -> Finding:
    """Relative L2 errors of all outputs."""
    errors = {
        name: float(np.linalg.norm(values[name] - reference) / np.linalg.norm(reference))
        for name, reference in ((n, r.astype(np.float64)) for n, r in references.items())
    }
    bound = BOUNDS[dtype]
    wrong = [name for name, error in errors.items() if not error <= bound]
    most = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    listed = ", ".join(f"{name} {errors[name]:.1e}" for name in wrong)
    return Finding(
        result=FAIL if wrong else PASS,
        measured=f"{dtype}: {len(errors)} outputs, largest relative error {errors[most]:.1e} ({most}), at most "
        f"{bound:.0e}" + (f"; WRONG: {listed}" if wrong else ""),
        mend="do not train here: the device computes other numbers than a CPU. Try other versions of jax and of its "
        "driver, without XLA_FLAGS, and send us the JSON file"
        if wrong
        else "",
        numbers={dtype: errors},
    )


def computed(dtype: str) -> dict[str, np.ndarray]:
    """The outputs of the tiny model: predicted velocities, logits, a sketch of the gradients, and the VAE's moments and
    pixels; float64."""
    config = dataclasses.replace(preset("tiny"), compute_dtype=dtype)
    params, vae_params = parameters(config)
    cast = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
    arrays = inputs(config)
    precision = "highest" if dtype == "float32" else "default"
    with jax.default_matmul_precision(precision):
        model = compiling.call(functools.partial(_model, config), cast(params), arrays)
        pixels, latents = (jnp.asarray(arrays[name], dtype) for name in ("pixels", "decoded"))
        run = functools.partial(_pictures, config)
        pictures = compiling.call(run, cast(vae_params), pixels, latents)
    outputs = {**model, **pictures}
    gradients = outputs.pop("gradients")
    result = {name: np.asarray(value, np.float64) for name, value in outputs.items()}
    result["gradients"] = sketch(
        {k: np.asarray(v, np.float64) for k, v in flatten(gradients).items()}
    )
    return result


def _model(config: TunaConfig, params: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Velocities and logits, and the gradients of a fixed random combination of both."""
    tokens, spans, latents = arrays["tokens"], arrays["spans"], arrays["latents"]

    def combination(params: Any) -> Any:
        out = tuna.forward(config, params, tokens, spans, latents, arrays["t"])
        assert out.prediction is not None
        velocity = tuna.span_predictions(config, out.prediction, spans, latents.shape[2:])
        logits = tuna.logits(config, params, out.hidden)
        weighted = (velocity * arrays["weights"]).sum() + (logits * arrays["logit_weights"]).sum()
        return weighted, {"velocity": velocity, "logits": logits[:, -4:, ::8]}

    (_, outputs), gradients = jax.value_and_grad(combination, has_aux=True)(params)
    return {**outputs, "gradients": gradients}


def _pictures(config: TunaConfig, params: Any, pixels: Any, latents: Any) -> dict[str, Any]:
    space = config.video_vae
    mean, log_var = vae.encode_moments(space, params, pixels)
    return {
        "vae_mean": mean,
        "vae_log_var": log_var,
        "vae_pixels": vae.decode(space, params, latents)[:, :, ::4, ::4],
    }


def sketch(gradients: Mapping[str, np.ndarray]) -> np.ndarray:
    """Two numbers per parameter: the norm of its gradient, and a random combination of its entries of that size."""
    random = np.random.default_rng(7)
    rows = []
    for name in sorted(gradients):
        values = gradients[name]
        direction = random.integers(0, 2, values.shape) * 2 - 1
        rows.append([np.linalg.norm(values), (values * direction).sum()])
    return np.asarray(rows)


def parameters(config: TunaConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of the model and of the VAE, float32; none is zero, which would hide a part."""
    random = np.random.default_rng(0)

    def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = random.random(shape) * 2 - 1
        if name.endswith(("scale", "gamma")):
            return (1 + 0.1 * values).astype(np.float32)
        if not name.endswith("kernel"):
            return (0.2 * values).astype(np.float32)
        fan_in = math.prod(shape[1 if ".layers." in name else 0 : -1])
        return (values * (3 / fan_in) ** 0.5).astype(np.float32)

    def tree(shapes: Any) -> dict[str, Any]:
        leaves = flatten(shapes)
        return unflatten({name: fill(name, leaves[name].shape) for name in sorted(leaves)})

    return tree(tuna.shapes(config)), tree(vae.shapes(config.video_vae, image_only=True))


def inputs(config: TunaConfig) -> dict[str, np.ndarray]:
    """Two rows: an image after a text, and one before it."""
    random = np.random.default_rng(1)
    length, image = _WORDS + 4 + _SIDE**2, 1 + _SIDE**2
    channels, rows = config.space.latent_channels, 2
    tokens = random.integers(0, config.language.vocabulary, (rows, length)).astype(np.int32)
    spans = np.asarray([[[_WORDS + 1, image]], [[2, image]]], np.int32)
    latents = random.random((2, rows, 1, 1, _SIDE, _SIDE, channels)).astype(np.float32) * 4 - 2
    logit_weights = random.random((rows, length, config.language.vocabulary)) - 0.5
    side = _SIDE * config.space.spatial_factor
    return {
        "tokens": tokens,
        "spans": spans,
        "latents": latents[0],
        "weights": latents[1],
        "logit_weights": logit_weights.astype(np.float32) / 16,
        "t": np.asarray([[0.3], [0.8]], np.float32),
        "pixels": random.random((1, 1, side, side, 3)).astype(np.float32) * 2 - 1,
        "decoded": latents[0, 0],
    }


def main() -> None:
    """Writes the references; JAX must compute on a CPU."""
    assert jax.default_backend() == "cpu", "set JAX_PLATFORMS=cpu"
    references = {name: x.astype(np.float32) for name, x in computed("float32").items()}
    safetensors_files.write(FILE, references, {"jax": jax.__version__})
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
