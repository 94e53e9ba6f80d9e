"""JSONL manifests: one example per line, in the formats of the released PyTorch code, read in place.

    {"image": "a.jpg", "caption": "..."}                                    image_caption
    {"image": "a.jpg", "conversations": [{"from": "human", "value": "..."}, ...]}    image_chat
    {"conversations": [...]}                                                chat
    {"raw_image": "a.jpg", "out_image": "b.jpg", "instruction": "..."}      edit; `raw_image` may be a list of sources
    {"video": "a.mp4", "caption": "..."}                                    video_caption
    {"video": "a.mp4", "conversations": [...]}                              video_chat

The keys decide the kind; an example with a caption and conversations is a caption. A key whose value is null, NaN, ""
or [] is absent. `image` may be a list, whose images replace the conversation's `<image>` tags in order, or a data URI.
The user's images are inputs; the assistant's, anywhere in its turns, are to be generated. Relative paths begin at the
image root.

Turns are `from` human, gpt or system with `value`; `role` and `content` are read too. The system sentence is a first
turn of the system's, or the key `system` next to `conversations`; without either it is Qwen's. A turn of the
assistant's with `"loss": false` or `"weight": 0` (or `train`, `trainable`, `loss_mask`) is context that is not learned.
`messages`, `images` and `videos` are
other names of `conversations`, `image` and `video`. Other keys are ignored, and `Example.ignored` lists them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tuna_jax.data.invalid_examples import Fault, report_as_invalid
from tuna_jax.data.media.image import Medium
from tuna_jax.data.sources.base import Example, Kind, Turn
from tuna_jax.data.sources.fields import FieldMap, declare
from tuna_jax.data.sources.line_index import index_lines
from tuna_jax.data.sources.stored_index import index_folder
from tuna_jax.data.text.messages import IMAGE_TAG, count_tags, with_image_tags
from tuna_jax.utils import buckets
from tuna_jax.utils.atomic_io import cache_directory
from tuna_jax.utils.buckets import BucketFile
from tuna_jax.utils.data_uri import decode_data_uri, is_data_uri
from tuna_jax.utils.text_files import parse_json, surrogate_in

VIDEO_TAG = "<video>"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
# Other names of keys in the field, such as OpenAI's and LLaMA-Factory's.
_ALIASES = {"messages": "conversations", "images": "image", "videos": "video"}
_LEARNED = ("loss", "weight", "train", "trainable", "loss_mask")


class Manifest:
    """The examples of a JSONL file by number, without the file in memory (4 bytes per example, for its place).

    Reading is safe from several threads. Blank lines are skipped. A JSON array is read item by item; UTF-16 and UTF-32
    are converted, in memory (line_index.py).

    Args:
        path: the JSONL file, or its address in a bucket (`gs://BUCKET/NAME`): it is copied to the cache folder.
        image_root: where relative paths begin, a folder or an address; None uses the manifest's own folder.
        fields: the key map; None takes the rows as they are.
        index: where the index of a large file is kept (stored_index.index_folder).
        verify: whether to compare a large file's whole content with its index.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has no examples, or is packed; or its index is damaged or of other data.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        image_root: str | os.PathLike[str] | None = None,
        fields: FieldMap | None = None,
        *,
        index: str | os.PathLike[str] | None = None,
        verify: bool = False,
    ):
        self.fields = fields or FieldMap()
        self._name = os.fspath(path)
        folder = os.path.dirname(self._name) if image_root is None else image_root
        self.image_root = buckets.folder(folder)
        self.path = _local(self._name)
        if not self.path.is_file():
            raise FileNotFoundError(f"the manifest {self.path} does not exist")
        self._index = index_lines(self.path, index_folder(index, self.path), verify)
        self.digest = self._index.digest
        if not self._index.rows:
            raise ValueError(f"the manifest {self.path} has no examples")
        self._file: int | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Its name in lists of invalid examples."""
        return self._name

    @property
    def location(self) -> Path:
        """Where it is, for indexes that are kept with the data."""
        return self.path

    @property
    def identity(self) -> str:
        """Changes when the file's content, the image root or the key map does."""
        return f"{self.digest} {buckets.absolute(self.image_root)} {self.fields.identity}".rstrip()

    def __len__(self) -> int:
        return self._index.rows

    def line(self, index: int) -> int:
        """The line of an example in the file, counted from 1; in a JSON array, the number of the item."""
        return self._index.number(index)

    def __getitem__(self, index: int) -> Example:
        """An example; raises InvalidExample if its line is not one."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {self.path}, which has {len(self)}")
        with report_as_invalid(self.name, self.line(index)):
            row = parse_row(self.content(index))
            entry = self.fields(row, index) if self.fields else row
            medium = functools.partial(named_medium, self.image_root)
            example = make_example(entry, medium, self.name, self.line(index))
            return declare(example, self.fields.declared(row)) if self.fields.declares else example

    def content(self, index: int) -> bytes:
        """An example's line as UTF-8, without the newline."""
        start, end = self._index.place(index)
        if self._index.content is not None:
            return self._index.content[start:end]
        if end is not None:
            return os.pread(self._descriptor(), end - start, start)
        # Blank lines may follow: they are short.
        lines = os.pread(self._descriptor(), self._index.limit(index) - start, start)
        return lines.partition(b"\n")[0]

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


