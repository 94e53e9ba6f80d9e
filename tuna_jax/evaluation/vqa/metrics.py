"""Questions with known answers: exact match, multiple choice by likelihood, likelihood of the answer.

The model comes as two plain functions, so that a table of tasks can call any of them:

    reply(items)             -> a text for each item
    likelihood(items, texts) -> (log-probability, tokens) of a text after each item's question, arrays [n]
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tuna_jax.evaluation.metrics.accuracy import Score, commonest_share

_AROUND = " \t\n.,;:!?\"'`"


@dataclasses.dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
      question: what is asked.
      answers: texts that are right; of a multiple choice the first is among the choices.
      shown: pictures, or one clip: whatever the model's side takes.
      choices: texts to choose from; empty if it is no multiple choice.
      where: the file and line, for messages.
    """

    question: str
    answers: tuple[str, ...]
    shown: tuple[Any, ...] = ()
    choices: tuple[str, ...] = ()
    where: str = ""


Reply = Callable[[Sequence[Item]], Sequence[str]]
Likelihood = Callable[[Sequence[Item], Sequence[str]], tuple[np.ndarray, np.ndarray]]


def normalised(text: str) -> str:
    """Lower case, single spaces, no punctuation or quotes around it."""
    return re.sub(r"\s+", " ", text).strip(_AROUND).lower()


def exact_match(items: Sequence[Item], reply: Reply) -> tuple[Score, list[dict[str, Any]]]:
    """How many replies are a right answer, `normalised`; chance is always giving the commonest answer.

    Returns:
      The score, whose `by` has the share that is right letter for letter; and a row an item.

    Raises:
      ValueError: no items, or another number of replies.
    """
    _check(items)
    replies = list(reply(items))
    if len(replies) != len(items):
        raise ValueError(f"{len(replies)} replies to {len(items)} questions")
    wanted = [{normalised(answer) for answer in item.answers} for item in items]
    right = [normalised(said) in known for said, known in zip(replies, wanted, strict=True)]
    strict = [said in item.answers for said, item in zip(replies, items, strict=True)]
    chance = commonest_share([normalised(item.answers[0]) for item in items])
    rows = [
        {"question": item.question, "answer": item.answers[0], "reply": said, "right": verdict}
        for item, said, verdict in zip(items, replies, right, strict=True)
    ]
    return Score.of(right, chance, {"letter for letter": strict}), rows


def multiple_choice(
    items: Sequence[Item], likelihood: Likelihood
) -> tuple[Score, list[dict[str, Any]]]:
    """How often the likeliest choice is the answer; chance is one over the number of choices.

    Returns:
      The score, whose `by` has the share with log-probabilities per token; and a row an item.

    Raises:
      ValueError: no items, or one without choices or without its answer among them.
    """
    _check(items)
    for item in items:
        if len(item.choices) < 2 or item.answers[0] not in item.choices:
            raise ValueError(
                f"{item.where}: {item.answers[0]!r} is not among the choices {list(item.choices)}"
            )
    asked = [item for item in items for _ in item.choices]
    texts = [choice for item in items for choice in item.choices]
    log_probability, tokens = likelihood(asked, texts)
    ends = np.cumsum([len(item.choices) for item in items])[:-1]
    whole, each = (np.split(values, ends) for values in (log_probability, log_probability / tokens))
    places = [item.choices.index(item.answers[0]) for item in items]
    right = [int(np.argmax(values)) == place for values, place in zip(whole, places, strict=True)]
    shared = [int(np.argmax(values)) == place for values, place in zip(each, places, strict=True)]
    chance = float(np.mean([1 / len(item.choices) for item in items]))
    rows = [
        {
            "question": item.question,
            "answer": item.answers[0],
            "reply": item.choices[int(np.argmax(values))],
            "right": verdict,
            "log_probabilities": [round(float(value), 4) for value in values],
        }
        for item, values, verdict in zip(items, whole, right, strict=True)
    ]
    return Score.of(right, chance, {"per token": shared}), rows


def log_likelihood(
    items: Sequence[Item], likelihood: Likelihood
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """How likely the first answer of each item is.

    Returns:
      `log_likelihood` (mean over items, natural logarithm), `per_token` (mean over all tokens) and its `perplexity`;
      and a row an item.

    Raises:
      ValueError: no items.
    """
    _check(items)
    answers = [item.answers[0] for item in items]
    log_probability, tokens = likelihood(items, answers)
    each = float(log_probability.sum() / tokens.sum())
    rows = [
        {"question": item.question, "answer": answer, "log_likelihood": round(float(value), 4)}
        for item, answer, value in zip(items, answers, log_probability, strict=True)
    ]
    values = {
        "log_likelihood": float(log_probability.mean()),
        "per_token": each,
        "perplexity": math.exp(-each),
    }
    return values, rows


def _check(items: Sequence[Item]) -> None:
    if not items:
        raise ValueError("there are no questions")
    for item in items:
        if not item.answers:
            raise ValueError(f"{item.where}: the question has no answer")
