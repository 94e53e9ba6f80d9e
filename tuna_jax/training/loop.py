"""The training loop of TUNA: one linear function, restored exactly from wherever it was stopped.

What a checkpoint holds, and the order in which it is put back: state (parameters, average,
optimizer, key, step, metric window), the data iterator's position, then the log is cut back to the
restored step. After that nothing tells a resumed run from one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from tuna_jax import flow
from tuna_jax.config import TunaConfig
from tuna_jax.models import tuna
from tuna_jax.parallel import rules
from tuna_jax.parallel.mesh import MeshSettings, make_mesh
from tuna_jax.training import checkpoints, metrics, optimizer, state, step
from tuna_jax.training.export import MODEL_FILE, export_model
from tuna_jax.training.interrupt import StopRequest

Draw = Callable[[int, Any], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeSettings:
    """Training times: sigmoid of a normal draw, shifted toward noise if `shift` (model.md section
    2)."""

    mean: float = 0.0
    std: float = 1.0
    shift: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What the loop itself needs to know; models and data come ready-made.

    Attributes:
      steps: updates of the whole run.
      seed: seed of parameters, noise and times.
      optimizer: AdamW or Muon, schedule, freezing, EMA.
      flow_weight, text_weight: weights of the two losses.
      time: how training times are drawn.
      mesh: sizes of the mesh axes.
      log_every, checkpoint_every, sample_every: in steps; 0 draws no samples.
      keep: checkpoints that are kept.
      asynchronous: write checkpoints in the background.
    """

    steps: int
    seed: int = 0
    optimizer: optimizer.OptimizerSettings = optimizer.OptimizerSettings()
    flow_weight: float = 1.0
    text_weight: float = 0.2
    time: TimeSettings = TimeSettings()
    mesh: MeshSettings = MeshSettings()
    log_every: int = 20
    checkpoint_every: int = 500
    sample_every: int = 0
    keep: int = 3
    asynchronous: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1")


