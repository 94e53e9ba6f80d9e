"""The training loop: one linear function that resumes exactly from any checkpoint.

A checkpoint holds, in the order of restoration: the state (parameters, average, optimizer, random key, step, metric
window) and the position of the data iterator. Then the log is truncated to the restored step. After that a resumed run
is identical to one that was never interrupted.
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
from tuna_jax.parallel import agreement, distributed, param_sharding
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training import compile_threads, host_waits, metrics, sharded_export, state, step
from tuna_jax.training.checkpoints import Checkpoints, MismatchedCheckpointError
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.local_saves import LocalSaves
from tuna_jax.training.nonfinite import NotFiniteError, keep_batch
from tuna_jax.training.preemption import StopRequest
from tuna_jax.training.profile import Profile
from tuna_jax.training.step import NO_LIMITS, Batch, Heads
from tuna_jax.training.throughput import Throughput, peak_of
from tuna_jax.training.train_program import Arrays, Program
from tuna_jax.training.watchdog import Watchdog
from tuna_jax.training.weights_file import ADAPTER_FILE, MODEL_FILE, export_model
from tuna_jax.training.workdir import locked
from tuna_jax.utils import old_names

Sample = Callable[[int, Any], None]
Evaluate = Callable[[int, Any], Mapping[str, float]]
Loop = Callable[..., bool]
"""A function with the arguments of `train`."""


def train(
    settings: LoopSettings,
    config: TunaConfig,
    workdir: str | Path,
    iterator: Iterator[dict[str, np.ndarray]],
    *,
    tasks: tuple[str, ...],
    record: dict[str, Any],
    heads: Callable[[Batch], Heads] = lambda batch: NO_LIMITS,
    shapes_to_compile: Sequence[tuple[Arrays, Heads]] = (),
    vae_params: Any = None,
    initial_params: Callable[[Any, Any], Any] | None = None,
    base_params: Any = None,
    sample: Sample | None = None,
    evaluate: Evaluate | None = None,
    counters: Callable[[], Mapping[str, float]] = dict,
) -> bool:
    """Trains, or resumes training, until `settings.steps` or a request to stop (SIGTERM, Ctrl-C).

    Args:
      settings: see `LoopSettings`.
      config: the model.
      workdir: receives `metrics.jsonl`, `tensorboard/`, `checkpoints/`, and at the end `model.safetensors`,
        or `adapter.safetensors` of an adapter.
      iterator: Grain iterator of this process's part of every batch; emoji/image_streams.py and data/mixture/mixture.py
        describe the arrays of a batch.
      tasks: names of the mixture's streams, in the order of `batch['stream']`.
      record: the experiment as JSON, saved with every checkpoint and with the model. A restored run must have the same
        `record['model']`; other differences are allowed and logged.
      heads: number of rows of a batch that each head runs on.
      shapes_to_compile: every shape that a batch can have (one process's part), with its heads; they are compiled
        before the first step, or in threads while the first steps run (`settings.compile_threads`). Another shape is
        compiled when it occurs, with a log message.
      vae_params: parameters of the frozen VAE, for batches of pixels.
      initial_params: `(shapes, shardings) -> params`, the initial parameters of a new run; None initialises them
        randomly.
      base_params: the parameters of the frozen model of an adapter (`settings.lora`), sharded over the mesh of
        `settings.mesh`; they are not donated.
      sample: `(step, params) -> None`, called in all processes with the averaged parameters, sharded over the mesh,
        every `sample_every` steps and at the end.
      evaluate: `(step, params) -> numbers` to log, called in all processes with the averaged parameters, sharded over
        the mesh, every `evaluate.every` steps and at the end.
      counters: returns further numbers for every log line.

    Returns:
      Whether the run reached its last step.

    Raises:
      MismatchedCheckpointError: the workdir holds a run of another model.
      NotFiniteError: `settings.stop_after_skipped` consecutive updates were skipped. The state is saved, and the batch
        of the last non-finite step is kept in `post_mortem/`.
    """
    begun = time.monotonic()
    workdir = Path(workdir)
    folder = workdir / "checkpoints"
    with (
        locked(workdir) as check_owner,
        Checkpoints(folder, keep=settings.keep, asynchronous=settings.asynchronous) as saved,
        LocalSaves(settings.local_saves, workdir) as local,
    ):
        agreement.check(_facts(record))
        # ---- shapes only, nothing is allocated yet; then restore or initialise --------------------
        mesh = make_mesh(settings.mesh)
        program = Program(settings, config, tasks, mesh)
        template = state.abstract(program.shapes, program.shardings)
        newest = max(distributed.from_first(saved.steps()), default=0)
        restored = local.restore(template, config=record, iterator=iterator, newer_than=newest)
        source = "" if restored is None else " (a local save)"
        if restored is None:
            restored = saved.restore(template, iterator=iterator)
        else:
            saved.tidy()
        if restored is None:
            params = initial_params and initial_params(
                program.shapes.params, program.shardings.params
            )
            current, start = program.initial(params, base=base_params), 0
            del params
        else:
            check_same_model(restored.config, record)
            current, start = restored.state, restored.step
        del restored
        vae = vae_params and jax.device_put(vae_params, param_sharding.replicated(mesh))
        frozen = program.frozen(vae, base_params)

        # ---- train -------------------------------------------------------------------------------
        log = metrics.MetricsLog(
            workdir,
            steps=settings.steps,
            start=start,
            enabled=jax.process_index() == 0,
            writers=settings.metric_writers,
        )
        log.say(_start_message(current, mesh, start, settings.steps, source, base_params))
        threads = compile_threads.number(settings.compile_threads, jax.default_backend())
        for number, (shapes, shape_heads) in enumerate(shapes_to_compile, 1):
            if threads:
                break
            log.say(
                f"compiling for batch shape {number} of {len(shapes_to_compile)}: {_describe(shapes)}"
            )
            program.compile(shapes, frozen, shape_heads)
        distributed.wait_for_all()  # One process may have compiled what another read from its cache.
        watch, compilations = metrics.Stopwatch(workdir, start), metrics.Compilations()
        peak = settings.peak_tflops * 1e12 or peak_of(mesh.devices.flat[0])
        speed = Throughput(peak and peak * mesh.size, begun)
        pending: tuple[int, step.Window, Batch, float] | None = None
        profile = Profile(settings.profile_steps, settings.profiler_port, workdir)
        watchdog = Watchdog(settings.watchdog, workdir, jax.process_index())
        failed: NotFiniteError | None = None

        def report() -> None:
            """Writes the pending log line. It is one interval old, so fetching it does not stall the device."""
            nonlocal pending, failed
            if pending is None:
                return
            at, window, logged_batch, waited = pending
            line = step.summarize(window, tasks) | dict(counters())
            most, process = 0.0, 0
            if jax.process_index() == 0:
                most, process = host_waits.slowest(at, waited)
                line["data_seconds"] = waited / settings.log_every
            if jax.process_count() > 1:
                line["data_seconds_max"] = most / settings.log_every
                line["data_process"] = float(process)
            line |= watch.read(at) | compilations.read() | speed.read(most)
            log.write(at, line)
            log.progress(
                at,
                loss=line["loss"],
                flow=line.get("flow_loss", 0.0),
                text=line.get("text_loss", 0.0),
            )
            if line["skipped"]:
                log.say(
                    f"step {at}: {line['skipped']:.0f} updates skipped so far, loss or gradient not finite"
                )
            pending = None
            if failed is None and 0 < settings.stop_after_skipped <= line["skipped_in_row"]:
                details = {"process": jax.process_index(), "line": line}
                failed = NotFiniteError(
                    f"step {at}: the last {line['skipped_in_row']:.0f} updates were skipped because the loss or a "
                    f"gradient was not finite (config.stop_after_skipped). The batch of this step is in "
                    f"{keep_batch(workdir, at, logged_batch, details)}. The state is saved with the parameters of the "
                    f"last finite update. Examine the batch, or resume with a lower config.optimizer.learning_rate"
                )

        def save(at: int, target: Checkpoints | LocalSaves = saved) -> None:
            report()  # Log lines of earlier steps must be on disk: a resumed run does not write them again.
            check_owner()
            log.sync(at)
            with speed.excluded(), watchdog.paused():
                target.save(at, current, config=record, iterator=iterator)

        with StopRequest() as stop, watchdog, compile_threads.pool(threads) as pool:
            if pool and shapes_to_compile:
                log.say(
                    f"compiling for {len(shapes_to_compile)} batch shapes in {threads} threads; a step "
                    f"waits only for its own"
                )
                program.compile_ahead(shapes_to_compile, frozen, pool)
            for number in range(start + 1, settings.steps + 1):
                profile.begin(number)
                with speed.waiting():
                    batch = next(iterator)
                program.check_ahead()
                compiled_before, batch_heads = program.count, heads(batch)
                unexpected = shapes_to_compile and not program.expects(batch, batch_heads)
                with speed.excluded(), watchdog.paused():
                    run = program.compile(batch, frozen, batch_heads)
                    flops = program.model_flops(batch, frozen, batch_heads) if peak else 0
                if unexpected:
                    log.say(
                        f"step {number}: compiled for an unexpected batch shape: {_describe(batch)}"
                    )
                if program.count > compiled_before:
                    with watchdog.paused():
                        distributed.wait_for_all()
                with profile.step(number):
                    current, window = run(current, program.place(batch), frozen)
                speed.step(batch["tokens"].size * program.readers, flops)
                watchdog.step(number)
                if profile.end(number, window):
                    log.say(f"profile of steps {settings.profile_steps}: {profile.folder}")
                if number % settings.log_every == 0:
                    report()
                    pending = number, window, batch, speed.take_waited()
                    host_waits.publish(number, pending[3])
                last = number == settings.steps
                if (
                    sample
                    and settings.sample_every
                    and (last or number % settings.sample_every == 0)
                ):
                    with speed.excluded(), watchdog.paused():
                        sample(number, program.network(current.averaged, frozen))
                every = settings.evaluate.every
                if evaluate and every and (last or number % every == 0):
                    report()  # Log lines are in the order of their steps.
                    with speed.excluded(), watchdog.paused():
                        log.write(
                            number, evaluate(number, program.network(current.averaged, frozen))
                        )
                stopping = stop.agreed(number) and not last
                if stopping:
                    log.say(
                        f"stopping at step {number} on request; the same command resumes from here"
                    )
                due = number % settings.checkpoint_every == 0
                if last or stopping or due or failed is not None:
                    save(number)
                elif local.due(number):
                    save(number, local)
                if failed is not None:
                    raise failed
                if stopping:
                    break

    # ---- end -------------------------------------------------------------------------------------
    compilations.close()
    log.close()
    reached = int(current.step)
    if reached >= settings.steps:
        local.remove()
    name = MODEL_FILE if program.adapters is None else ADAPTER_FILE
    if jax.process_count() == 1:
        export_model(workdir / name, current.averaged, record, reached)
    else:
        sharded_export.export(workdir, current.averaged, record, reached, name=name)
    return reached >= settings.steps


def _facts(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What all processes of a run must have in common."""
    flat = _flat(record)
    data = {key: value for key, value in flat.items() if key.startswith("mixture.")}
    configuration = {key: value for key, value in flat.items() if key not in data}
    return {"configuration": configuration, "data": data, "code": agreement.code()}


def check_same_model(stored: dict[str, Any], record: dict[str, Any]) -> None:
    """Warns of every setting that differs from a checkpoint's settings.

    Raises:
      MismatchedCheckpointError: the settings describe another model.
    """
    before, now = _flat(old_names.experiment(stored, stored=True)), _flat(record)
    differ = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith("run_record.")
    ]
    described = [
        f"{key}: {before.get(key)!r} in the checkpoint, {now.get(key)!r} now" for key in differ
    ]
    if any(key.split(".")[0] == "model" for key in differ):
        raise MismatchedCheckpointError(
            f"the workdir holds a run of another model ({'; '.join(described[:3])}); use its config, or "
            f"another --workdir"
        )
    for text in described:
        logging.warning("resuming with a setting that differs from the checkpoint: %s", text)


def _start_message(
    current: state.TrainState,
    mesh: jax.sharding.Mesh,
    start: int,
    steps: int,
    source: str,
    base: Any = None,
) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(current.params))
    if base is not None:
        frozen = sum(leaf.size for leaf in jax.tree.leaves(base))
        source = f"{source}; an adapter of a frozen model of {frozen:,} parameters"
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    begin = f"starting{source}" if start == 0 else f"resuming from step {start}{source}"
    return f"{count:,} parameters on a mesh of {axes} ({jax.default_backend()}); {begin}, to step {steps}"


def _describe(batch: Arrays) -> str:
    media = [name for name in ("pixels", "moments", "latents") if name in batch]
    rows, length = batch["tokens"].shape
    shapes = (f"{name} {list(batch[name].shape[1:])}" for name in media)
    return ", ".join([f"{rows} rows of {length} tokens", *shapes])


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: list(tree) if isinstance(tree, tuple) else tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
