"""The file format of the small image VAE: writing, reading, and measuring the VAE.

A safetensors file has the parameters in float16 under their dotted names, and two more tensors, `latent_mean` and
`latent_std` (float32 [C]): the per-channel statistics that normalise the latents. Its metadata has the VAE's config as
JSON.

A file can also hold only what differs from a VAE of the package, whose name is its metadata's `adapts`: of a kernel
NAME, `NAME.left` and `NAME.right`, whose product is the nearest matrix of low rank to the difference (as in LoRA, Hu et
al. 2022, but computed after training all weights), as int8 columns and rows with a scale for each,
`NAME.left_scale` and `NAME.right_scale`; every other parameter whole.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tuna_jax.config import VAEConfig
from tuna_jax.models import vae
from tuna_jax.utils import safetensors_files
from tuna_jax.utils.param_tree import flatten, unflatten

# Parameters with fewer values are stored whole.
_SMALL = 2_000
_MEAN, _STD = "latent_mean", "latent_std"


def shipped_image_vae() -> Path:
    """Path of the emoji VAE in the installed package."""
    return Path(str(resources.files("tuna_jax") / "assets" / "emoji_vae.safetensors"))


def vae_path(value: str | os.PathLike[str] | None) -> Path:
    """The file that a config's `vae` names: a VAE of the package ('' or None: 'emoji_vae'), or a path."""
    name = os.fspath(value) if value else "emoji_vae"
    shipped = shipped_image_vae().parent / f"{name}.safetensors"
    return shipped if os.sep not in name and shipped.is_file() else Path(name)


def export(
    path: str | Path,
    config: VAEConfig,
    params: Any,
    statistics: tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]],
) -> Path:
    """Writes a VAE to a safetensors file, atomically.

    Args:
      path: the file.
      config: of the VAE.
      params: nested dict; written in float16.
      statistics: per-channel (mean, standard deviation) of the latents.
    """
    tensors = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    return _write(Path(path), tensors, statistics, {"vae": json.dumps(dataclasses.asdict(config))})


def export_adaptation(
    path: str | Path,
    config: VAEConfig,
    params: Any,
    statistics: tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]],
    *,
    adapts: str,
    share: float,
) -> Path:
    """Writes a VAE as its difference from one of the package; see the module's text.

    Args:
      path, config, params, statistics: as for `export`.
      adapts: name of a VAE of the package of the same size.
      share: largest number of values that are stored of a kernel, relative to its own.
    """
    _, base = load_image_vae(adapts)
    old = flatten(base)
    tensors: dict[str, np.ndarray] = {}
    for name, leaf in flatten(params).items():
        new = np.asarray(leaf, np.float32)
        if new.size < _SMALL:
            tensors[name] = new
            continue
        difference = (new - old[name]).reshape(-1, new.shape[-1])
        rows, columns = difference.shape
        rank = max(1, int(share * rows * columns / (rows + columns)))
        left, values, right = np.linalg.svd(difference, full_matrices=False)
        root = np.sqrt(values[:rank])
        for side, factor in (("left", left[:, :rank] * root), ("right", right[:rank].T * root)):
            scale = (np.abs(factor).max(0) / 127).astype(np.float16)
            whole = np.rint(factor / np.maximum(scale.astype(np.float32), 1e-12))
            tensors[f"{name}.{side}"] = np.clip(whole, -127, 127).astype(np.int8)
            tensors[f"{name}.{side}_scale"] = scale
    metadata = {"vae": json.dumps(dataclasses.asdict(config)), "adapts": adapts}
    return _write(Path(path), tensors, statistics, metadata)


def _write(
    path: Path,
    tensors: dict[str, np.ndarray],
    statistics: tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]],
    metadata: dict[str, str],
) -> Path:
    """Writes tensors in float16 (int8 ones as they are), and statistics in float32, atomically."""
    stored: dict[str, np.ndarray] = {
        name: np.ascontiguousarray(leaf, np.int8 if leaf.dtype == np.int8 else np.float16)
        for name, leaf in tensors.items()
    }
    stored[_MEAN], stored[_STD] = (np.asarray(values, np.float32) for values in statistics)
    safetensors_files.write(path, stored, metadata)
    return path


def load_image_vae(path: str | Path | None = None) -> tuple[VAEConfig, dict[str, Any]]:
    """Reads an exported VAE: its config, including the latent statistics, and its parameters in float32.

    Args:
      path: the safetensors file, or the name of a VAE of the package; None takes 'emoji_vae'.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file has no statistics or config, or its tensors do not match its config (the message lists the
        first missing, unexpected and wrongly shaped ones).
    """
    path = vae_path(path)
    if not path.exists():
        raise FileNotFoundError(f"no VAE at {path}; experiments/emoji/vae.py trains one")
    tensors, metadata = safetensors_files.read(path)
    if "vae" not in metadata or _MEAN not in tensors or _STD not in tensors:
        raise ValueError(
            f"{path} is not an exported image VAE: it requires metadata 'vae' and tensors {_MEAN} and {_STD}"
        )
    mean, std = tensors.pop(_MEAN), tensors.pop(_STD)
    if "adapts" in metadata:
        tensors = _adapted(metadata["adapts"], tensors)
    fields = json.loads(metadata["vae"]) | {
        "latent_stats": "custom",
        "latent_mean": mean.tolist(),
        "latent_std": std.tolist(),
        # The posterior of these weights is in the units of the normalised latents.
        "consistent_posterior": True,
    }
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    config = VAEConfig(**arguments)
    expected = flatten(vae.shapes(config, image_only=True))
    _check_same(
        path,
        {name: leaf.shape for name, leaf in expected.items()},
        {n: t.shape for n, t in tensors.items()},
    )
    return config, unflatten({name: tensor.astype(np.float32) for name, tensor in tensors.items()})


