"""Evaluates a trained emoji model: a report on its final parameters, or learning curves over its checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.emoji.evaluation import learning_curves, report
from tuna_jax.emoji.evaluation.hard import items
from tuna_jax.emoji.evaluation.hard.judge import HardJudge
from tuna_jax.emoji.evaluation.hard.suite import measure_hard
from tuna_jax.emoji.evaluation.judges import ObjectJudge
from tuna_jax.emoji.evaluation.suite import Evaluation, TaskFunctions, measure
from tuna_jax.emoji.model_bundle import (
    ModelBundle,
    checkpoints,
    load_checkpoint,
    load_trained,
)
from tuna_jax.utils.config_parsing import parse

# Galleries take seconds to build; all checkpoints of all runs share them.
_judge, _hard_judge = functools.cache(ObjectJudge), functools.cache(HardJudge)


def task_functions(bundle: ModelBundle, params: Any, values: Mapping[str, Any]) -> TaskFunctions:
    """The functions of the tasks that the run's config gave rows; the others are None.

    Args:
      bundle: the model's components.
      params: its parameters.
      values: the run's config as a mapping.
    """
    data = parse(EmojiExperiment, values).data

    def if_trained(rows: int, function: Any) -> Any:
        return functools.partial(function, params) if rows else None

    return TaskFunctions(
        generate=if_trained(data.generation_rows, bundle.generate),
        answer=if_trained(data.understanding_rows, bundle.answer),
        edit=if_trained(data.edits.rows, bundle.edit),
        generate_clips=if_trained(data.clips.generation_rows, bundle.generate_clips),
        answer_clips=if_trained(data.clips.understanding_rows, bundle.answer),
        converse=if_trained(data.dialogues.rows, bundle.converse),
        combine=if_trained(data.combinations.rows, bundle.edit),
        continue_clips=if_trained(data.continuations.rows, bundle.continue_clips),
        frames=data.clips.frames,
    )


def evaluate(options: argparse.Namespace) -> int:
    """`tuna-jax evaluate` for a run of the emoji demo; `options` are that command's flags. Returns the exit status."""
    runs = [Path(options.workdir), *map(Path, options.compare_to)]
    output = Path(options.output) if options.output else _folder(runs[0])
    if options.learning_curve:
        _evaluate_checkpoints(runs, output, options)
    else:
        _evaluate_model(runs[0], output, options)
    return 0


def _evaluate_model(source: Path, output: Path, options: argparse.Namespace) -> None:
    started = time.time() if options.started is None else options.started
    bundle, params, settings = _load(source, options)
    evaluation = measure_run(bundle, params, settings, options)
    metrics, sampling = _folder(source) / "metrics.jsonl", bundle.samples
    page = report.write(
        output,
        evaluation,
        lead="One model, trained from scratch on this machine, generates emoji scenes from captions and answers "
        "questions about them.",
        metrics=metrics if metrics.exists() else None,
        minutes=(time.time() - started) / 60,
        facts={
            "parameters": f"{bundle.parameter_count(params):,}",
            "training steps": settings["steps"],
            "sampling": f"{sampling.steps} steps, {sampling.solver}, guidance {sampling.guidance:g}",
            "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        },
    )
    for name, score in evaluation.scores.items():
        low, high = score.ci95
        print(
            f"{name:34} {100 * score.value:5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]  "
            f"chance {100 * score.chance:.1f} %  n={score.count}"
        )
    for name, score in evaluation.distances.items():
        low, high = score.ci95
        least = evaluation.distance_ceilings[name].value
        print(
            f"{name:34} {score.value:7.2f}  [{low:.2f}, {high:.2f}]  plain grounds {score.chance:.1f}, "
            f"true pictures {least:.2f}  n={score.count}"
        )
    decibels = dict(evaluation.decibels)
    if evaluation.vae_psnr_db is not None:
        decibels = {"vae_psnr_db": evaluation.vae_psnr_db, **decibels}
    for name, value in decibels.items():
        print(f"{name:34} {value:5.1f}")
    print(page)


def _evaluate_checkpoints(runs: list[Path], output: Path, options: argparse.Namespace) -> None:
    """Evaluates every checkpoint that was not evaluated before, and plots the scores of all runs over steps."""
    curves = {}
    for workdir in runs:
        bundle, _, settings = _load(workdir, options)
        evaluated = learning_curves.read(workdir)
        for step, path in checkpoints(workdir).items():
            if step not in evaluated:
                print(f"{workdir.name}, step {step}", file=sys.stderr, flush=True)
                params = load_checkpoint(path)
                evaluation = measure_run(bundle, params, settings, options)
                learning_curves.append(workdir, step, evaluation.scores)
        curve = learning_curves.read(workdir)
        if not curve:
            raise FileNotFoundError(f"{workdir} has no checkpoints to evaluate")
        curves[workdir.name] = curve
    output.mkdir(parents=True, exist_ok=True)
    plot = output / "learning.png"
    plot.write_bytes(learning_curves.plot(curves))
    print(learning_curves.table(curves))
    print(plot)


def measure_run(
    bundle: ModelBundle,
    params: Any,
    settings: Mapping[str, Any],
    options: argparse.Namespace,
) -> Evaluation:
    """Measures a model on what it was trained for.

    Args:
      bundle, params, settings: see `load_trained`.
      options: `images` and `questions` of `tuna-jax evaluate`.
    """
    tasks = task_functions(bundle, params, settings)
    data = parse(EmojiExperiment, settings).data
    # A model on pixels has no VAE, whose losses would be a ceiling.
    reconstruct = bundle.reconstruct if bundle.config.vae is not None else None
    if data.world == "hard":
        generate = lambda prompts, seeds: bundle.generate(params, prompts, seeds)
        answer = functools.partial(bundle.answer, params, max_new_tokens=items.MAX_NEW_TOKENS)
        return measure_hard(
            generate if tasks.generate else None,
            answer if tasks.answer else None,
            reconstruct=reconstruct,
            judge=_hard_judge(),
            generations=options.images,
            questions=options.questions,
            size=bundle.size,
            difficulty=data.difficulty,
            splits=data.test_splits,
            log=_log,
        )
    return measure(
        tasks,
        reconstruct=reconstruct,
        judge=_judge(),
        generations=options.images,
        questions=options.questions,
        log=_log,
    )


def _log(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _load(source: Path, options: argparse.Namespace) -> tuple[ModelBundle, Any, dict[str, Any]]:
    """The trained model, with the sampling that the flags ask for."""
    bundle, params, settings = load_trained(source)
    names = [field.name for field in dataclasses.fields(bundle.samples)]
    changes = {name: getattr(options, name, None) for name in names}
    samples = dataclasses.replace(
        bundle.samples, **{name: value for name, value in changes.items() if value is not None}
    )
    return dataclasses.replace(bundle, samples=samples), params, settings


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent
