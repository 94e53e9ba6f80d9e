"""What users ask for, a line of a file each: plain lines, or JSON with more to say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TASKS = ("t2i", "edit", "t2v", "understand", "chat")
GENERATION_TASKS = ("t2i", "edit", "t2v")

# What a line of JSON may say, by task.
_GENERATION_KEYS = ("prompt", "negative", "seed")
_TEXT_KEYS = ("question", "image", "video", "seed")
KEYS: dict[str, tuple[str, ...]] = {
    "t2i": _GENERATION_KEYS,
    "t2v": _GENERATION_KEYS,
    "edit": (*_GENERATION_KEYS, "image"),
    "understand": _TEXT_KEYS,
    "chat": (*_TEXT_KEYS, "messages"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One thing that is asked for.

    Attributes:
      text: the prompt, the instruction, or the question.
      negative: what not to draw; None takes the command's.
      seed: its own seed; None takes the command's, with its place among the requests.
      media: files of images, or of one video.
      messages: the whole conversation instead of `text`, for a chat.
    """

    text: str = ""
    negative: str | None = None
    seed: int | None = None
    media: tuple[str, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()


def read_requests(path: str | Path, task: str) -> list[Request]:
    """Requests of a file: a text with one a line, or JSON lines if its name ends in `.jsonl`. Empty lines are skipped.

    Args:
      path: the file. Pictures that a line names are looked for beside it.
      task: one of TASKS; `KEYS` are what its lines may say.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that cannot be read, named by its number; or nothing in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of requests at {path}")
    requests = []
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path}:{number}"
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 text: {error.reason}") from error
        if line:
            parsed = path.suffix == ".jsonl"
            requests.append(
                _parse(line, task, where, path.parent) if parsed else Request(text=line)
            )
    if not requests:
        raise ValueError(f"{path} has no line with a request")
    return requests


def _parse(line: str, task: str, where: str, folder: Path) -> Request:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}: a {type(values).__name__} where an object is wanted: {{...}}")
    known = KEYS[task]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; {task} knows {', '.join(known)}")
    text = _value(values, known[0], str, where)
    messages = _messages(values.get("messages"), where)
    if (text is None) == (messages is None):
        wanted = f"{known[0]!r}" + (" or 'messages'" if "messages" in known else "")
        raise ValueError(f"{where}: give {wanted}" + (", not both" if messages else ""))
    files = values.get("image", [])
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ValueError(f"{where}: 'image' is {files!r}; it is a file's name or a list of them")
    video = _value(values, "video", str, where)
    return Request(
        text=text or "",
        negative=_value(values, "negative", str, where),
        seed=_value(values, "seed", int, where),
        media=tuple(str(folder / file) for file in [*files, *([video] if video else [])]),
        messages=messages or (),
    )


def _value(values: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = values.get(key)
    # In Python, true is a number.
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        names = {str: "a string", int: "a whole number"}
        raise ValueError(f"{where}: {key!r} is {value!r}; it must be {names[kind]}")
    return value


def _messages(value: Any, where: str) -> tuple[Mapping[str, str], ...] | None:
    if value is None:
        return None
    sound = isinstance(value, Sequence) and all(
        isinstance(one, dict) and all(isinstance(one.get(key), str) for key in ("role", "content"))
        for one in value
    )
    if not sound or not value:
        raise ValueError(
            f"{where}: 'messages' must be a list of objects with the strings 'role' and 'content'"
        )
    return tuple(value)
