"""Trains the small image VAE of Wan's architecture (model.md section 1) and exports it.

Still images use kernels with one tap in time (`image_only`). The reconstruction loss favours sharp images: absolute
and squared error of pixels, absolute error of the differences of neighbouring pixels (edges), and absolute error of
pooled images (large shapes). The KL weight is high for an autoencoder, because the latents that a flow model generates
are never exact, and a wide posterior makes the decoder robust to that.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from tuna_jax import config as model_config
from tuna_jax.conversion import image_vae_file
from tuna_jax.data.prefetch import prefetch
from tuna_jax.emoji.world.clips import ClipImages
from tuna_jax.emoji.world.hard.rendering import HardImages
from tuna_jax.emoji.world.rendering import SceneImages
from tuna_jax.models import vae
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training import checkpoints, metrics, preemption
from tuna_jax.training.optimizer import OptimizerSettings, build
from tuna_jax.training.state import moving_average
from tuna_jax.training.workdir import locked
from tuna_jax.utils.config_parsing import parse

_STATISTICS_IMAGES = 4096


@runtime_checkable
class Images(Protocol):
    """A source of images: an index always gives the same float32 [H, W, 3] in [-1, 1]."""

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Image `index`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The training images; see `tuna_jax.emoji.world.rendering.SceneImages`.

    Attributes:
      world: 'scenes', or 'hard': `tuna_jax.emoji.world.hard.rendering.HardImages`, which have no `varied` or `clips`.
      size: side in pixels.
      seed: seed of the training images; the held-out images use a different one.
      varied: share of images that are not scenes (any colours, sizes and overlaps).
      clips: share of images that are frames of clips; see `tuna_jax.emoji.world.clips.ClipImages`.
    """

    world: str = "scenes"
    size: int = 64
    seed: int = 0
    varied: float = 0.5
    clips: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAESettings:
    """Settings of a VAE training run: an experiment file of kind 'vae'.

    Attributes:
      preset: model preset whose VAE is trained.
      encoder_width, decoder_width, blocks: its size; see `tuna_jax.config.VAEConfig`.
      init_from: an exported VAE of the same size with the initial parameters; empty initialises them randomly.
      images: the training images.
      steps, batch, seed: number of steps, images per step, seed of parameters and noise.
      optimizer: algorithm, schedule and EMA.
      l1, l2, edge, pooled, kl: weights of the loss terms; `kl` applies to the KL divergence averaged over latent
        values.
      log_every, evaluate_every, checkpoint_every: intervals in steps.
      held_out: number of held-out images that PSNR is measured on.
      export: file name of the exported VAE, in the workdir.
    """

    kind: str = "vae"
    preset: str = "emoji"
    encoder_width: int = 20
    decoder_width: int = 32
    blocks: int = 1
    init_from: str = ""
    images: ImageSettings = ImageSettings()
    steps: int = 20_000
    batch: int = 16
    seed: int = 0
    optimizer: OptimizerSettings = OptimizerSettings()
    l1: float = 1.0
    l2: float = 2.0
    edge: float = 1.0
    pooled: float = 1.0
    kl: float = 1e-2
    log_every: int = 20
    evaluate_every: int = 500
    checkpoint_every: int = 500
    held_out: int = 256
    export: str = "emoji_vae.safetensors"


