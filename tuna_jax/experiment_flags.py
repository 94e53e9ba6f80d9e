"""Flags of commands that take an experiment file: an override of a key that the file does not set is named clearly."""

from __future__ import annotations

import itertools
import runpy
import sys
from typing import Any

from absl import app

from tuna_jax.training.settings import unknown_key


def parse_flags(arguments: list[str]) -> list[str]:
    """Absl's own parsing, with a clear word for a `--config.KEY` that the config file does not set."""
    try:
        return app.parse_flags_with_usage(arguments)
    except (AttributeError, KeyError):
        # config_flags raises these for an unknown key, without its path. Read the file, and look.
        given = " ".join(arguments).replace("=", " ").split()
        file = next(
            (value for name, value in itertools.pairwise(given) if name.endswith("-config")), ""
        )
        path, _, argument = file.partition(":")
        config = runpy.run_path(path)["get_config"](argument)
        for override in arguments:
            if override.lstrip("-").startswith("config."):
                _check_key(config, override.lstrip("-").split("=")[0])
        raise


def _check_key(config: Any, path: str) -> None:
    """Ends the program with a message if the dotted `path` is not in the config."""
    _, *keys = path.split(".")
    for key in keys:
        if not hasattr(config, "keys") or key not in config:
            if not hasattr(config, "keys"):
                sys.exit(f"error: unknown config key {path}: it has nothing below it but a value")
            sys.exit(f"error: {unknown_key(path, key, sorted(config.keys()))}")
        config = config[key]
