"""Questions with known answers: exact match, multiple choice by likelihood, likelihood of the answer.

The model is passed as two plain functions:

    reply(items)             -> one text per item
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

_LARGEST_EXPONENT = 700.0  # of a float64
_AROUND = " \t\n.,;:!?\"'`"


@dataclasses.dataclass(frozen=True)
class Item:
    """A question with its known answers.

    Attributes:
      question: the text of the question.
      answers: correct texts; in a multiple choice the first is among the choices.
      media: input images, or one video, as `inference.media_inputs` accepts them.
      choices: texts to choose from; empty if it is not a multiple choice.
      where: the file and line, for messages.
      kind: 'image' or 'video', which files among the media are read as; '': their content decides.
      problem: why the item cannot be used, with its place; empty if it can.
    """

    question: str
    answers: tuple[str, ...]
    media: tuple[Any, ...] = ()
    choices: tuple[str, ...] = ()
    where: str = ""
    kind: str = ""
    problem: str = ""


Reply = Callable[[Sequence[Item]], Sequence[str]]
Likelihood = Callable[[Sequence[Item], Sequence[str]], tuple[np.ndarray, np.ndarray]]


def normalised(text: str) -> str:
    """Lower case, single spaces, without surrounding punctuation and quotes."""
    return re.sub(r"\s+", " ", text).strip(_AROUND).lower()


def exact_match(items: Sequence[Item], reply: Reply) -> tuple[Score, list[dict[str, Any]]]:
    """The share of replies that equal an answer after `normalised`; chance is the most common answer's share.

    Returns:
      The score, whose `by` has the share of replies that equal an answer exactly; and one row per item.

    Raises:
      ValueError: there are no items, or the number of replies differs from theirs.
    """
    check(items)
    replies = list(reply(items))
    if len(replies) != len(items):
        raise ValueError(f"{len(replies)} replies to {len(items)} questions")
    accepted = [{normalised(answer) for answer in item.answers} for item in items]
    right = [normalised(text) in answers for text, answers in zip(replies, accepted, strict=True)]
    strict = [text in item.answers for text, item in zip(replies, items, strict=True)]
    chance = commonest_share([normalised(item.answers[0]) for item in items])
    rows = [
        {"question": item.question, "answer": item.answers[0], "reply": text, "right": verdict}
        for item, text, verdict in zip(items, replies, right, strict=True)
    ]
    return Score.of(right, chance, {"letter for letter": strict}), rows


def multiple_choice(
    items: Sequence[Item], likelihood: Likelihood
) -> tuple[Score, list[dict[str, Any]]]:
    """The share of items whose most likely choice is the answer; chance is one over the number of choices.

    Returns:
      The score, whose `by` has the share by log-probabilities per token; and one row per item.

    Raises:
      ValueError: there are no items, or one lacks choices or has an answer that is not among them.
    """
    check(items, choices=True)
    repeated = [item for item in items for _ in item.choices]
    texts = [choice for item in items for choice in item.choices]
    log_probability, tokens = likelihood(repeated, texts)
    ends = np.cumsum([len(item.choices) for item in items])[:-1]
    whole, each = (np.split(values, ends) for values in (log_probability, log_probability / tokens))
    indices = [item.choices.index(item.answers[0]) for item in items]
    right = [int(np.argmax(values)) == index for values, index in zip(whole, indices, strict=True)]
    by_token = [
        int(np.argmax(values)) == index for values, index in zip(each, indices, strict=True)
    ]
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
    return Score.of(right, chance, {"per token": by_token}), rows


def log_likelihood(
    items: Sequence[Item], likelihood: Likelihood
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The log-likelihood of the first answer of each item.

    Returns:
      `log_likelihood` (mean over items, in nats), `per_token` (mean over all tokens) and its `perplexity`; and one row
      per item.

    Raises:
      ValueError: there are no items.
    """
    check(items)
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
        "perplexity": math.exp(-each) if -each < _LARGEST_EXPONENT else math.inf,
    }
    return values, rows


def check(items: Sequence[Item], *, choices: bool = False) -> None:
    """Raises ValueError without items, or if one has no answer, or with `choices` not one among its choices."""
    if not items:
        raise ValueError("there are no questions")
    for item in items:
        if item.problem:
            continue
        if not item.answers:
            raise ValueError(f"{item.where}: the question has no answer")
        if choices and (len(item.choices) < 2 or item.answers[0] not in item.choices):
            raise ValueError(
                f"{item.where}: {item.answers[0]!r} is not among the choices {list(item.choices)}"
            )
