"""Questions with known answers, read from JSON lines or from a TFDS data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuna_jax.data.invalid_examples import InvalidExample
from tuna_jax.data.sources.base import VIDEO_KINDS, Example
from tuna_jax.data.sources.tfds import TfdsExamples
from tuna_jax.data.text.messages import escape, split_at_tags
from tuna_jax.evaluation.vqa.metrics import Item
from tuna_jax.inference import option_checks
from tuna_jax.utils.data_uri import is_data_uri
from tuna_jax.utils.text_files import check_texts, read_json_lines

_KEYS = ("image", "video", "question", "answer", "choices", "kind")


def read_lines(path: str | Path, choices: Sequence[str] = ()) -> list[Item]:
    """Questions of a JSONL file, one per line; paths of images and videos are relative to its folder.

        {"image": "a.png", "question": "what is this?", "answer": "a cat", "choices": ["a dog", "a cat"]}

    `image` may be a list, `video` may replace it, and both may be missing; `answer` may be a list of correct answers,
    or the index of one of the choices.

    Args:
      path: the file.
      choices: for lines without their own.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: an invalid line, by its number; or an empty file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of questions at {path}")
    items = []
    for where, values in read_json_lines(path):
        items.append(_item(values, where, path.parent, tuple(choices)))
    if not items:
        raise ValueError(f"{path} has no questions")
    return items


def _item(values: Any, where: str, folder: Path, usual: tuple[str, ...]) -> Item:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: the line is a {type(values).__name__}, not an object {{...}}")
    values = {key: value for key, value in values.items() if value is not None}  # null is absent
    check_texts(values, where)
    if unknown := [key for key in values if key not in _KEYS]:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(_KEYS)}")
    question, answer = values.get("question"), values.get("answer")
    if not isinstance(question, str) or not question:
        raise ValueError(f"{where}: 'question' must be a text")
    option_checks.text(f"{where}: 'question'", question)
    choices = _texts(values.get("choices", list(usual)), "choices", where)
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(choices):
            raise ValueError(
                f"{where}: 'answer' {answer} is not an index of {len(choices)} choices"
            )
        answer = choices[answer]
    answers = _texts(answer, "answer", where)
    if not answers:
        raise ValueError(
            f"{where}: 'answer' must be a text, a list of texts, or the index of a choice"
        )
    if "image" in values and "video" in values:
        raise ValueError(f"{where}: give 'image' or 'video', not both")
    files = _texts(values.get("image", values.get("video", [])), "image", where)
    kind = "image" if "image" in values else "video" if "video" in values else ""
    # A data URI stays as it is: `inference.media_inputs` decodes it.
    media = tuple(file if is_data_uri(file) else folder / file for file in files)
    return Item(question, answers, media, choices, where, kind)


def _texts(value: Any, key: str, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: {key!r} is {value!r}; it must be a text or a list of texts")
    return tuple(option_checks.text(f"{where}: {key!r}", text) for text in texts)


def read_tfds(
    dataset: str | os.PathLike[str],
    split: str,
    fields: Mapping[str, str],
    *,
    question: str = "",
    choices: Sequence[str] = (),
    data_dir: str | os.PathLike[str] | None = None,
    count: int | None = None,
) -> list[Item]:
    """Questions of a TFDS data set.

    Args:
      dataset, split, data_dir: as `TfdsExamples`.
      fields: `image` or `video`, with `question` and `answer`; or with `caption`, whose text (a label's name) answers
        `question`.
      question: the question for every image that has a caption.
      choices: of all questions.
      count: the number of examples, from the first; None for all.

    Raises:
      FileNotFoundError: the data set is not prepared.
      ValueError: fields that do not exist, or a caption without a question. An example that cannot be read is an item
        with a `problem`.
    """
    examples = TfdsExamples(dataset, split, fields, data_dir=data_dir)
    items = []
    for index in range(min(len(examples), count or len(examples))):
        try:
            items.append(_of_example(examples[index], question, tuple(choices)))
        except InvalidExample as error:
            where = f"{examples.name}, example {index + 1}"
            items.append(Item("", ("",), (), tuple(choices), where, problem=f"{where}: {error}"))
    return items


def _of_example(example: Example, question: str, choices: tuple[str, ...]) -> Item:
    where = f"{example.source}, example {example.line}"
    if example.turns:
        text, answer = example.turns[0].text, example.turns[1].text
    else:
        text, answer = question, example.text
    text = escape("".join(split_at_tags(text)).strip())
    if not text:
        raise ValueError(
            f"{where}: the fields name no question; give --question, which is used for all"
        )
    kind = "video" if example.kind in VIDEO_KINDS else "image"
    return Item(text, (answer,), tuple(example.media), choices, where, kind)