def reconstruction_loss(
    settings: VAESettings, decoded: Float[Array, "b 1 h w 3"], pixels: Float[Array, "b 1 h w 3"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum of the pixel, edge and pooled terms, and each term without its weight."""
    error = (decoded - pixels)[:, 0]
    down, across = error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1]
    pools = [jnp.mean(jnp.abs(_pool(error, size))) for size in (2, 4, 8)]
    terms = {
        "l1": jnp.mean(jnp.abs(error)),
        "l2": jnp.mean(jnp.square(error)),
        "edge": jnp.mean(jnp.abs(down)) + jnp.mean(jnp.abs(across)),
        "pooled": jnp.mean(jnp.stack(pools)),
    }
    weighted = [getattr(settings, name) * value for name, value in terms.items()]
    return jnp.sum(jnp.stack(weighted)), terms


def vae_loss(
    settings: VAESettings,
    config: model_config.VAEConfig,
    params: Any,
    pixels: Float[Array, "b h w 3"],
    key: jax.Array,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Reconstruction loss of a posterior sample plus the weighted KL divergence from N(0, I); and the terms."""
    clip = pixels[:, None]
    mean, log_var = vae.encode(config, params, clip)
    log_var = jnp.clip(log_var, -30.0, 20.0)
    latents = mean + jnp.exp(log_var / 2) * jax.random.normal(key, mean.shape)
    loss, terms = reconstruction_loss(settings, vae.decode(config, params, latents), clip)
    kl = jnp.mean(mean**2 + jnp.exp(log_var) - 1.0 - log_var) / 2
    spread = jnp.mean(jnp.exp(log_var / 2)) / (jnp.std(mean) + 1e-6)
    return loss + settings.kl * kl, terms | {"kl": kl, "posterior_to_latent_std": spread}


def run(values: Mapping[str, Any], workdir: str | Path) -> Path | None:
    """Trains the VAE on rendered scenes and clips: what `tuna-jax train` calls for `config.kind = "vae"`.

    Raises:
      ValueError: several processes, an unknown key, and what `train_vae` raises.
    """
    if jax.process_count() > 1:
        raise ValueError("one process trains a VAE; start this command without a launcher")
    settings = parse(VAESettings, values)
    images, held_out = _images(settings.images)
    exported = train_vae(settings, workdir, images, held_out)
    if exported is not None:
        print(exported)
    return exported


def _images(data: ImageSettings) -> tuple[Images, Images]:
    """The images of training, and held-out ones."""
    if data.world not in ("scenes", "hard"):
        raise ValueError(f"config.images.world is {data.world!r}; it must be 'scenes' or 'hard'")
    if data.world == "hard":
        return HardImages(data.seed, data.size, length=10**12), HardImages(
            data.seed + 1_000_003, data.size
        )
    scenes = SceneImages(data.seed, data.size, length=10**12, varied=data.varied)
    images = ClipImages(scenes, data.clips, data.seed, data.size) if data.clips else scenes
    return images, SceneImages(data.seed + 1_000_003, data.size, varied=0.0)


def train_vae(
    settings: VAESettings, workdir: str | Path, images: Images, held_out: Images
) -> Path | None:
    """Runs or resumes VAE training.

    Images and noise depend only on the step, so a resumed run repeats an uninterrupted one exactly.

    Returns:
      The exported file, or None if SIGTERM or Ctrl-C stopped the run before its last step.

    Raises:
      ValueError: the batch cannot be divided between the devices, or the VAE in `init_from` has a different size.
    """
    workdir = Path(workdir)

    # ---- model and optimizer: replicated on all devices; the images of a step are sharded --------
    mesh = make_mesh()
    param_sharding.check_batch(settings.batch, mesh)
    replicated, batch_sharding = (
        param_sharding.replicated(mesh),
        param_sharding.batch_sharding(mesh),
    )
    config = dataclasses.replace(
        model_config.preset(settings.preset).video_vae,
        encoder_width=settings.encoder_width,
        decoder_width=settings.decoder_width,
        blocks=settings.blocks,
    )
    params = vae.init(config, jax.random.key(settings.seed), image_only=True)
    if settings.init_from:
        params = _load_initial_params(settings.init_from, params)
    optimizer = build(settings.optimizer, params, settings.steps)
    state = {
        "params": params,
        "ema": jax.tree.map(jnp.copy, params),
        "optimizer": optimizer.init(params),
        "step": jnp.int32(0),
    }
    state = jax.device_put(state, replicated)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        state: dict[str, Any], pixels: jax.Array
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(settings.seed + 1), state["step"])
        gradient = jax.value_and_grad(
            lambda params: vae_loss(settings, config, params, pixels, key), has_aux=True
        )
        (loss, terms), grads = gradient(state["params"])
        updates, opt_state = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        step = state["step"] + 1
        ema = moving_average(state["ema"], params, step, settings.optimizer.ema)
        new = {"params": params, "ema": ema, "optimizer": opt_state, "step": step}
        return new, terms | {"loss": loss, "gradient_norm": optax.global_norm(grads)}

    # ---- restore ---------------------------------------------------------------------------------
    with locked(workdir), checkpoints.Checkpoints(workdir / "checkpoints", keep=2) as saved:
        restored = saved.restore(state)
        start = 0
        if restored is not None:
            state, start = restored.state, restored.step
        log = metrics.MetricsLog(workdir, steps=settings.steps, start=start)
        log.say(
            f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters; starting at step {start}"
        )
        del params, restored

        # ---- train -----------------------------------------------------------------------------------
        def gather_batch(step: int) -> np.ndarray:
            return _gather(images, step * settings.batch, settings.batch)

        watch = metrics.Stopwatch(workdir, start)
        count = settings.held_out
        test_batches = [_gather(held_out, at, min(64, count - at)) for at in range(0, count, 64)]
        pending: tuple[int, dict[str, jax.Array]] | None = None

        def report() -> None:
            """Writes the pending log line. It is one interval old, so fetching it does not stall the device."""
            nonlocal pending
            if pending is not None:
                at, terms = pending
                values = {name: float(value) for name, value in terms.items()} | watch.read(at)
                log.write(at, values)
                log.progress(at, loss=values["loss"], l1=values["l1"])
                pending = None

        def save(step: int) -> None:
            report()  # Log lines of earlier steps must be on disk: a resumed run does not write them again.
            saved.save(step, state, config=dataclasses.asdict(settings))

        with preemption.StopRequest() as stop:
            batches = prefetch(gather_batch, start, settings.steps, depth=4)
            for step, pixels in enumerate(batches, start + 1):
                state, terms = train_step(state, jax.device_put(pixels, batch_sharding))
                last = step == settings.steps
                if step % settings.log_every == 0:
                    report()
                    pending = step, terms
                if step % settings.evaluate_every == 0 or last:
                    quality = image_vae_file.reconstruction_quality(
                        config, state["ema"], test_batches
                    )
                    report()
                    log.write(step, quality)
                    log.say(
                        f"step {step}: " + ", ".join(f"{k} {v:.2f}" for k, v in quality.items())
                    )
                if step % settings.checkpoint_every == 0 or last:
                    save(step)
                elif stop.requested:
                    log.say(
                        f"stopped at step {step} on request; the same command resumes from here"
                    )
                    save(step)
                    break
    log.close()
    if int(state["step"]) < settings.steps:
        return None

    # ---- export ----------------------------------------------------------------------------------
    first = settings.held_out
    image_batches = (
        _gather(held_out, first + start, 64) for start in range(0, _STATISTICS_IMAGES, 64)
    )
    statistics = image_vae_file.latent_statistics(config, state["ema"], image_batches)
    return image_vae_file.export(workdir / settings.export, config, state["ema"], statistics)


def _load_initial_params(path: str, expected: Any) -> Any:
    """The parameters of an exported VAE, which must have the shapes of `expected`."""
    _, params = image_vae_file.load_image_vae(path)
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        raise ValueError(
            f"the VAE in config.init_from ({path}) differs in size from config.encoder_width, config.decoder_width and "
            "config.blocks"
        )
    return jax.tree.map(jnp.asarray, params)


def _gather(images: Images, first: int, count: int) -> np.ndarray:
    return np.stack([images[index] for index in range(first, first + count)])


def _pool(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c"]:
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // size, size, width // size, size, channels).mean((2, 4))
