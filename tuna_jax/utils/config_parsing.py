"""From an experiment's nested mapping to a typed, checked, frozen dataclass.

Experiments are `ml_collections` configs because those can be overridden from the command line; the
code behind them wants typed fields. `parse` is the one door between the two, and it refuses what it
does not know by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def parse(kind: type[Settings], values: Mapping[str, Any], where: str = "config") -> Settings:
    """Builds the dataclass `kind` from `values`, recursing into fields that are dataclasses
    themselves.

    Args:
      kind: a dataclass; its field names are the keys that are known.
      values: nested mapping, as from `ConfigDict.to_dict()`.
      where: dotted path of `values`, for error messages.

    Raises:
      ValueError: a key that `kind` does not have (named, with the nearest known key), a required
        key that is missing, or a value whose type does not fit.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(unknown_key(f"{where}.{key}", key, fields))
        arguments[key] = _convert(hints[key], value, f"{where}.{key}")
    missing = [
        name
        for name, field in fields.items()
        if name not in arguments
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(
            f"missing config key {where}.{missing[0]}; {kind.__name__} has no default for it"
        )
    return kind(**arguments)


def defaults(kind: type) -> dict[str, Any]:
    """The nested mapping of `kind`'s defaults, for an experiment file to begin with; keys without one are left out.

    A key that the file does not change can then still be overridden from the command line.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {
                field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
            }
        return value

    found = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found[field.name] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = plain(field.default_factory())
    return found


def unknown_key(path: str, key: str, known: typing.Iterable[str]) -> str:
    """The message for a key that nobody reads: its path, the nearest known key, and all known
    keys."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown config key {path}{hint} Known keys: {', '.join(known)}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the field type `hint` wants it, or a ValueError that names `where`."""
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else parse(hint, value, where)  # type: ignore[arg-type]
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ValueError(f"{where} is {value!r}; it wants a sequence of values")
        return tuple(value)
    if origin in (dict, Mapping):
        return _plain(value)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int in Python; a config that says True where a count is wanted is a mistake.
    wrong = not isinstance(value, origin) or (origin is int and isinstance(value, bool))
    if origin in (int, float, str, bool) and wrong:
        raise ValueError(f"{where} is {value!r}; it wants a value of type {origin.__name__}")
    return value


def _plain(value: Any) -> Any:
    """Nested mappings as plain dicts, so that settings can be stored as JSON."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return value
