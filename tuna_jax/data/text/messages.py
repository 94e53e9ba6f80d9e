r"""The content of messages: text and places of images, as a string with `<image>` tags or as a list of parts.

    "<image>\nwhat is this?"
    [{"type": "image"}, {"type": "text", "text": "what is this?"}]

In a string `<image>` marks the place of an image or a video, and a newline right after it belongs to it; `\<image>` is
the text `<image>`. In the text of a part every character is text. A part of type `image` or `video` may name its file,
under its type, `url` or `path`; otherwise it takes the next of the media that are given with the messages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

IMAGE_TAG = "<image>"
ESCAPED_TAG = "\\" + IMAGE_TAG

MEDIA_TYPES = ("image", "video")
_TAG = re.compile(r"(?<!\\)<image>")


def count_tags(text: str) -> int:
    """The number of `<image>` tags in a string, without escaped ones."""
    return len(_TAG.findall(text))


def split_at_tags(text: str) -> list[str]:
    """The pieces of a string before, between and after its tags, unescaped."""
    return [unescape(piece) for piece in _TAG.split(text)]


def escape(text: str) -> str:
    r"""The string of a content that means this text: `<image>` becomes `\<image>`."""
    return text.replace(IMAGE_TAG, ESCAPED_TAG)


def unescape(text: str) -> str:
    r"""The text that a string without tags means: `\<image>` becomes `<image>`."""
    return text.replace(ESCAPED_TAG, IMAGE_TAG)


def with_image_tags(text: str, tag: str) -> str:
    r"""A string whose places of media are marked by `tag`, such as `<video>`, with `<image>` in its place.

    `\<video>` becomes the text `<video>`.
    """
    if tag == IMAGE_TAG:
        return text
    replaced = re.sub(rf"(?<!\\){re.escape(tag)}", IMAGE_TAG, text)
    return replaced.replace("\\" + tag, tag)


def parts_of(content: Any, where: str = "content") -> list[str | None]:
    """A message's content in order: texts, and None for each image or video.

    Raises:
      ValueError: the content is neither a string nor a list of parts, or a part has an unknown type or no text; `where`
        and the part's number are named.
    """
    if isinstance(content, str):
        first, *others = split_at_tags(content)
        parts: list[str | None] = [first]
        for piece in others:
            parts += [None, piece.removeprefix("\n")]
        return parts
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(
            f"{where} is a {type(content).__name__}; it must be a string or a list of parts"
        )
    return [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _part(part: Any, where: str) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise ValueError(f"{where}: a part of type 'text' requires a string under 'text'")
        return text
    if kind in MEDIA_TYPES:
        return None
    raise ValueError(
        f'{where} is not a part: give {{"type": "text", "text": ...}}, {{"type": "image"}} or {{"type": "video"}}'
    )


def media_key(part: Mapping[str, Any]) -> str | None:
    """The key under which a part of type `image` or `video` has its file; None if it has none."""
    keys = (part["type"], "url", "path")
    return next((key for key in keys if part.get(key) is not None), None)