def _adapted(base: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of a VAE of the package with stored differences; tensors that match none are kept as they are."""
    result = {name: np.asarray(leaf) for name, leaf in flatten(load_image_vae(base)[1]).items()}
    for name, tensor in tensors.items():
        kernel, _, side = name.rpartition(".")
        if not side.startswith(("left", "right")):
            result[name] = tensor
        elif side == "left" and kernel in result:
            left, right = (
                tensors[f"{kernel}.{s}"] * tensors[f"{kernel}.{s}_scale"].astype(np.float32)
                for s in ("left", "right")
            )
            result[kernel] = result[kernel] + (left @ right.T).reshape(result[kernel].shape)
    return result


@functools.partial(jax.jit, static_argnums=0)
def _posterior(
    config: VAEConfig, params: Any, pixels: Float[Array, "b h w 3"]
) -> tuple[Float[Array, "b 1 y x c"], Float[Array, "b 1 y x c"]]:
    """Mean and variance, both in the units of `config`'s latents."""
    mean, log_var = vae.encode(config, params, pixels[:, None])
    return mean, jnp.square(vae.posterior_std(config, log_var))


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(
    config: VAEConfig, params: Any, pixels: Float[Array, "b h w 3"], error: Float[Array, ""]
) -> Float[Array, "b h w 3"]:
    mean, _ = vae.encode(config, params, pixels[:, None])
    noise = jax.random.normal(jax.random.key(0), mean.shape) * mean.std((0, 1, 2, 3))
    return jnp.clip(vae.decode(config, params, mean + error * noise)[:, 0], -1.0, 1.0)


def reconstruction_quality(
    config: VAEConfig, params: Any, batches: Iterable[np.ndarray]
) -> dict[str, float]:
    """PSNR in dB over all pixels of all images (batches of float32 [B, H, W, 3] in [-1, 1]).

    `psnr_db` decodes the posterior mean. `psnr_noisy_db` decodes the mean with added noise of 10 % of each channel's
    standard deviation, as an estimate for generated latents, which are never exact.
    """
    squared, squared_noisy, count = 0.0, 0.0, 0
    for pixels in batches:
        exact = np.asarray(_reconstruct(config, params, pixels, 0.0), np.float64)
        noisy = np.asarray(_reconstruct(config, params, pixels, 0.1), np.float64)
        squared += float(((exact - pixels) ** 2).sum())
        squared_noisy += float(((noisy - pixels) ** 2).sum())
        count += pixels.size
    return {"psnr_db": _psnr(squared / count), "psnr_noisy_db": _psnr(squared_noisy / count)}


def latent_statistics(
    config: VAEConfig, params: Any, batches: Iterable[np.ndarray]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Per-channel mean and standard deviation of posterior samples over `batches`, accumulated in float64.

    They are statistics of samples rather than of posterior means: a channel that the KL term has collapsed has means
    near 0, and dividing by their small deviation would amplify its noise.
    """
    total = total_squared = np.zeros(config.latent_channels)
    count = 0
    for pixels in batches:
        posterior = _posterior(config, params, pixels)
        mean, variance = (
            np.asarray(x, np.float64).reshape(-1, config.latent_channels) for x in posterior
        )
        total = total + mean.sum(0)
        total_squared = total_squared + (mean**2 + variance).sum(0)
        count += len(mean)
    mean = total / count
    std = np.sqrt(np.maximum(total_squared / count - mean**2, 1e-12))
    return mean.astype(np.float32), std.astype(np.float32)


def _psnr(mean_squared_error: float) -> float:
    # The range of pixels is 2, from -1 to 1.
    return float(10 * np.log10(4.0 / max(mean_squared_error, 1e-12)))


def _check_same(
    path: Path, expected: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]
) -> None:
    problems = [f"{name} is missing" for name in sorted(expected.keys() - stored.keys())]
    problems += [
        f"{name} is not part of this VAE" for name in sorted(stored.keys() - expected.keys())
    ]
    problems += [
        f"{name} has shape {stored[name]}, not {expected[name]}"
        for name in sorted(expected.keys() & stored.keys())
        if tuple(stored[name]) != tuple(expected[name])
    ]
    if problems:
        raise ValueError(
            f"{path} does not match its config: {'; '.join(problems[:5])} ({len(problems)} problems)"
        )
