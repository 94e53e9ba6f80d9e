"""What a file is when it is not what its name says: a pointer of Git LFS, a web page, nothing."""

from __future__ import annotations

import os

_HEAD = 512


def hint(path: str | os.PathLike[str]) -> str:
    """What a file that cannot be read holds instead, and the mend, as the end of a message; '' if it is not known."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return ""
    if not head.strip():
        return "; the file is empty: download it again"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "; the file is a pointer of Git LFS, not the content: run `git lfs pull`, or download it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "; the file is a web page: the download needs another address, or a login"
    if text.startswith(
        (b"http/", b'{"error"', b"invalid username", b"entry not found", b"access to model")
    ):
        return "; the file is the answer of a server that refused the download: log in, and download it again"
    return ""
