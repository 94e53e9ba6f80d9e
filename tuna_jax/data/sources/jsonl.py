"""JSONL manifests: one example per line, in the formats of the released PyTorch code, read in place.

    {"image": "a.jpg", "caption": "..."}                                    image_caption
    {"image": "a.jpg", "conversations": [{"from": "human", "value": "..."}, ...]}    image_chat
    {"conversations": [...]}                                                chat
    {"raw_image": "a.jpg", "out_image": "b.jpg", "instruction": "..."}      edit
    {"video": "a.mp4", "caption": "..."}                                    video_caption
    {"video": "a.mp4", "conversations": [...]}                              video_chat

The keys decide the kind; an example with a caption and conversations is a caption. `image` may be a list, whose images
replace the conversation's `<image>` tags in order. Turns are `from` human, gpt or system with `value`; `role` and
`content` are read too. Relative paths begin at the image root.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tuna_jax.data.invalid_examples import Fault, report_as_invalid
from tuna_jax.data.media.image import Medium
from tuna_jax.data.sources.base import Example, Turn
from tuna_jax.data.text.messages import IMAGE_TAG, count_tags, split_at_tags, with_image_tags

VIDEO_TAG = "<video>"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_CHUNK = 1 << 24


class Manifest:
    """The examples of a JSONL file by number, without the file in memory (8 bytes per example, for its offset).

    Reading is safe from several threads. Empty lines are skipped.

    Args:
        path: the JSONL file.
        image_root: where relative paths begin; None uses the manifest's own folder.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has no examples.
    """

    def __init__(
        self, path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None
    ):
        self.path = Path(path)
        self.image_root = self.path.parent if image_root is None else Path(image_root)
        if not self.path.is_file():
            raise FileNotFoundError(f"the manifest {self.path} does not exist")
        self.digest, self._starts, self._ends, self._lines = _find_lines(self.path)
        if not len(self._starts):
            raise ValueError(f"the manifest {self.path} has no examples")
        self._file: int | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Its name in lists of invalid examples."""
        return str(self.path)

    @property
    def identity(self) -> str:
        """Changes when the file's content or the image root does."""
        return f"{self.digest} {self.image_root.absolute()}"

    def __len__(self) -> int:
        return len(self._starts)

    def line(self, index: int) -> int:
        """The line of an example in the file, counted from 1."""
        return int(self._lines[index])

    def __getitem__(self, index: int) -> Example:
        """An example; raises InvalidExample if its line is not one."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {self.path}, which has {len(self)}")
        with report_as_invalid(self.name, self.line(index)):
            return parse(self.content(index), self.image_root, self.name, self.line(index))

    def content(self, index: int) -> bytes:
        """An example's line in the file, without the newline."""
        start, end = int(self._starts[index]), int(self._ends[index])
        return os.pread(self._descriptor(), end - start, start)

    def _descriptor(self) -> int:
        with self._lock:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY)
            return self._file

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the file itself.
        return {**self.__dict__, "_file": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # pyright: ignore[reportArgumentType]


def _find_lines(path: Path) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """SHA-256 of a file, and the start, end and number of each line that is not empty."""
    digest, ends, size = hashlib.sha256(), [], 0
    last = b"\n"
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + size)
            size, last = size + len(chunk), chunk[-1:]
    if last != b"\n":
        ends.append(np.array([size]))
    end = np.concatenate(ends).astype(np.int64) if ends else np.zeros(0, np.int64)
    start = np.concatenate([[0], end[:-1] + 1]).astype(np.int64) if len(end) else end
    number = np.arange(1, len(end) + 1)
    # A single byte is the carriage return of an empty line.
    kept = end - start > 1
    return digest.hexdigest(), start[kept], end[kept], number[kept]


def parse(content: bytes | str, image_root: Path, source: str, line: int) -> Example:
    """A manifest's line as an example.

    Raises:
        Fault: it is not JSON, has an unknown format or no text, or its tags do not match its images.
    """
    try:
        entry = json.loads(content)
    except ValueError as error:  # Errors of JSON and of UTF-8.
        raise Fault("malformed_json", str(error)) from error
    if not isinstance(entry, dict):
        raise Fault("malformed_json", f"the line is a {type(entry).__name__}, not an object")

    return make_example(entry, functools.partial(_path, image_root), source, line)


