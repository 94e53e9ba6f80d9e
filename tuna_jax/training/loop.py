"""The training loop of TUNA: one linear function, restored exactly from wherever it was stopped.

What a checkpoint holds, and the order in which it is put back: state (parameters, average,
optimizer, key, step, metric window), the data iterator's position, then the log is cut back to the
restored step. After that nothing tells a resumed run from one that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from tuna_jax.config import TunaConfig
from tuna_jax.parallel import distributed, param_sharding
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training import metrics, state, step
from tuna_jax.training.checkpoints import Checkpoints, MismatchedCheckpointError
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.nonfinite import NotFiniteError, keep_batch
from tuna_jax.training.preemption import StopRequest
from tuna_jax.training.step import NO_LIMITS, Batch, Heads
from tuna_jax.training.throughput import Throughput, peak_of
from tuna_jax.training.train_program import Arrays, Program
from tuna_jax.training.weights_file import MODEL_FILE, export_model
from tuna_jax.training.workdir import locked
from tuna_jax.utils import old_names

Draw = Callable[[int, Any], None]
Evaluate = Callable[[int, Any], Mapping[str, float]]


def train(
    settings: LoopSettings,
    config: TunaConfig,
    workdir: str | Path,
    iterator: Iterator[dict[str, np.ndarray]],
    *,
    tasks: tuple[str, ...],
    record: dict[str, Any],
    heads: Callable[[Batch], Heads] = lambda batch: NO_LIMITS,
    ahead: Sequence[tuple[Arrays, Heads]] = (),
    vae_params: Any = None,
    parameters: Callable[[Any, Any], Any] | None = None,
    draw: Draw | None = None,
    evaluate: Evaluate | None = None,
    counters: Callable[[], Mapping[str, float]] = dict,
) -> bool:
    """Trains, or goes on training, until `settings.steps` or a SIGTERM.

    Args:
      settings: see `LoopSettings`.
      config: the model.
      workdir: gets `metrics.jsonl`, `tensorboard/`, `checkpoints/`, and at the end
        `model.safetensors`.
      iterator: Grain iterator of this process's part of every batch (emoji/image_streams.py and data/mixture/mixture.py say what is
        in one).
      tasks: names of the mixture's streams, in the order of `batch['stream']`.
      record: the experiment as JSON: saved with every checkpoint and with the model. A restored run
        must have the same `record['model']`; other differences are allowed and told.
      heads: how many rows of a batch its heads are needed for.
      ahead: every shape that a batch can have (one process's part), with its heads: compiled before the first step. A
        shape that is not among them is compiled when it comes, and told.
      vae_params: the frozen VAE, for batches of pixels.
      parameters: `(shapes, shardings) -> parameters` that a new run begins with; None: fresh ones.
      draw: `(step, params)`, called every `sample_every` steps and at the end with the averaged
        parameters; by the first process alone.
      evaluate: `(step, params) -> numbers` for the log, called every `evaluate.every` steps and at the end with the
        averaged parameters as they lie on the devices.
      counters: numbers to log beside the losses, asked at every line.

    Returns:
      Whether the run reached its last step.

    Raises:
      NotFiniteError: `settings.stop_after_skipped` updates in a row were skipped. The state is saved, and a batch of
        them is kept in `post_mortem/`.
    """
    begun = time.monotonic()
    workdir = Path(workdir)
    folder = workdir / "checkpoints"
    with (
        locked(workdir),
        Checkpoints(folder, keep=settings.keep, asynchronous=settings.asynchronous) as saved,
    ):
        # ---- shapes alone, nothing is allocated yet; then restore, or begin ----------------------
        mesh = make_mesh(settings.mesh)
        distributed.check_rows(mesh)
        program = Program(settings, config, tasks, mesh)
        restored = saved.restore(
            state.abstract(program.shapes, program.shardings), iterator=iterator
        )
        if restored is None:
            given = parameters and parameters(program.shapes.params, program.shardings.params)
            current, start = program.initial(given), 0
            del given
        else:
            check_same_model(restored.config, record)
            current, start = restored.state, restored.step
        del restored
        frozen = (
            None
            if vae_params is None
            else jax.device_put(vae_params, param_sharding.replicated(mesh))
        )

        # ---- train -------------------------------------------------------------------------------
        log = metrics.MetricsLog(
            workdir, steps=settings.steps, start=start, enabled=jax.process_index() == 0
        )
        log.say(_greeting(current, mesh, start, settings.steps))
        for number, (shapes, needed) in enumerate(ahead, 1):
            log.say(f"compiling for shape {number} of {len(ahead)}: {_described(shapes)}")
            program.compile(shapes, frozen, needed)
        distributed.wait_for_all()  # One may have compiled what another found in its cache.
        watch, compilations = metrics.Stopwatch(workdir, start), metrics.Compilations()
        peak = settings.peak_tflops * 1e12 or peak_of(mesh.devices.flat[0])
        speed = Throughput(peak and peak * mesh.size, begun)
        pending: tuple[int, step.Window, Batch] | None = None
        failed: NotFiniteError | None = None

        def report() -> None:
            """Writes the log line that is due. It is one interval old by now, so fetching it does not
            stall the device."""
            nonlocal pending, failed
            if pending is None:
                return
            at, window, kept = pending
            line = step.summarize(window, tasks) | dict(counters())
            line |= watch.read(at) | compilations.read() | speed.read()
            log.write(at, line)
            log.progress(
                at,
                loss=line["loss"],
                flow=line.get("flow_loss", 0.0),
                text=line.get("text_loss", 0.0),
            )
            if line["skipped"]:
                log.say(
                    f"step {at}: {line['skipped']:.0f} updates so far were skipped: loss or gradient not finite"
                )
            pending = None
            if failed is None and 0 < settings.stop_after_skipped <= line["skipped_in_row"]:
                told = {"process": jax.process_index(), "line": line}
                failed = NotFiniteError(
                    f"step {at}: the last {line['skipped_in_row']:.0f} updates were skipped, because the loss or a "
                    f"gradient was not finite (config.stop_after_skipped). The batch of that step is in "
                    f"{keep_batch(workdir, at, kept, told)}; the state is saved, its parameters are those of the last "
                    f"good update. Look at the batch, or go on with a lower config.optimizer.learning_rate"
                )

        def save(at: int) -> None:
            report()  # A line before the checkpoint must be on disk: the resumed run would not write it again.
            log.sync()
            with speed.aside():
                saved.save(at, current, config=record, iterator=iterator)

        with StopRequest() as stop:
            for number in range(start + 1, settings.steps + 1):
                batch = next(iterator)
                known, needed = program.count, heads(batch)
                with speed.aside():
                    run = program.compile(batch, frozen, needed)
                    flops = program.model_flops(batch, frozen, needed) if peak else 0
                if ahead and program.count > known:
                    log.say(
                        f"step {number}: compiled for a shape not foreseen: {_described(batch)}"
                    )
                if program.count > known:
                    distributed.wait_for_all()
                current, window = run(current, program.place(batch), frozen)
                speed.step(batch["tokens"].size * jax.process_count(), flops)
                if number % settings.log_every == 0:
                    report()
                    pending = number, window, batch
                last = number == settings.steps
                if draw and settings.sample_every and (last or number % settings.sample_every == 0):
                    with speed.aside():
                        whole = distributed.to_first(current.averaged)
                        if whole is not None:
                            draw(number, whole)
                        del whole
                every = settings.evaluate.every
                if evaluate and every and (last or number % every == 0):
                    report()  # Lines are in the order of their steps.
                    with speed.aside():
                        log.write(number, evaluate(number, current.averaged))
                stopping = stop.agreed(number) and not last
                if stopping:
                    log.say(
                        f"stopping at step {number} as asked; the same command goes on from here"
                    )
                due = number % settings.checkpoint_every == 0
                if last or stopping or due or failed is not None:
                    save(number)
                if failed is not None:
                    raise failed
                if stopping:
                    break

    # ---- end -------------------------------------------------------------------------------------
    compilations.close()
    log.close()
    reached = int(current.step)
    whole = distributed.to_first(current.averaged)
    if whole is not None:
        export_model(workdir / MODEL_FILE, whole, record, reached)
    return reached >= settings.steps


def check_same_model(stored: dict[str, Any], record: dict[str, Any]) -> None:
    """Raises if a checkpoint's settings describe another model; warns of every other difference."""
    before, now = _flat(old_names.experiment(stored, stored=True)), _flat(record)
    differ = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith("run_record.")
    ]
    described = [f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in differ]
    if any(key.split(".")[0] == "model" for key in differ):
        raise MismatchedCheckpointError(
            f"this workdir holds a run of another model ({'; '.join(described[:3])}); go back to its config, or choose "
            f"another --workdir"
        )
    for text in described:
        logging.warning("going on with a setting that differs from the checkpoint's: %s", text)


def _greeting(current: state.TrainState, mesh: jax.sharding.Mesh, start: int, steps: int) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(current.params))
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    begin = "starting" if start == 0 else f"going on from step {start}"
    return f"{count:,} parameters on a mesh of {axes} ({jax.default_backend()}); {begin}, to step {steps}"


def _described(batch: Arrays) -> str:
    (name,) = {"pixels", "moments", "latents"} & set(batch)
    rows, length = batch["tokens"].shape
    return f"{rows} rows of {length} tokens, {name} {list(batch[name].shape[1:])}"


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
