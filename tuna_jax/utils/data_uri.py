"""Data URIs (RFC 2397): an image or a video written into a text, `data:image/png;base64,...`."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse

_PREFIX = re.compile(r"data:([^,]*),", re.IGNORECASE)
_WHITE = re.compile(r"\s+")


def is_data_uri(text: str) -> bool:
    """Whether a text in place of a file's name is a data URI."""
    return text[:5].lower() == "data:"


def decode_data_uri(text: str) -> bytes:
    """The content of a data URI.

    Base64 may miss its padding, use the alphabet of URLs, or be wrapped into lines.

    Raises:
      ValueError: it is not a data URI, or its content is not base64; the message holds none of the content.
    """
    match = _PREFIX.match(text)
    if match is None:
        raise ValueError("a data URI has no comma between its kind and its content")
    kind, content = match[1], text[match.end() :]
    if not kind.lower().replace(" ", "").endswith(";base64"):
        return urllib.parse.unquote_to_bytes(content)
    content = _WHITE.sub("", urllib.parse.unquote(content)).translate(str.maketrans("-_", "+/"))
    content = content.rstrip("=")
    try:
        return base64.b64decode(content + "=" * (-len(content) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the content of a data URI is not base64: {error}") from error
