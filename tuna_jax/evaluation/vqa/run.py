"""Runs questions of files or TFDS on a model: provides the functions that `evaluation/vqa/metrics.py` needs.

An item whose media cannot be read, or for which the model computes NaN, fails individually: its row has the reason,
and the score is that of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tuna_jax.evaluation.metrics.accuracy import Score
from tuna_jax.evaluation.vqa import metrics
from tuna_jax.evaluation.vqa.metrics import Item
from tuna_jax.inference import generation_config
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.media_inputs import of_kind
from tuna_jax.inference.not_finite import NotFiniteError
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.inference.scoring import likelihoods

TASKS = ("exact_match", "multiple_choice", "log_likelihood")
_AT_ONCE = 256  # Conversations whose images are in memory at the same time.

_Failures = dict[int, str]
"""By the number of an item: why it failed."""


def run(
    model: Tuna, items: Sequence[Item], task: str, **options: Any
) -> tuple[Score | dict[str, float] | None, list[dict[str, Any]]]:
    """A task's score, and one row per item.

    Args:
      model: the model.
      items: of `datasets.read_lines` or `datasets.read_tfds`.
      task: one of TASKS.
      **options: `template`, `batch_size`, `frames` (of a video file), `max_new_tokens` (exact_match).

    Returns:
      The score over the items that did not fail, None if all did; and the rows. The row of an item that failed has
      `question`, `answer` and `error`, the reason.

    Raises:
      ValueError: an unknown task or option, or items that do not suit the task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
    frames = options.pop("frames", 17)
    if task != "exact_match":
        options.pop("max_new_tokens", None)
    generation_config.decoding(options)  # A wrong option would fail every item.
    metrics.check(items, choices=task == "multiple_choice")
    failures: _Failures = {i: item.problem for i, item in enumerate(items) if item.problem}
    if task == "exact_match":
        options = {"max_new_tokens": 32, **options}
        results = _replies(model, items, frames, options, failures)
    else:
        pairs = [
            (index, text)
            for index, item in enumerate(items)
            for text in (item.choices if task == "multiple_choice" else item.answers[:1])
        ]
        results = _likelihoods(model, items, pairs, frames, options, failures)
    sound = [index for index in range(len(items)) if index not in failures]
    score, rows = None, []
    if sound:
        score, rows = _score(task, [items[index] for index in sound], [results[i] for i in sound])
    by_index = dict(zip(sound, rows, strict=True))
    for index, reason in failures.items():
        item = items[index]
        row = {"question": item.question, "answer": item.answers[0], "error": reason}
        by_index[index] = row
    return score, [by_index[index] for index in range(len(items))]


def _score(
    task: str, items: Sequence[Item], results: Sequence[Any]
) -> tuple[Score | dict[str, float], list[dict[str, Any]]]:
    """The score of items whose results are known: replies, or (log-probability, tokens) of each text."""
    if task == "exact_match":
        return metrics.exact_match(items, lambda _: results)
    values = np.array([value for of_item in results for value, _ in of_item])
    tokens = np.array([count for of_item in results for _, count in of_item])
    metric = metrics.multiple_choice if task == "multiple_choice" else metrics.log_likelihood
    return metric(items, lambda *_: (values, tokens))


def _replies(
    model: Tuna,
    items: Sequence[Item],
    frames: int,
    options: Mapping[str, Any],
    failures: _Failures,
) -> dict[int, str]:
    """The greedy reply to each item, by its number; those that fail are added to `failures`."""
    replies: dict[int, str] = {}
    for start in range(0, len(items), _AT_ONCE):
        part = range(start, min(start + _AT_ONCE, len(items)))
        conversations = load_conversations(
            model, items, part, frames, options.get("template"), failures
        )
        if not conversations:
            continue
        numbers = list(conversations)
        try:
            texts = model.reply(list(conversations.values()), **options)
        except NotFiniteError as error:
            texts = error.results
            for row in error.rows:
                number = numbers[row]
                failures[number] = _at(items[number], NotFiniteError.of("answer"))
        replies |= dict(zip(numbers, texts, strict=True))
    return replies


def _likelihoods(
    model: Tuna,
    items: Sequence[Item],
    pairs: Sequence[tuple[int, str]],
    frames: int,
    options: Mapping[str, Any],
    failures: _Failures,
) -> dict[int, list[tuple[float, int]]]:
    """(log-probability, tokens) of whole answers, including their end, by the number of their item."""
    results: dict[int, list[tuple[float, int]]] = {}
    for start in range(0, len(pairs), _AT_ONCE):
        part = pairs[start : start + _AT_ONCE]
        numbers = dict.fromkeys(number for number, _ in part)
        conversations = load_conversations(
            model, items, numbers, frames, options.get("template"), failures
        )
        sound = [(number, text) for number, text in part if number in conversations]
        if not sound:
            continue
        scores = likelihoods(
            model,
            [conversations[number] for number, _ in sound],
            [text for _, text in sound],
            **options,
        )
        for (number, _), value, tokens in zip(
            sound, scores.log_probability, scores.tokens, strict=True
        ):
            results.setdefault(number, []).append((float(value), int(tokens)))
            if not np.isfinite(value):
                failures[number] = _at(items[number], NotFiniteError.of("log-likelihood"))
    return results


def load_conversations(
    model: Tuna,
    items: Sequence[Item],
    numbers: Any,
    frames: int,
    template: str | None,
    failures: _Failures,
) -> dict[int, Conversation]:
    """The conversations of items by number, without those that fail or have failed."""
    conversations = {}
    for number in numbers:
        if number in failures:
            continue
        item = items[number]
        try:
            media = of_kind(item.media, item.kind)
            conversation = Conversation.of(model.load_media(media, frames), item.question)
            model.prompt_tokens(conversation, template)  # The template may not fit this item.
        except MemoryError:
            raise
        except Exception as error:  # Decoders raise almost anything.
            failures[number] = _at(item, error)
        else:
            conversations[number] = conversation
    return conversations


def _at(item: Item, error: Exception) -> str:
    """Why an item failed, as one line that names it."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, (ValueError, OSError, ImportError))
    return f"{item.where}: {text}" if known else f"{item.where}: {type(error).__name__}: {text}"


def report_failures(rows: Sequence[Mapping[str, Any]], report: Callable[[str], object]) -> int:
    """Calls `report` with a line for each of the first items that failed, and their number; returns the number."""
    reasons = [row["error"] for row in rows if "error" in row]
    for reason in reasons[:10]:
        report(f"failed: {reason}")
    if reasons:
        report(
            f"error: {len(reasons)} of {len(rows)} questions failed; their lines have the reason"
        )
    return len(reasons)