def parse_row(content: bytes | str) -> dict[str, Any]:
    """A manifest's line as an object; Fault if it is none."""
    try:
        entry = parse_json(content, "the line")
    except ValueError as error:
        hint = "; it holds carriage returns: end every line with a newline"
        inside = ("\r" if isinstance(content, str) else b"\r") in content.strip()  # pyright: ignore[reportOperatorIssue]
        raise Fault("malformed_json", f"{error}{hint if inside else ''}") from error
    if not isinstance(entry, dict):
        raise Fault("malformed_json", f"the line is a {type(entry).__name__}, not an object")
    return entry


def _local(name: str) -> Path:
    """The file of a manifest: itself, or a local copy of an object."""
    if not name.startswith("gs://"):
        return Path(name)
    try:
        return buckets.local_copy(name, cache_directory() / "bucket_files")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the manifest {name} does not exist") from error


def named_medium(root: Path | BucketFile, key: str, name: Any) -> Medium:
    """The file that a row names, or the content of its data URI; Fault if no file can have the name."""
    if not isinstance(name, str) or not name:
        raise Fault("unknown_format", f"{key} is {name!r}, not the name of a file")
    if is_data_uri(name):
        try:
            return decode_data_uri(name)
        except ValueError as error:
            raise Fault("corrupt_image", f"{key}: {error}") from error
    if "\0" in name:
        raise Fault("missing_file", f"{key} is {name!r}: no file has a zero byte in its name")
    try:
        os.fsencode(name)  # A byte that is not UTF-8 may be in a name, as Python spells it.
    except UnicodeEncodeError as error:
        raise Fault(
            "invalid_text", f"{key} is {name!r}, which no file is named: {error}"
        ) from error
    if name.startswith("gs://"):
        return BucketFile(name)
    return root / name  # An absolute name is not changed.


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
    entry = _with_usual_names(entry)
    keys = {key for key, value in entry.items() if not _is_empty(value)}
    if "caption" in entry and "conversations" not in keys:
        keys.add("caption")  # Its absence is the fault to name.
    kind, media, used, text = _read_format(entry, keys, medium)
    ignored = sorted(keys - set(used))
    if "turns" in text:
        ignored += _unknown_keys_of_turns(entry["conversations"])
    return Example(kind, media, source, line, **text, ignored=tuple(ignored))


def _read_format(
    entry: Mapping[str, Any], keys: set[str], medium: Callable[[str, Any], Medium]
) -> tuple[Kind, tuple[Medium, ...], tuple[str, ...], dict[str, Any]]:
    """The kind of an example, its media, the keys that were used, and its `text` or `turns`."""
    if {"raw_image", "out_image"} <= keys:
        sources, targets = (_media(entry, key, medium) for key in ("raw_image", "out_image"))
        if len(targets) != 1:
            raise Fault("wrong_image_count", f"an edit has one out_image, not {len(targets)}")
        used = ("raw_image", "out_image", "instruction")
        return "edit", sources + targets, used, {"text": _text(entry, "instruction")}
    if "video" in keys:
        media = _media(entry, "video", medium)
        if len(media) != 1:
            raise Fault("wrong_image_count", f"an example has one video, not {len(media)}")
        if "caption" in keys:
            text = {"text": _text(entry, "caption")}
            return "video_caption", media, ("video", "caption"), text
        if "conversations" in keys:
            text = {"turns": _turns(entry, 1, VIDEO_TAG)}
            return "video_chat", media, ("video", "conversations", "system"), text
    elif "image" in keys:
        media = _media(entry, "image", medium)
        if "caption" in keys:
            if len(media) != 1:
                raise Fault(
                    "wrong_image_count", f"a caption belongs to one image, not to {len(media)}"
                )
            text = {"text": _text(entry, "caption")}
            return "image_caption", media, ("image", "caption"), text
        if "conversations" in keys:
            text = {"turns": _turns(entry, len(media), IMAGE_TAG)}
            return "image_chat", media, ("image", "conversations", "system"), text
    elif "conversations" in keys:
        text = {"turns": _turns(entry, 0, IMAGE_TAG)}
        return "chat", (), ("conversations", "system"), text
    raise Fault(
        "unknown_format",
        f"the keys with a value are {sorted(keys)}; an example has image or video with caption or conversations, "
        "or only conversations, or raw_image, out_image and instruction",
    )


