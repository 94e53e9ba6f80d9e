"""The registry of tasks that a sweep, or a run that evaluates itself, can name, and the settings that can be varied.

A task is named by "module:function" and imported when it is used, so that nothing here depends on the emoji demo.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tuna_jax.inference import option_checks
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sweeps.task import Task
from tuna_jax.utils import old_names

TASKS: dict[str, str | Callable[..., Task]] = {
    "generate_single": "tuna_jax.emoji.evaluation.sweep_tasks:generate_single",
    "generate_pairs": "tuna_jax.emoji.evaluation.sweep_tasks:generate_pairs",
    "generate_counts": "tuna_jax.emoji.evaluation.sweep_tasks:generate_counts",
    "answer": "tuna_jax.emoji.evaluation.sweep_tasks:answer",
    "answer_clips": "tuna_jax.emoji.evaluation.sweep_tasks:answer_clips",
    "converse": "tuna_jax.emoji.evaluation.sweep_tasks:converse",
    "edit": "tuna_jax.emoji.evaluation.sweep_tasks:edit",
    "generate_clips": "tuna_jax.emoji.evaluation.sweep_tasks:generate_clips",
    "combine": "tuna_jax.emoji.evaluation.source_sweep_tasks:combine",
    "continue_clips": "tuna_jax.emoji.evaluation.source_sweep_tasks:continue_clips",
    "hard_generate": "tuna_jax.emoji.evaluation.hard.sweep_tasks:hard_generate",
    "hard_answer": "tuna_jax.emoji.evaluation.hard.sweep_tasks:hard_answer",
    "hard_diversity": "tuna_jax.emoji.evaluation.hard.sweep_tasks:hard_diversity",
    "hard_distance": "tuna_jax.emoji.evaluation.hard.sweep_tasks:hard_distance",
    "questions": "tuna_jax.sweeps.file_tasks:questions",
    "benchmark": "tuna_jax.sweeps.file_tasks:benchmark",
}
"""By kind: a function that makes a task from its options, or where to import it from as "module:function"."""

SETTINGS = ("guidance", "guidance_interval", "steps", "solver", "shift", "size", "ema")
"""The settings that a sweep can vary."""


def check(tasks: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError unless there are tasks, and every setting is known and has a list of values.

    Tasks themselves are checked when they are created.
    """
    if not tasks:
        raise ValueError(f"no tasks are named; choose from {', '.join(TASKS)}")
    for name, values in settings.items():
        if name not in SETTINGS:
            raise ValueError(f"unknown setting {name!r}; {', '.join(SETTINGS)} can be varied")
        if isinstance(values, str) or not isinstance(values, (tuple, list)) or not values:
            raise ValueError(
                f"the setting {name!r} is {values!r}; give the values to try, as ({values!r},)"
            )


def choices(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All combinations of the settings' values."""
    return [
        dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())
    ]


def task_function(kind: str) -> Callable[..., Task]:
    """The function that makes a task of this kind, imported if necessary.

    Raises:
      KeyError: the kind is not registered.
    """
    registered = TASKS[kind]
    if not isinstance(registered, str):
        return registered
    module, function = registered.split(":")
    return getattr(importlib.import_module(module), function)


def attribution(tasks: Iterable[Task]) -> str:
    """The credits of these tasks for a report's footer, each once."""
    return " ".join(dict.fromkeys(task.attribution for task in tasks if task.attribution))


def kind_of(name: str, options: Mapping[str, Any]) -> str:
    """The kind of task of an entry of `tasks`: its option `kind`, or else its name.

    Raises:
      ValueError: there is no such kind.
    """
    kind = old_names.sweep_task(options.get("kind", name))
    if kind not in TASKS:
        raise ValueError(
            f"config.tasks.{name}: {kind!r} is not a task; choose one of {', '.join(TASKS)}"
        )
    return kind


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """The task of an entry of `tasks`.

    Raises:
      ValueError: an unknown kind or option, or no items.
      Exception: any error of its function, such as a prompt file that does not exist.
    """
    arguments = {key: value for key, value in options.items() if key != "kind"}
    kind = kind_of(name, options)
    try:
        task = task_function(kind)(**arguments)
    except TypeError as error:
        raise ValueError(f"config.tasks.{name}: {error}") from error
    if task.count < 1:
        raise ValueError(f"config.tasks.{name} has no items")
    return task


def configured(model: Tuna, settings: Mapping[str, Any]) -> Tuna:
    """The model with these sampling settings; others keep their values."""
    changes = {name: settings[name] for name in settings if name not in ("ema", "size")}
    shapes = {} if "size" in settings else model.shapes  # A size that is named is taken as it is.
    size = settings.get("size", model.size)
    size = (size, size) if isinstance(size, int) else size
    return dataclasses.replace(
        model,
        samples=dataclasses.replace(model.samples, **changes),
        size=option_checks.size("size", size),
        shapes=shapes,
    )