def train(
    settings: LoopSettings,
    config: TunaConfig,
    workdir: str | Path,
    iterator: Iterator[dict[str, np.ndarray]],
    *,
    tasks: tuple[str, ...],
    record: dict[str, Any],
    draw: Draw | None = None,
    flow_rows: int | None = None,
    text_rows: int | None = None,
) -> bool:
    """Trains, or goes on training, until `settings.steps` or a SIGTERM.

    Args:
      settings: see `LoopSettings`.
      config: the model.
      workdir: gets `metrics.jsonl`, `tensorboard/`, `checkpoints/`, and at the end
        `model.safetensors`.
      iterator: Grain iterator of this process's part of every batch (data/pipeline.py says what is
        in one).
      tasks: names of the mixture's streams, in the order of `batch['task']`.
      record: the experiment as JSON: saved with every checkpoint and with the model. A restored run
        must have the same `record['model']`; other differences are allowed and told.
      draw: `(step, params)`, called every `sample_every` steps and at the end with the averaged
        parameters.
      flow_rows, text_rows: how many rows of every batch, over all processes, have something to draw, or a text loss;
        see `models.tuna.loss`.

    Returns:
      Whether the run reached its last step.
    """
    workdir = Path(workdir)

    # ---- mesh, model, optimizer: shapes alone, nothing is allocated yet --------------------------
    mesh = make_mesh(settings.mesh)
    init_params = functools.partial(tuna.init, config)
    update = optimizer.build(
        settings.optimizer, jax.eval_shape(init_params, jax.random.key(0)), settings.steps
    )
    make_state = functools.partial(
        state.initial,
        init_params,
        update,
        step.empty_window(len(tasks)),
        seed=settings.seed,
        average=settings.optimizer.ema > 0,
    )
    shapes = jax.eval_shape(make_state)
    shardings = state.state_shardings(shapes, mesh)
    train_step = step.compile_step(
        step.make_step(
            _make_loss(config, settings, flow_rows, text_rows),
            update,
            functools.partial(_sample_time, settings.time),
            ema=settings.optimizer.ema,
            log_every=settings.log_every,
            tasks=len(tasks),
        ),
        shardings,
        mesh,
    )

    # ---- restore, or begin -----------------------------------------------------------------------
    saved = checkpoints.Checkpoints(
        workdir / "checkpoints", keep=settings.keep, asynchronous=settings.asynchronous
    )
    restored = saved.restore(state.abstract(shapes, shardings), iterator=iterator)
    if restored is None:
        current: state.TrainState = jax.jit(make_state, out_shardings=shardings)()
        start = 0
    else:
        check_same_model(restored.config, record)
        current, start = restored.state, restored.step
    del restored

    # ---- train -----------------------------------------------------------------------------------
    log = metrics.MetricsLog(
        workdir, steps=settings.steps, start=start, enabled=jax.process_index() == 0
    )
    log.say(_greeting(current, mesh, start, settings.steps))
    watch = metrics.Stopwatch(workdir, start)
    split = rules.batch_sharding(mesh)

    def place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        rules.check_batch(len(batch["tokens"]) * jax.process_count(), mesh)
        return {
            name: jax.make_array_from_process_local_data(split, values)
            for name, values in batch.items()
        }

    pending: tuple[int, step.Window] | None = None

    def report() -> None:
        """Writes the log line that is due. It is one interval old by now, so fetching it does not
        stall the device."""
        nonlocal pending
        if pending is None:
            return
        at, window = pending
        line = step.summarize(window, tasks) | watch.read(at)
        log.write(at, line)
        log.progress(
            at, loss=line["loss"], flow=line.get("flow_loss", 0.0), text=line.get("text_loss", 0.0)
        )
        if line["skipped"]:
            log.say(
                f"step {at}: {line['skipped']:.0f} updates so far were skipped: loss or gradient not finite"
            )
        pending = None

    def save(at: int) -> None:
        report()  # A line before the checkpoint must be on disk: the resumed run would not write it again.
        saved.save(at, current, config=record, iterator=iterator)

    with StopRequest() as stop:
        for number in range(start + 1, settings.steps + 1):
            current, window = train_step(current, place(next(iterator)))
            if number % settings.log_every == 0:
                report()
                pending = number, window
            last = number == settings.steps
            if draw and settings.sample_every and (last or number % settings.sample_every == 0):
                draw(number, current.averaged)
            if last or number % settings.checkpoint_every == 0:
                save(number)
            elif stop.requested:
                log.say(f"stopping at step {number} as asked; the same command goes on from here")
                save(number)
                break

    # ---- end -------------------------------------------------------------------------------------
    reached = int(current.step)
    saved.close()
    log.close()
    if jax.process_index() == 0:
        export_model(workdir / MODEL_FILE, current.averaged, record, reached)
    return reached >= settings.steps


def check_same_model(stored: dict[str, Any], record: dict[str, Any]) -> None:
    """Raises if a checkpoint's settings describe another model; warns of every other difference."""
    before, now = _flat(stored), _flat(record)
    differ = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    described = [f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in differ]
    if any(key.split(".")[0] == "model" for key in differ):
        raise checkpoints.MismatchedCheckpointError(
            f"this workdir holds a run of another model ({'; '.join(described[:3])}); go back to its config, or choose "
            f"another --workdir"
        )
    for text in described:
        logging.warning("going on with a setting that differs from the checkpoint's: %s", text)


def _make_loss(
    config: TunaConfig, settings: LoopSettings, flow_rows: int | None, text_rows: int | None
) -> step.Loss:
    return lambda params, batch, noise, t: tuna.loss(
        config,
        params,
        batch,
        noise,
        t,
        flow_weight=settings.flow_weight,
        text_weight=settings.text_weight,
        flow_rows=flow_rows,
        text_rows=text_rows,
    )


def _sample_time(settings: TimeSettings, key: jax.Array, shape: tuple[int, ...]) -> Any:
    mu = flow.shift_mu() if settings.shift else None
    return flow.sample_time(key, shape, mean=settings.mean, std=settings.std, mu=mu)


def _greeting(current: state.TrainState, mesh: jax.sharding.Mesh, start: int, steps: int) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(current.params))
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    begin = "starting" if start == 0 else f"going on from step {start}"
    return f"{count:,} parameters on a mesh of {axes} ({jax.default_backend()}); {begin}, to step {steps}"


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
