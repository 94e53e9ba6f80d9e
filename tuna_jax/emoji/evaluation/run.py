"""Evaluates a trained emoji model: one report, or learning curves over its checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.emoji.evaluation.images import Answer, Draw
from tuna_jax.emoji.evaluation.suite_tasks import TaskFunctions
from tuna_jax.emoji.model_bundle import ModelBundle
from tuna_jax.utils.config_parsing import parse


def measured(
    world: ModelBundle, params: Any, values: Mapping[str, Any]
) -> tuple[Draw | None, Answer | None, TaskFunctions]:
    """What a trained model is measured on: the functions of those tasks that its settings gave rows."""
    data = parse(EmojiExperiment, values).data

    def given(rows: int, function: Any) -> Any:
        return function if rows else None

    answer = functools.partial(world.answer, params)
    return (
        given(data.draw_rows, functools.partial(world.draw, params)),
        given(data.understand_rows, answer),
        TaskFunctions(
            edit=given(data.edits.rows, functools.partial(world.edit, params)),
            draw_clips=given(data.clips.draw_rows, functools.partial(world.draw_clips, params)),
            answer_clips=given(data.clips.understand_rows, answer),
            converse=given(data.dialogues.rows, functools.partial(world.converse, params)),
            frames=data.clips.frames,
        ),
    )
