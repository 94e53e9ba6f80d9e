"""Flags of commands that take an experiment's or a sweep's file: an override of a key that the file does not set is
named clearly."""

from __future__ import annotations

import itertools
import runpy
import sys
from typing import Any

from absl import app

from tuna_jax.utils.config_parsing import unknown_key


def parse_flags(arguments: list[str]) -> list[str]:
    """Absl's own parsing, with a clear word for a `--config.KEY` or `--sweep.KEY` that the file does not set."""
    try:
        return app.parse_flags_with_usage(arguments)
    except (AttributeError, KeyError):
        # config_flags raises these for an unknown key, without its path. Read the file, and look.
        given = " ".join(arguments).replace("=", " ").split()
        for flag in ("config", "sweep"):
            file = next(
                (value for name, value in itertools.pairwise(given) if name.endswith(f"-{flag}")),
                "",
            )
            path, _, argument = file.partition(":")
            config = runpy.run_path(path)["get_config"](argument) if path else {}
            for override in arguments if path else ():
                if override.lstrip("-").startswith(f"{flag}."):
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
