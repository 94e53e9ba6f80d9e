"""Requests for `tuna-jax generate`, read from a file with one request per line: plain text or JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuna_jax.data.text.messages import MEDIA_TYPES, media_key
from tuna_jax.utils import seeds
from tuna_jax.utils.data_uri import is_data_uri
from tuna_jax.utils.text_files import check_text, check_texts, numbered_lines, read_json_lines

TASKS = ("t2i", "edit", "t2v", "understand", "chat")
GENERATION_TASKS = ("t2i", "edit", "t2v")

# The keys of a JSON line, by task.
_GENERATION_KEYS = ("prompt", "negative", "seed")
_TEXT_KEYS = ("question", "image", "video", "seed")
KEYS: dict[str, tuple[str, ...]] = {
    "t2i": _GENERATION_KEYS,
    "t2v": (*_GENERATION_KEYS, "image"),
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
      media: image files, or one video file; of an edit its sources, of a clip its first frame.
      kind: 'image' or 'video', which the media are read as; '': their content decides.
      messages: for a chat, the whole conversation instead of `text`.
      where: the file and line that it comes from; '' if it is not from a file.

    Raises:
      ValueError: a text that is not UTF-8, as of a command line in another encoding.
    """

    text: str = ""
    negative: str | None = None
    seed: int | None = None
    media: tuple[str, ...] = ()
    kind: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    where: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        check_text(self.text, f"the prompt or question {self.text[:60]!r}")
        check_text(self.negative or "", f"the negative prompt {(self.negative or '')[:60]!r}")


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
    if path.suffix == ".jsonl":
        for where, values in read_json_lines(path):
            requests.append(_request(values, task, where, path.parent))
    else:
        requests = [
            Request(text=line.strip(), where=f"{path}:{number}")
            for number, line in numbered_lines(path)
        ]
    if not requests:
        raise ValueError(f"{path} has no request")
    return requests


def _request(values: Any, task: str, where: str, folder: Path) -> Request:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object {{...}}, not a {type(values).__name__}")
    values = {key: value for key, value in values.items() if value is not None}
    keys = KEYS[task]
    unknown = [key for key in values if key not in keys]
    if unknown:
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}; the keys of {task} are {', '.join(keys)}"
        )
    check_texts(values, where)
    text = _text(values, keys[0], where)
    messages = _messages(values.get("messages"), where, folder)
    if (text is None) == (messages is None):
        required = f"{keys[0]!r}" + (" or 'messages'" if "messages" in keys else "")
        raise ValueError(f"{where}: give {required}" + (", not both" if messages else ""))
    files = values.get("image", [])
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise ValueError(f"{where}: 'image' is {files!r}; it must be a file name or a list of them")
    video = _text(values, "video", where)
    return Request(
        text=text or "",
        negative=_text(values, "negative", where),
        seed=None if "seed" not in values else seeds.check(values["seed"], f"{where}: 'seed'"),
        media=tuple(_file(folder, file) for file in [*files, *([video] if video else [])]),
        # Both together are an error of the conversation, which mixes images and clips.
        kind="" if files and video else "video" if video else "image" if files else "",
        messages=messages or (),
        where=where,
    )


def _file(folder: Path, name: str) -> str:
    """A file named in a file of that folder; a data URI stays as it is."""
    return name if is_data_uri(name) else str(folder / name)


def _text(values: Mapping[str, Any], key: str, where: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} is {value!r}; it must be a string")
    return value


def _messages(value: Any, where: str, folder: Path) -> tuple[Mapping[str, Any], ...] | None:
    """A conversation, with the paths of its parts' files, which are relative to `folder`."""
    if value is None:
        return None
    from tuna_jax.inference.conversation import check_messages  # It imports the tokenizer.

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
        parts.append(part if key is None else {**part, key: _file(folder, part[key])})
    return {**message, "content": parts}
