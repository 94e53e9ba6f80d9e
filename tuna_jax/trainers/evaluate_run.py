"""Evaluates a multitask run: losses on held-out examples, a contact sheet, and the sweep tasks that it names."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from tuna_jax.conversion import checkpoint_source
from tuna_jax.data.invalid_examples import InvalidExamples, TooManyInvalidExamples
from tuna_jax.data.sources.precomputed_latents import vae_fingerprint
from tuna_jax.evaluation.html import render
from tuna_jax.inference import loading, run_record
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.parallel import distributed
from tuna_jax.parallel.leader import agree, on_all_processes
from tuna_jax.sweeps import runner
from tuna_jax.trainers.build_mixture import open_mixture
from tuna_jax.trainers.config import MultitaskExperiment
from tuna_jax.trainers.stream_config import SOURCES, MultitaskData, stream_settings
from tuna_jax.training.evaluation import make_evaluation
from tuna_jax.utils import old_names
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.image_grid import contact_sheet
from tuna_jax.utils.text_files import json_text

_DEFAULT_PROMPTS = ("a photo of a cat", "a red bicycle in front of a wall", "a bowl of fruit")
Losses = dict[str, dict[str, Any]]


def evaluate(options: argparse.Namespace) -> int:
    """`tuna-jax evaluate` for a multitask run; `options` are that command's flags. Returns the exit status.

    Writes `report.html`, `summary.json` and `sheets/samples.png`; sweep tasks go to `sweeps/final` below them.

    Raises:
      ValueError: `--learning_curve`, which needs scores that this kind of run has only in a sweep.
    """
    if options.learning_curve:
        raise ValueError(
            "--learning_curve is for runs of the emoji demo; --sweep=FILE evaluates every checkpoint of this run"
        )
    source = Path(options.workdir)
    workdir = source if source.is_dir() else source.parent
    output = Path(options.output) if options.output else workdir
    settings = read_settings(source)
    model = with_sampling(loading.load(source), options)
    losses, held_out = measure_losses(model, settings, options.batches)
    prompts = settings.samples.prompts or _DEFAULT_PROMPTS
    images = model.generate_image(prompts, seed=0)
    sheet = output / "sheets" / "samples.png"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(images, prompts).save(sheet)
    failed, sweep_page = run_tasks(source, settings, output)
    summary = {
        "losses": losses,
        "held_out": held_out,
        "sampling": dataclasses.asdict(model.samples),
        "steps": settings.steps,
    }
    with atomic_file(output / "summary.json") as scratch:
        scratch.write_text(json_text(summary, indent=1) + "\n", encoding="utf-8")
    page = output / "report.html"
    with atomic_file(page) as scratch:
        scratch.write_text(
            render(
                "trainers/evaluate_run.html.j2",
                title=f"Evaluation of {workdir.name}",
                losses=losses,
                held_out=held_out,
                prompts=list(zip(prompts, list(images), strict=True)),
                sampling=model.samples,
                sweep_page=sweep_page and sweep_page.relative_to(output).as_posix(),
            ),
            encoding="utf-8",
        )
    _print(losses, held_out)
    print(page)
    return 1 if failed else 0


def read_settings(source: Path) -> MultitaskExperiment:
    """The settings that a run stored, with today's names.

    Raises:
      ValueError: no run stored settings there.
    """
    state = checkpoint_source.open_parameters(source)[1]
    stored = checkpoint_source.settings_of(source, state)
    if stored is None:
        raise ValueError(f"{source} holds no settings of a training run")
    values = old_names.experiment(stored, stored=True)
    for key in (run_record.RECORD_KEY, "mixture"):  # The run adds these to its settings.
        values.pop(key, None)
    return parse(MultitaskExperiment, values)


def with_sampling(model: Tuna, options: argparse.Namespace) -> Tuna:
    """The model with the sampling that the flags ask for."""
    names = [field.name for field in dataclasses.fields(model.samples)]
    changes = {name: getattr(options, name, None) for name in names}
    samples = dataclasses.replace(
        model.samples, **{name: value for name, value in changes.items() if value is not None}
    )
    return dataclasses.replace(model, samples=samples)


def evaluation_data(data: MultitaskData) -> tuple[MultitaskData, bool]:
    """The streams to evaluate, and whether they are held out.

    A stream of `data.held_out` takes what it does not set from the training stream of the same name. Without any, the
    training streams themselves are evaluated.
    """
    if not data.held_out:
        return data, False
    streams = {}
    for name, given in data.held_out.items():
        base = dict(data.streams.get(name, {}))
        if any(key in given for key in SOURCES):
            base = {key: value for key, value in base.items() if key not in SOURCES}
        streams[name] = base | dict(given)
    return dataclasses.replace(data, streams=streams), True


def measure_losses(model: Tuna, settings: MultitaskExperiment, batches: int) -> tuple[Losses, bool]:
    """Losses by stream, each the mean over the targets of `batches` batches, with its standard error over batches.

    Returns:
      By stream: `examples`, and `flow_loss` and `text_loss` as [value, standard error], those that it has; and whether
      the examples were held out of training.

    Raises:
      FileNotFoundError: a stream's source is not there; the message names its key.
    """
    data, held_out = evaluation_data(settings.data)
    losses: Losses = {}
    vae = model.config.vae
    fingerprint = None if vae is None else vae_fingerprint(vae, model.vae_params)
    bar = tqdm(total=batches * len(data.streams), unit="batch", file=sys.stderr, desc="losses")
    for name, stream in stream_settings(data).items():
        only = dataclasses.replace(data, streams={name: data.streams[name]}, workers=0)
        invalid = InvalidExamples(limit=1.0)
        mixture = open_mixture(
            only, model.config, model.tokenizer, invalid, vae_fingerprint=fingerprint
        )
        for notice in mixture.notices:
            bar.write(notice, file=sys.stderr)
        sums: list[dict[str, float]] = []
        heads = {"flow_rows": stream.heads.flow_rows, "text_rows": stream.heads.text_rows}
        for number in range(batches):
            try:
                batch = mixture[number]
            except TooManyInvalidExamples as error:
                print(f"warning: stream {name}: {error}", file=sys.stderr)
                break
            sums.append(_batch_sums(model, settings, dict(batch), number, heads))
            bar.update()
        losses[name] = {"examples": len(sums) * stream.rows, **_means(sums)}
    bar.close()
    return losses, held_out


@on_all_processes
def _batch_sums(
    model: Tuna,
    settings: MultitaskExperiment,
    batch: Mapping[str, np.ndarray],
    number: int,
    heads: Mapping[str, int | None],
) -> dict[str, float]:
    """Sums and counts of the losses over the rows of batch `number`."""
    evaluate_batch = make_evaluation(model.config, settings.time, settings.vae_dtype)
    noise = jax.random.fold_in(jax.random.key(0), number)
    agree()
    rows = evaluate_batch(model.params, batch, model.vae_params, noise, **heads)
    return {term: float(np.sum(distributed.to_host(value))) for term, value in rows.items()}


def _means(sums: list[dict[str, float]]) -> dict[str, list[float]]:
    """[mean, standard error] of each loss that the batches have."""
    means = {}
    for loss in ("flow", "text"):
        counted = [
            (one[f"{loss}_sum"], one[f"{loss}_count"]) for one in sums if one[f"{loss}_count"]
        ]
        if counted:
            values = np.array([total / count for total, count in counted])
            mean = sum(total for total, _ in counted) / sum(count for _, count in counted)
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            means[f"{loss}_loss"] = [float(mean), float(error)]
    return means


def run_tasks(source: Path, settings: MultitaskExperiment, output: Path) -> tuple[int, Path | None]:
    """Runs the tasks of `config.evaluate` on the final model; returns how many cells failed, and their report."""
    chosen = settings.evaluate
    if not chosen.tasks:
        return 0, None
    values: dict[str, Any] = {
        "name": "final",
        "tasks": dict(chosen.tasks),
        "settings": dict(chosen.settings),
        "batch": chosen.batch,
        "seed": chosen.seed,
        "saved_items": chosen.saved_items,
    }
    folder = output / "sweeps" / "final"
    steps = [path for path in (source / "checkpoints").glob("*") if path.name.isdigit()]
    if steps:
        values["checkpoints"] = (max(int(path.name) for path in steps),)
    return runner.command(values, [source], folder), folder / "report.html"


def _print(losses: Mapping[str, Mapping[str, Any]], held_out: bool) -> None:
    print("losses on held-out examples" if held_out else "losses on TRAINING examples")
    for name, values in losses.items():
        parts = [
            f"{loss} {values[loss][0]:.4f} ± {values[loss][1]:.4f}"
            for loss in ("flow_loss", "text_loss")
            if loss in values
        ]
        print(f"{name:24} {values['examples']:6} examples  {'  '.join(parts)}")
