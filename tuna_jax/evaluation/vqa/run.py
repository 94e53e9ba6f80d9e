"""Runs questions of files or TFDS on a model: provides the functions that `evaluation/vqa/metrics.py` needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tuna_jax.evaluation.metrics.accuracy import Score
from tuna_jax.evaluation.vqa import metrics
from tuna_jax.evaluation.vqa.metrics import Item, Likelihood, Reply
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.media_inputs import of_kind
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.inference.scoring import likelihoods

TASKS = ("exact_match", "multiple_choice", "log_likelihood")
_AT_ONCE = 256  # Conversations whose images are in memory at the same time.


def run(
    model: Tuna, items: Sequence[Item], task: str, **options: Any
) -> tuple[Score | dict[str, float], list[dict[str, Any]]]:
    """A task's score, and one row per item.

    Args:
      model: the model.
      items: of `datasets.read_lines` or `datasets.read_tfds`.
      task: one of TASKS.
      **options: `template`, `batch_size`, `frames` (of a video file), `max_new_tokens` (exact_match).

    Raises:
      ValueError: an unknown task, items that do not suit it, or files that cannot be read.
      FileNotFoundError: an image or video does not exist.
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
    """A function that answers items with a model, greedily."""

    def reply(items: Sequence[Item]) -> list[str]:
        texts = []
        for start in range(0, len(items), _AT_ONCE):
            part = items[start : start + _AT_ONCE]
            conversations = [_conversation(model, item, frames) for item in part]
            texts += model.reply(conversations, max_new_tokens=max_new_tokens, **options)
        return texts

    return reply


def judge(model: Tuna, *, frames: int = 17, **options: Any) -> Likelihood:
    """A function that computes the log-likelihood of whole answers with a model, including their end."""

    def likelihood(items: Sequence[Item], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        results = []
        for start in range(0, len(items), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            conversations = [_conversation(model, item, frames) for item in items[part]]
            results.append(likelihoods(model, conversations, texts[part], **options))
        log_probabilities = np.concatenate([result.log_probability for result in results])
        return log_probabilities, np.concatenate([result.tokens for result in results])

    return likelihood


def _conversation(model: Tuna, item: Item, frames: int) -> Conversation:
    try:
        media = of_kind(item.media, item.kind)
        return Conversation.of(model.load_media(media, frames), item.question)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{item.where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{item.where}: {error}") from error
