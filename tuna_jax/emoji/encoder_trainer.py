"""Trains a small representation encoder by itself on the emoji art, for comparing encoders in an ablation.

The encoder is the module of a TUNA model (`models/representation.py`), and sees what it will see there: clean latents
of the frozen VAE. The exported file starts a model (`config.init_encoder`). At the end linear probes say what the
encoder has learned, next to one with random parameters.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from tuna_jax.config import TunaConfig
from tuna_jax.conversion.encoder_file import Encoder, export_encoder
from tuna_jax.data.prefetch import prefetch
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji import encoder_objectives as objectives
from tuna_jax.emoji.batches import scene_pool
from tuna_jax.emoji.config import EmojiData, EmojiExperiment
from tuna_jax.emoji.encoder_probe import ProbeData, ProbeSettings, chance, measure, probe_data
from tuna_jax.emoji.latent_pool import LatentPool
from tuna_jax.emoji.model_bundle import ModelBundle, load_bundle
from tuna_jax.emoji.world import worlds
from tuna_jax.inference.batching import in_chunks
from tuna_jax.models import layers
from tuna_jax.training import checkpoints, metrics, preemption
from tuna_jax.training.loop import check_same_model
from tuna_jax.training.optimizer import OptimizerSettings, build, learning_rate
from tuna_jax.training.state import moving_average
from tuna_jax.training.workdir import locked
from tuna_jax.utils import seeds
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.text_files import json_text

PROBE_FILE = "probe.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Settings of an encoder's training run: an experiment file of kind 'encoder'.

    Attributes:
      method: 'contrastive' (images with captions) or 'masked' (images only).
      model: the TUNA model whose encoder is trained; see `tuna_jax.config.from_dict`.
      vae: safetensors file of the image VAE; empty takes the emoji VAE of the package.
      data: the scenes, their captions and the vocabulary; rows, questions and other groups are not used.
      caption_length: tokens of a padded caption; a longer caption is an error that names its length.
      steps, batch, seed: number of steps, images per step, seed of parameters, order, captions and hidden tokens.
      optimizer: algorithm, schedule, and EMA, whose parameters are exported.
      contrastive, masked: settings of each method.
      probe: the linear probes at the end.
      log_every, checkpoint_every: intervals in steps.
      export: file name of the exported encoder, in the workdir.
    """

    kind: str = "encoder"
    method: str
    model: dict
    vae: str = ""
    data: EmojiData = EmojiData(world="hard")
    caption_length: int = 40
    steps: int = 500
    batch: int = 128
    seed: int = 0
    optimizer: OptimizerSettings = OptimizerSettings()
    contrastive: objectives.ContrastiveSettings = objectives.ContrastiveSettings()
    masked: objectives.MaskedSettings = objectives.MaskedSettings()
    probe: ProbeSettings = ProbeSettings()
    log_every: int = 20
    checkpoint_every: int = 200
    export: str = "encoder.safetensors"

    def __post_init__(self) -> None:
        if self.method not in objectives.METHODS:
            raise ValueError(
                f"config.method is {self.method!r}; choose one of {', '.join(objectives.METHODS)}"
            )
        for name in ("steps", "batch", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} is {getattr(self, name)}; it must be at least 1")
        if self.optimizer.ema <= 0:
            raise ValueError("config.optimizer.ema is 0; the average is what is exported")


def run(values: Mapping[str, Any], workdir: str | Path) -> Path | None:
    """Trains the encoder: what `tuna-jax train` calls for `config.kind = "encoder"`.

    Raises:
      ValueError: several processes, an unknown key, a model without a VAE or an encoder, another world than the hard
        one, and what `train_encoder` raises.
    """
    if jax.process_count() > 1:
        raise ValueError("one process trains an encoder; start this command without a launcher")
    settings = parse(EncoderSettings, values)
    learning_rate(settings.optimizer, settings.steps)  # Raises before data is encoded.
    bundle = load_bundle(
        EmojiExperiment(
            steps=settings.steps, model=settings.model, vae=settings.vae, data=settings.data
        )
    )
    if not bundle.config.has_encoder or bundle.config.vae is None or bundle.config.sees_pixels:
        raise ValueError(
            "config.model must have an encoder on latents of a VAE, as the preset 'emoji' has; "
            f"its design is {bundle.config.design!r}, and it has {'a' if bundle.config.vae else 'no'} VAE"
        )
    probe = probe_data(bundle, settings.data, settings.probe)
    return train_encoder(
        values, settings, workdir, bundle, scene_pool(bundle, settings.data), probe
    )


def train_encoder(
    values: Mapping[str, Any],
    settings: EncoderSettings,
    workdir: str | Path,
    bundle: ModelBundle,
    pool: LatentPool[Any],
    probe: ProbeData,
) -> Path | None:
    """Runs or resumes training, exports the encoder, and prints and writes its probes.

    Batches depend only on the step, so a resumed run repeats an uninterrupted one exactly.

    Returns:
      The exported file, or None if SIGTERM or Ctrl-C stopped the run before its last step.

    Raises:
      MismatchedCheckpointError: the workdir holds a run of another model or method.
      ValueError: the schedule is longer than the run, or a caption is longer than `caption_length`.
    """
    workdir = Path(workdir)

    # ---- module, loss and optimizer ---------------------------------------------------------------
    pad = bundle.tokenizer.special.pad
    graphdef, params = layers.split(make_module(settings, bundle.config))
    untrained = jax.tree.map(np.asarray, params["representation"])
    loss_of = (
        objectives.contrastive_loss(pad)
        if settings.method == "contrastive"
        else objectives.masked_loss(settings.masked)
    )
    optimizer = build(settings.optimizer, params, settings.steps)
    state = {
        "params": params,
        "ema": jax.tree.map(jnp.copy, params),
        "optimizer": optimizer.init(params),
        "step": jnp.int32(0),
    }

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        state: dict[str, Any], batch: dict[str, jax.Array]
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        key = jax.random.fold_in(seeds.key(settings.seed, "config.seed"), state["step"] + 1)
        gradient = jax.value_and_grad(
            lambda params: loss_of(layers.merge(graphdef, params), batch, key),
            has_aux=True,
        )
        (loss, numbers), grads = gradient(state["params"])
        updates, opt_state = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        step = state["step"] + 1
        ema = moving_average(state["ema"], params, step, settings.optimizer.ema)
        new = {"params": params, "ema": ema, "optimizer": opt_state, "step": step}
        return new, numbers | {"loss": loss, "gradient_norm": optax.global_norm(grads)}

    # ---- restore ---------------------------------------------------------------------------------
    with locked(workdir), checkpoints.Checkpoints(workdir / "checkpoints", keep=2) as saved:
        restored = saved.restore(state)
        start = 0
        if restored is not None:
            check_same_model(restored.config, dict(values))
            state, start = restored.state, restored.step
        log = metrics.MetricsLog(workdir, steps=settings.steps, start=start)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        log.say(f"{settings.method}: {count:,} parameters; starting at step {start}")
        del params, restored

        # ---- train -----------------------------------------------------------------------------------
        watch = metrics.Stopwatch(workdir, start)
        pending: tuple[int, dict[str, jax.Array]] | None = None

        def report() -> None:
            """Writes the pending log line. It is one interval old, so fetching it does not stall the device."""
            nonlocal pending
            if pending is not None:
                at, numbers = pending
                line = {name: float(value) for name, value in numbers.items()} | watch.read(at)
                log.write(at, line)
                log.progress(at, loss=line["loss"])
                pending = None

        with preemption.StopRequest() as stop:
            steps = batches(settings, pool, bundle.tokenizer, start)
            for step, batch in enumerate(steps, start + 1):
                state, numbers = train_step(state, batch)
                if step % settings.log_every == 0:
                    report()
                    pending = step, numbers
                last = step == settings.steps
                stopping = stop.requested and not last
                if last or stopping or step % settings.checkpoint_every == 0:
                    report()  # Log lines of earlier steps must be on disk: a resumed run does not write them again.
                    saved.save(step, state, config=dict(values))
                if stopping:
                    log.say(
                        f"stopped at step {step} on request; the same command resumes from here"
                    )
                    break
    log.close()
    if int(state["step"]) < settings.steps:
        return None

    # ---- export and probe --------------------------------------------------------------------------
    trained = Encoder(
        bundle.config.representation,
        bundle.config.space.latent_channels,
        jax.tree.map(np.asarray, state["ema"]["representation"]),
        bundle.latents_key,
        settings.method,
    )
    exported = export_encoder(workdir / settings.export, trained)
    scores = {
        settings.method: measure(probe, encoder_features(trained)),
        "random": measure(probe, encoder_features(dataclasses.replace(trained, params=untrained))),
        "latents": measure(probe, lambda x: x.reshape(len(x), -1, x.shape[-1])),
        "chance": chance(probe),
    }
    with atomic_file(workdir / PROBE_FILE) as scratch:
        scratch.write_text(json_text(scores, indent=1) + "\n", encoding="utf-8")
    print(table(scores, len(probe.latents) - probe.train))
    print(exported)
    return exported