def make_example(
    entry: Mapping[str, Any], medium: Callable[[str, Any], Medium], source: str, line: int
) -> Example:
    """An entry in one of the formats as an example.

    Args:
        entry: the keys and values.
        medium: (key, value) -> the image or video of `image`, `video`, `raw_image` or `out_image`; may raise Fault.
        source: the name of its source.
        line: its number there, counted from 1.

    Raises:
        Fault: it has an unknown format or no text, or its tags do not match its images.
    """
    example = functools.partial(Example, source=source, line=line)
    keys = {key for key, value in entry.items() if not _is_empty(value) or key == "caption"}
    if {"raw_image", "out_image"} <= keys:
        media = _media(entry, "raw_image", medium) + _media(entry, "out_image", medium)
        if len(media) != 2:
            raise Fault("wrong_image_count", "an edit has one raw_image and one out_image")
        return example("edit", media, text=_text(entry, "instruction"))
    if "video" in keys:
        media = _media(entry, "video", medium)
        if len(media) != 1:
            raise Fault("wrong_image_count", f"an example has one video, not {len(media)}")
        if "caption" in keys:
            return example("video_caption", media, text=_text(entry, "caption"))
        if "conversations" in keys:
            return example("video_chat", media, turns=_turns(entry, 1, tag=VIDEO_TAG))
    elif "image" in keys:
        media = _media(entry, "image", medium)
        if "caption" in keys:
            if len(media) != 1:
                raise Fault(
                    "wrong_image_count", f"a caption belongs to one image, not to {len(media)}"
                )
            return example("image_caption", media, text=_text(entry, "caption"))
        if "conversations" in keys:
            return example("image_chat", media, turns=_turns(entry, len(media)))
    elif "conversations" in keys:
        return example("chat", (), turns=_turns(entry, 0))
    raise Fault(
        "unknown_format",
        f"the keys with a value are {sorted(keys)}; an example has image or video with caption or conversations, "
        "or only conversations, or raw_image, out_image and instruction",
    )


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None or value == "":
        raise Fault("empty_text", f"{key} is missing or empty")
    if not isinstance(value, str):
        raise Fault("unknown_format", f"{key} is a {type(value).__name__}, not a string")
    if not value.strip():
        raise Fault("empty_text", f"{key} has no words")
    return value.strip()


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list)) and not value)


def _media(
    entry: Mapping[str, Any], key: str, medium: Callable[[str, Any], Medium]
) -> tuple[Medium, ...]:
    value = entry[key]
    return tuple(medium(key, item) for item in (value if isinstance(value, list) else [value]))


def _path(root: Path, key: str, name: Any) -> Path:
    if not isinstance(name, str) or not name:
        raise Fault("unknown_format", f"{key} is {name!r}, not the name of a file")
    return root / name  # An absolute name is not changed.


def _turns(entry: Mapping[str, Any], media: int, tag: str = IMAGE_TAG) -> tuple[Turn, ...]:
    """The conversation, with as many `<image>` tags as media; `tag` is another spelling of the tag."""
    listed = entry["conversations"]
    if not isinstance(listed, list):
        raise Fault("unknown_format", f"conversations is a {type(listed).__name__}, not a list")
    turns = [_turn(index, item, tag) for index, item in enumerate(listed)]
    if not any(turn.role == "assistant" for turn in turns):
        raise Fault("empty_text", "no turn is the assistant's, so there is nothing to train on")
    if all(turn.role != "user" for turn in turns):
        raise Fault("empty_text", "no turn is the user's")
    tags = sum(count_tags(turn.text) for turn in turns if turn.role != "system")
    if media and not tags:
        # Conversations about one image often omit the tag: the images come first.
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        text = f"{IMAGE_TAG}\n" * media + turns[first].text
        turns[first] = Turn("user", text)
    elif tags != media:
        raise Fault(
            "wrong_image_count",
            f"{tags} {IMAGE_TAG} tags for {media} files; \\{IMAGE_TAG} is the text {IMAGE_TAG}",
        )
    for index, turn in enumerate(turns):
        after = split_at_tags(turn.text)[1:]
        ends = index == len(turns) - 1 and len(after) == 1 and not after[0].strip()
        if turn.role == "assistant" and after and not ends:
            raise Fault(
                "unknown_format",
                f"conversations[{index}]: an image by the assistant must end the conversation",
            )
    return tuple(turns)


def _turn(index: int, item: Any, tag: str) -> Turn:
    where = f"conversations[{index}]"
    if not isinstance(item, dict):
        raise Fault("unknown_format", f"{where} is a {type(item).__name__}, not an object")
    sender, text = item.get("from", item.get("role")), item.get("value", item.get("content"))
    role = _ROLES.get(sender) if isinstance(sender, str) else None
    if role is None:
        raise Fault(
            "unknown_format", f"{where} is from {sender!r}; choose one of {', '.join(_ROLES)}"
        )
    if text is not None and not isinstance(text, str):
        raise Fault("unknown_format", f"{where} holds a {type(text).__name__}, not a string")
    if not (text or "").strip():
        raise Fault("empty_text", f"{where}, the {role}'s turn, has no words")
    return Turn(role, with_image_tags(text or "", tag).strip())