def _with_usual_names(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry with the usual names of its keys."""
    renamed = dict(entry)
    for other, usual in _ALIASES.items():
        if _is_empty(entry.get(other)):
            continue
        if not _is_empty(entry.get(usual)):
            raise Fault("unknown_format", f"it has both {usual} and {other}, which mean the same")
        renamed[usual] = renamed.pop(other)
    return renamed


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if _is_empty(value):
        raise Fault("empty_text", f"{key} is missing or empty")
    if not isinstance(value, str):
        raise Fault("unknown_format", f"{key} is a {type(value).__name__}, not a string")
    return _words(value, key)


def _words(text: str, where: str) -> str:
    """A text without white space around it; Fault if nothing remains, or if it is not text that can be written."""
    if not text.strip():
        raise Fault("empty_text", f"{where} has no words")
    if wrong := surrogate_in(text):
        raise Fault("invalid_text", f"{where}: {wrong}")
    return text.strip()


def _is_empty(value: Any) -> bool:
    """Whether a value is absent: null, which pandas may write as NaN, or an empty text or list."""
    nothing = value is None or (isinstance(value, float) and value != value)
    return nothing or (isinstance(value, (str, list)) and not value)


def _media(
    entry: Mapping[str, Any], key: str, medium: Callable[[str, Any], Medium]
) -> tuple[Medium, ...]:
    value = entry[key]
    return tuple(medium(key, item) for item in (value if isinstance(value, list) else [value]))


def _turns(entry: Mapping[str, Any], media: int, tag: str = IMAGE_TAG) -> tuple[Turn, ...]:
    """The conversation, with as many `<image>` tags as media; `tag` is another spelling of the tag."""
    listed = entry["conversations"]
    if not isinstance(listed, list):
        raise Fault("unknown_format", f"conversations is a {type(listed).__name__}, not a list")
    turns = [_turn(index, item, tag) for index, item in enumerate(listed)]
    system = _system(entry)
    if system and turns and turns[0].role == "system" and turns[0].text != system:
        raise Fault("unknown_format", "system differs from the system's turn: give one of them")
    if system and not (turns and turns[0].role == "system"):
        turns.insert(0, Turn("system", system))
    if not any(turn.role == "assistant" and turn.learn for turn in turns):
        raise Fault("empty_text", "no turn is the assistant's and learned: nothing to train on")
    if all(turn.role != "user" for turn in turns):
        raise Fault("empty_text", "no turn is the user's")
    tags = sum(count_tags(turn.text) for turn in turns if turn.role != "system")
    if media and not tags:
        # Conversations about one image often omit the tag: the images come first.
        first = next(index for index, turn in enumerate(turns) if turn.role == "user")
        text = f"{IMAGE_TAG}\n" * media + turns[first].text
        turns[first] = dataclasses.replace(turns[first], text=text)
    elif tags != media:
        raise Fault(
            "wrong_image_count",
            f"{tags} {IMAGE_TAG} tags for {media} files; \\{IMAGE_TAG} is the text {IMAGE_TAG}",
        )
    return tuple(turns)


def _system(entry: Mapping[str, Any]) -> str | None:
    """The system sentence next to the conversation; None without one."""
    value = entry.get("system")
    if _is_empty(value) or (isinstance(value, str) and not value.strip()):
        return None
    return _text(entry, "system")


def _turn(index: int, item: Any, tag: str) -> Turn:
    where = f"conversations[{index}]"
    if not isinstance(item, dict):
        raise Fault("unknown_format", f"{where} is a {type(item).__name__}, not an object")
    # An empty text stays: it is a turn without words.
    item = {key: value for key, value in item.items() if not _is_empty(value) or value == ""}
    sender, text = item.get("from", item.get("role")), item.get("value", item.get("content"))
    role = _ROLES.get(sender) if isinstance(sender, str) else None
    if role is None:
        raise Fault(
            "unknown_format", f"{where} is from {sender!r}; choose one of {', '.join(_ROLES)}"
        )
    if text is not None and not isinstance(text, str):
        raise Fault("unknown_format", f"{where} holds a {type(text).__name__}, not a string")
    words = with_image_tags(_words(text or "", f"{where}, the {role}'s turn,"), tag)
    return Turn(role, words, _learn(item, role, where))


def _learn(item: Mapping[str, Any], role: str, where: str) -> bool:
    """Whether the text loss covers a turn: not if `loss` or `weight` says so."""
    learn = True
    for key in _LEARNED:
        if key not in item:
            continue
        value = item[key]
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise Fault(
                "unknown_format",
                f"{where}: {key} is {value!r}; a turn is learned (1 or true) or context (0 or false), nothing between",
            )
        if value and role != "assistant":
            raise Fault(
                "unknown_format",
                f"{where}: {key} is {value!r}, but only the assistant's turns are learned, and this is the {role}'s",
            )
        learn = learn and bool(value)
    return learn


def _unknown_keys_of_turns(listed: Any) -> list[str]:
    """The keys of a conversation's turns that have a value and no meaning."""
    known = {"from", "role", "value", "content", *_LEARNED}
    items = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    unknown = {key for item in items for key, value in item.items() if not _is_empty(value)} - known
    return [f"conversations[].{key}" for key in sorted(unknown)]
