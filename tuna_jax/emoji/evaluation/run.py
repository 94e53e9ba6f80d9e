"""The tasks of a trained emoji model, as functions for `suite.measure`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.emoji.evaluation.suite import TaskFunctions
from tuna_jax.emoji.model_bundle import ModelBundle
from tuna_jax.utils.config_parsing import parse


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
        frames=data.clips.frames,
    )
