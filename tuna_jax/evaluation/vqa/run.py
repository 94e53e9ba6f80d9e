"""Questions of files and of TFDS, put to a model: the model's side of `evaluation/vqa/metrics.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tuna_jax.evaluation.metrics.accuracy import Score
from tuna_jax.evaluation.vqa import metrics
from tuna_jax.evaluation.vqa.metrics import Item, Likelihood, Reply
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.inference.scoring import likelihoods

TASKS = ("exact_match", "multiple_choice", "log_likelihood")
_AT_ONCE = 256  # conversations whose pictures are held in memory together


def run(
    model: Tuna, items: Sequence[Item], task: str, **options: Any
) -> tuple[Score | dict[str, float], list[dict[str, Any]]]:
    """A task's score, and a row an item.

    Args:
      model: who is asked.
      items: of `read_lines` or `read_tfds`.
      task: one of TASKS.
      **options: `template`, `batch_size`, `frames` (of a video file), `max_new_tokens` (exact_match).

    Raises:
      ValueError: an unknown task, items that do not fit it, or files that cannot be read.
      FileNotFoundError: a picture or video that is not there.
    """
    if task == "exact_match":
        return metrics.exact_match(items, replier(model, **options))
    options.pop("max_new_tokens", None)
    if task == "multiple_choice":
        return metrics.multiple_choice(items, judge(model, **options))
    if task == "log_likelihood":
        return metrics.log_likelihood(items, judge(model, **options))
    raise ValueError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")


def replier(model: Tuna, *, frames: int = 17, max_new_tokens: int = 32, **options: Any) -> Reply:
    """What answers items with a model, greedily."""

    def reply(items: Sequence[Item]) -> list[str]:
        said = []
        for start in range(0, len(items), _AT_ONCE):
            asked = [_conversation(model, one, frames) for one in items[start : start + _AT_ONCE]]
            said += model.reply(asked, max_new_tokens=max_new_tokens, **options)
        return said

    return reply


def judge(model: Tuna, *, frames: int = 17, **options: Any) -> Likelihood:
    """What tells with a model how likely a whole answer is, its end included."""

    def likelihood(items: Sequence[Item], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for start in range(0, len(items), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            asked = [_conversation(model, one, frames) for one in items[some]]
            found.append(likelihoods(model, asked, texts[some], **options))
        parts = [[one.log_probability for one in found], [one.tokens for one in found]]
        return np.concatenate(parts[0]), np.concatenate(parts[1])

    return likelihood


def _conversation(model: Tuna, item: Item, frames: int) -> Conversation:
    try:
        return Conversation.of(model.load_media(item.shown, frames), item.question)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{item.where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{item.where}: {error}") from error
