"""Requests for `tuna-jax generate`, read from a file with one request per line: plain text or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuna_jax.data.text.messages import MEDIA_TYPES, media_key
from tuna_jax.inference import option_checks
from tuna_jax.inference.conversation import check_messages
from tuna_jax.utils import seeds

TASKS = ("t2i", "edit", "t2v", "understand", "chat")
GENERATION_TASKS = ("t2i", "edit", "t2v")

# The keys of a JSON line, by task.
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
    """One request.

    Attributes:
      text: the prompt, instruction or question.
      negative: negative prompt; None: the command's.
      seed: the request's own seed; None: derived from the command's seed and the request's index.
      media: image files, or one video file.
      messages: for a chat, the whole conversation instead of `text`.
      where: the file and line that it comes from; '' if it is not from a file.
    """

    text: str = ""
    negative: str | None = None
    seed: int | None = None
    media: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    where: str = dataclasses.field(default="", compare=False)


def read_requests(path: str | Path, task: str) -> list[Request]:
    """Reads a file with one request per line: JSON lines if its name ends in `.jsonl`, else plain text.

    Empty lines are skipped.

    Args:
      path: the file. Image and video files named in it are relative to its folder.
      task: one of TASKS; `KEYS` lists the keys of its JSON lines.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line cannot be read (its number is named), or the file has no request.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of requests at {path}")
    requests = []
    for number, raw in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path}:{number}"
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 text: {error.reason}") from error
        if line:
            is_json = path.suffix == ".jsonl"
            requests.append(
                _parse(line, task, where, path.parent)
                if is_json
                else Request(text=line, where=where)
            )
    if not requests:
        raise ValueError(f"{path} has no request")
    return requests


def _parse(line: str, task: str, where: str, folder: Path) -> Request:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object {{...}}, not a {type(values).__name__}")
    keys = KEYS[task]
    unknown = [key for key in values if key not in keys]
    if unknown:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}; the keys of {task} are {', '.join(keys)}"
        )
    values = {key: value for key, value in values.items() if value is not None}  # null is absent
    text = _text(values, keys[0], where)
    messages = _messages(values.get("messages"), where, folder)
    if (text is None) == (messages is None):
        required = f"{keys[0]!r}" + (" or 'messages'" if "messages" in keys else "")
        raise ValueError(f"{where}: give {required}" + (", not both" if messages else ""))
    files = values.get("image", [])
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ValueError(f"{where}: 'image' is {files!r}; it must be a file name or a list of them")
    files = [option_checks.text(f"{where}: 'image'", file) for file in files]
    video = _text(values, "video", where)
    return Request(
        text=text or "",
        negative=_text(values, "negative", where),
        seed=None if "seed" not in values else seeds.check(values["seed"], f"{where}: 'seed'"),
        media=tuple(str(folder / file) for file in [*files, *([video] if video else [])]),
        messages=messages or (),
        where=where,
    )


def _text(values: Mapping[str, Any], key: str, where: str) -> str | None:
    value = values.get(key)
    return value if value is None else option_checks.text(f"{where}: {key!r}", value)


def _messages(value: Any, where: str, folder: Path) -> tuple[Mapping[str, Any], ...] | None:
    """A conversation, with the paths of its parts' files, which are relative to `folder`."""
    if value is None:
        return None
    try:
        check_messages(value)
    except ValueError as error:
        raise ValueError(f"{where}: 'messages': {error}") from error
    if not value:
        raise ValueError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
    return tuple(_with_paths(message, folder) for message in value)


def _with_paths(message: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    parts = []
    for part in content:
        key = media_key(part) if part["type"] in MEDIA_TYPES else None
        parts.append(part if key is None else {**part, key: str(folder / part[key])})
    return {**message, "content": parts}
