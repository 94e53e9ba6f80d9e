"""Checks before the first step that all processes of a run have the same configuration, data and code.

Processes that differ would train on different rows, or stop in the middle of a collective operation, and nothing would
say why.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from tuna_jax.compat import jax_internals
from tuna_jax.parallel import distributed

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_LISTED = 3  # Differences that the message lists.
_KEY = "tuna_jax/agreement"


class DisagreementError(ValueError):
    """The processes of a run differ in configuration, data or code."""


def check(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Compares this process's facts with those of process 0. All processes must call it.

    Args:
      facts: JSON values by name, by the group that the message names, such as 'configuration'.

    Raises:
      DisagreementError: some process differs, on all of them; the message names process, host, group and entries.
    """
    global _checks
    if jax.process_count() == 1:
        return
    _checks += 1
    key, process = f"{_KEY}/{_checks}", jax.process_index()
    if process == 0:
        jax_internals.set_value(f"{key}/facts", json.dumps(facts, default=str).encode())
    expected = jax_internals.wait_for_value(f"{key}/facts", 600)
    if expected is None:
        raise DisagreementError("process 0 has not published its configuration after 600 seconds")
    mine = json.loads(json.dumps(facts, default=str))
    if differing := difference(mine, json.loads(expected)):
        text = f"process {process} ({socket.gethostname()}) differs from process 0 in {differing}"
        jax_internals.set_value(f"{key}/differ/{process:06d}", text.encode())
    distributed.wait_for_all()
    differ = [text.decode() for text in jax_internals.values_under(f"{key}/differ/")]
    if differ:
        more = f"; so do {len(differ) - 1} further processes" if len(differ) > 1 else ""
        raise DisagreementError(
            f"{differ[0]}{more}. Start all processes with the same command, code and files"
        )


_checks = 0


def code() -> dict[str, str]:
    """Hashes of this package's source files by name, and the versions of the libraries that a run depends on."""
    root = Path(__file__).parents[1]
    facts = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(root.rglob("*.py"))
    }
    return facts | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def difference(
    mine: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]
) -> str:
    """Which entries differ, in words; '' if none do."""
    parts = []
    for group in sorted(mine.keys() | expected.keys()):
        own, other = mine.get(group, {}), expected.get(group, {})
        names = [n for n in sorted(own.keys() | other.keys()) if own.get(n) != other.get(n)]
        if not names:
            continue
        listed = ", ".join(
            f"{n} ({_short(own.get(n))}; process 0: {_short(other.get(n))})"
            for n in names[:_LISTED]
        )
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        parts.append(f"{group}: {listed}{more}")
    return "; ".join(parts)


def _short(value: Any) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
