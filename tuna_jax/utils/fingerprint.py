"""A fingerprint of nested arrays and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def fingerprint(tree: Any) -> str:
    """A short hash of a nested mapping of arrays (VAE weights), numbers and strings."""
    digest = hashlib.sha256()
    _update(digest, tree)
    return digest.hexdigest()[:16]


def _update(digest: Any, node: Any) -> None:
    if isinstance(node, Mapping):
        for key in sorted(node):
            digest.update(f"{{{key}".encode())
            _update(digest, node[key])
        digest.update(b"}")
    elif isinstance(node, (str, int, float, bool, type(None), bytes)):
        digest.update(repr(node).encode())
    elif isinstance(node, (list, tuple)):
        digest.update(f"[{len(node)}".encode())
        for item in node:
            _update(digest, item)
    else:
        array = np.asarray(node)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
