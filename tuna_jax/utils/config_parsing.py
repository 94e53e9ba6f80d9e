"""Nested mappings to typed, checked, frozen dataclasses: the only parser of configs.

Experiments are `ml_collections` configs, because those can be overridden from the command line; the code behind them
uses typed fields. `parse` builds a dataclass from a mapping, `override` changes an existing one. Both refuse keys and
types that they do not know, by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def parse(kind: type[Settings], values: Mapping[str, Any], where: str = "config") -> Settings:
    """Builds the dataclass `kind` from `values`, recursing into fields that are dataclasses themselves.

    Args:
      kind: a dataclass; its field names are the known keys.
      values: nested mapping, as from `ConfigDict.to_dict()`.
      where: dotted path of `values`, for error messages.

    Raises:
      ValueError: a key that `kind` does not have (named, with the nearest known key), a required key that is missing,
        or a value whose type does not fit.
    """
    arguments = _convert_fields(kind, values, where)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in arguments:
            raise ValueError(
                f"missing config key {where}.{field.name}; {kind.__name__} has no default for it"
            )
    return kind(**arguments)


def override(base: Settings, values: Mapping[str, Any], where: str = "config") -> Settings:
    """A copy of the dataclass `base` with the fields in `values` changed, recursing into fields that are dataclasses.

    Args:
      base: holds the values of keys that are not given.
      values, where: as of `parse`.

    Raises:
      ValueError: as `parse`.
    """
    arguments = _convert_fields(type(base), values, where, base)
    return dataclasses.replace(base, **arguments)  # type: ignore[type-var]


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

    values = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            values[field.name] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = plain(field.default_factory())
    return values


def unknown_key(path: str, key: str, known: typing.Iterable[str]) -> str:
    """The message for a key that does not exist: its path, the nearest known key, and all known keys."""
    known = list(known)
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"unknown config key {path}{hint} Known keys: {', '.join(known)}"


def _convert_fields(
    kind: type, values: Mapping[str, Any], where: str, base: Any = None
) -> dict[str, Any]:
    """`values` by field name, each converted to its field's type; nested ones override those of `base`, if given."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    arguments = {}
    for key, value in values.items():
        if key not in names:
            raise ValueError(unknown_key(f"{where}.{key}", key, names))
        current = None if base is None else getattr(base, key)
        arguments[key] = _convert(hints[key], value, f"{where}.{key}", current)
    return arguments


def _convert(hint: Any, value: Any, where: str, current: Any = None) -> Any:
    """`value` as the type `hint`, or a ValueError that names `where`."""
    optional = type(None) in typing.get_args(hint)
    if optional:
        if value is None:
            return None
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; it must be a mapping of keys to values")
        return parse(hint, value, where) if current is None else override(current, value, where)  # type: ignore[arg-type]
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ValueError(f"{where} is {value!r}; it must be a sequence of values")
        return tuple(value)
    if origin in (dict, Mapping):
        return _plain(value)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int in Python; True in place of a count is a mistake.
    wrong = not isinstance(value, origin) or (origin is int and isinstance(value, bool))
    if origin in (int, float, str, bool) and wrong:
        raise ValueError(f"{where} is {value!r}; it must be of type {origin.__name__}")
    return value


def _plain(value: Any) -> Any:
    """Nested mappings as plain dicts, so that settings can be stored as JSON."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return value
