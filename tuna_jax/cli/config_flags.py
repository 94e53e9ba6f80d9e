"""`--config=FILE --config.KEY=VALUE`: experiment and sweep files with overrides, read by ml_collections."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import runpy
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from tuna_jax.utils import shipped
from tuna_jax.utils.config_parsing import unknown_key

_OVERRIDE = re.compile(r"--?(no)?(config|sweep|study)\.")


def add_config(
    parser: argparse.ArgumentParser,
    name: str = "config",
    *,
    example: str = "experiments/emoji/demo.py",
    required: bool = False,
) -> None:
    """Adds `--NAME=FILE` to a parser; the overrides are taken off the command line by `split_overrides`."""
    parser.add_argument(
        f"--{name}",
        metavar="FILE",
        required=required,
        help=f"experiment file, such as {example}, or its name in the package, such as "
        f"{example.removeprefix('experiments/').removesuffix('.py')}; --{name}.KEY=VALUE overrides a key of it",
    )


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(other arguments, overrides): `--config.KEY VALUE` becomes `--config.KEY=VALUE`."""
    others, overrides = [], []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        match = _OVERRIDE.match(argument)
        if match is None:
            others.append(argument)
            continue
        if "=" not in argument and not match[1] and rest and not rest[0].startswith("--"):
            argument += f"={rest.pop(0)}"
        overrides.append(argument)
    return others, overrides


def read(file: str, overrides: Sequence[str] = (), name: str = "config") -> dict[str, Any]:
    """The nested mapping of `get_config()` in a file, with the overrides applied.

    A key of an experiment that the file does not set is added; the parser of the mapping knows which keys exist.

    Args:
      file: path of a Python file, or its name in the package, such as `emoji/demo`; `FILE:ARGUMENT` passes an argument
        to its `get_config`.
      overrides: `--config.KEY=VALUE`; those of other names are left out.
      name: of the flag.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: an override of a sweep or a study names a key that the file does not set (with the nearest known
        key); a value has another type than the file's; or the file's `get_config` is missing, or does not fit the
        argument.
    """
    path, separator, argument = file.partition(":")
    try:
        path = str(shipped.experiment_path(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} (--{name})") from error
    file = f"{path}{separator}{argument}"
    mine = [text for text in overrides if re.match(rf"--?(no)?{name}\.", text)]
    added = []
    if name == "config" and mine:
        own = _get_config(path, [argument] if separator else [])
        added = [text for text in mine if not _is_set(own, _key(text))]
        mine = [text for text in mine if text not in added]
    values = flags.FlagValues()
    command_line = ["tuna-jax", f"--{name}={file}", *mine]
    config_flags.DEFINE_config_file(name, None, "", values, sys_argv=command_line)
    try:
        values(command_line)
    except (AttributeError, KeyError, TypeError, flags.Error) as error:
        # ml_collections raises these for an unknown key, without its path. Look for it.
        config = _get_config(path, [argument] if ":" in file else [])
        for text in mine:
            _check_key(config, _key(text))
        raise ValueError(f"{file}: {error}") from error
    config: Any = values[name].value
    result = config.to_dict()
    for text in added:
        _add(result, text)
    return result


def _key(override: str) -> str:
    """`config.KEY` of `--config.KEY=VALUE`."""
    return re.sub(r"^--?(no)?", "", override).split("=")[0]


def _is_set(config: Any, path: str) -> bool:
    """Whether a config has a value at `config.KEY`, or a value in place of a mapping above it."""
    for key in path.split(".")[1:]:
        if not hasattr(config, "keys"):
            return True
        if key not in config:
            return False
        config = config[key]
    return True


def _add(values: dict[str, Any], override: str) -> None:
    """Sets what `--config.KEY=VALUE` says; a value is a Python literal, or else text."""
    path, equals, text = override.partition("=")
    *above, last = _key(override).split(".")[1:]
    for key in above:
        values = values.setdefault(key, {})
    if not equals:
        values[last] = not path.lstrip("-").startswith("no")
        return
    try:
        values[last] = ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        values[last] = text


def _get_config(path: str, arguments: Sequence[str]) -> Any:
    """What a file's `get_config` returns.

    Raises:
      ValueError: it has none, or one that does not take the arguments.
    """
    function = runpy.run_path(path).get("get_config")
    if not callable(function):
        raise ValueError(f"{path} has no function get_config(); an experiment file requires one")
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        given = f"{path}:{arguments[0]}" if arguments else f"{path} without :ARGUMENT"
        raise ValueError(f"{given}: get_config{signature}: {error}") from error
    return function(*arguments)


def _check_key(config: Any, path: str) -> None:
    """Raises ValueError if the dotted `path` is not in the config."""
    _, *keys = path.split(".")
    for key in keys:
        if not hasattr(config, "keys"):
            raise ValueError(f"unknown config key {path}: it has nothing below it but a value")
        if key not in config:
            raise ValueError(unknown_key(path, key, sorted(config.keys())))
        config = config[key]
