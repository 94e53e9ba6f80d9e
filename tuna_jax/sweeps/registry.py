"""The table of tasks that a sweep, or a run that evaluates itself, can name; and what can be varied about them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from tuna_jax.emoji.evaluation import sweep_tasks
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sweeps import file_tasks
from tuna_jax.sweeps.task import Task

TASKS: dict[str, Callable[..., Task]] = {**sweep_tasks.TASKS, **file_tasks.TASKS}
"""By name: functions that make a task of its options. More tasks are more entries."""

SETTINGS = ("guidance", "guidance_interval", "steps", "solver", "shift", "size", "ema")
"""What a sweep can vary."""


def check(tasks: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError unless there are tasks, and settings that can be varied, each with a list of values.

    Whether a task is as it should be shows when it is made.
    """
    if not tasks:
        raise ValueError(f"no tasks are named; there are {', '.join(TASKS)}")
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
        dict(zip(settings, some, strict=True)) for some in itertools.product(*settings.values())
    ]


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """The task of an entry of `tasks`.

    Raises:
      ValueError: no such kind, an option that it does not have, or no items.
      Exception: what its function raises: a prompt file that is not there, or is none.
    """
    given = {key: value for key, value in options.items() if key != "kind"}
    kind = options.get("kind", name)
    if kind not in TASKS:
        raise ValueError(f"config.tasks.{name}: {kind!r} is no task; there are {', '.join(TASKS)}")
    try:
        task = TASKS[kind](**given)
    except TypeError as error:
        raise ValueError(f"config.tasks.{name}: {error}") from error
    if task.count < 1:
        raise ValueError(f"config.tasks.{name} has no items")
    return task


def configured(model: Tuna, settings: Mapping[str, Any]) -> Tuna:
    """A model that draws as the settings say; what is not among them is as it was."""
    changes = {name: settings[name] for name in settings if name not in ("ema", "size")}
    size = settings.get("size", model.size)
    return dataclasses.replace(
        model,
        samples=dataclasses.replace(model.samples, **changes),
        size=(size, size) if isinstance(size, int) else tuple(size),
    )