def make_module(settings: EncoderSettings, config: TunaConfig) -> nnx.Module:
    """The module that is trained; its encoder is `representation`."""
    rngs = nnx.Rngs(seeds.key(settings.seed, "config.seed"))
    if settings.method == "contrastive":
        return objectives.Contrastive(
            config, settings.contrastive, settings.caption_length, rngs=rngs
        )
    return objectives.Masked(config, rngs=rngs)


def batches(
    settings: EncoderSettings, pool: LatentPool[Any], tokenizer: Tokenizer, start: int
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of the steps after `start`: random scenes, each with a new caption."""
    data = settings.data
    world = worlds.world(data.world, data.partial, data.difficulty)
    scene = functools.cache(pool.source.__getitem__)
    encode = functools.lru_cache(maxsize=1 << 16)(tokenizer.encode)

    def make(step: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng((settings.seed, step))
        rows = random.integers(len(pool), size=settings.batch).tolist()
        batch = {"latents": np.stack([pool.mean[row] for row in rows]).astype(np.float32)}
        if settings.method == "contrastive":
            texts = [world.phrasings(scene(row), random)[0] for row in rows]
            batch["tokens"] = padded(
                [encode(text) for text in texts], settings.caption_length, tokenizer.special.pad
            )
        return batch

    return prefetch(make, start, settings.steps, depth=4)


def padded(texts: list[list[int]], length: int, pad: int) -> Int[np.ndarray, "b length"]:
    """Token ids as one int32 array.

    Raises:
      ValueError: a text is longer than `length`.
    """
    longest = max(len(ids) for ids in texts)
    if longest > length:
        raise ValueError(
            f"a caption has {longest} tokens; raise config.caption_length from {length}"
        )
    return np.array([ids + [pad] * (length - len(ids)) for ids in texts], np.int32)


def encoder_features(encoder: Encoder) -> Any:
    """The tokens of an encoder as a function from latents [n, t, h, w, c] to float32 [n, thw, d], in NumPy."""
    run = jax.jit(lambda latents: encoder.bind()(latents))

    def features(latents: Float[np.ndarray, "n t h w c"]) -> Float[np.ndarray, "n thw d"]:
        return in_chunks(lambda part: np.asarray(run(jnp.asarray(part))), latents)

    return features


def table(scores: Mapping[str, Mapping[str, float]], count: int) -> str:
    """The probes as text, a column per encoder."""
    texts = {
        "name": "name of the object in the middle, from its tokens",
        "name_few": "the same, with 240 training scenes",
        "name_pooled": "the name, from the mean over all tokens",
        "ground": "ground, from the mean over all tokens",
    }
    lines = [f"{f'linear probe, {count} scenes':50}" + "".join(f"{name:>16}" for name in scores)]
    for key, text in texts.items():
        lines.append(f"{text:50}" + "".join(f"{column[key]:16.1%}" for column in scores.values()))
    return "\n".join(lines)
