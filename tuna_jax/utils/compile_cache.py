"""Stores compiled programs on disk, so that a command that ran before starts in seconds.

JAX has this cache, but it is off by default; the commands enable it. `JAX_COMPILATION_CACHE_DIR` names the folder; set
to the empty string, it disables the cache. The default is `$XDG_CACHE_HOME/tuna_jax` (`~/.cache/tuna_jax`).
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import jax

FOLDER = "JAX_COMPILATION_CACHE_DIR"
_LEAST = {  # By default JAX skips programs that compile in under a second: most of the wait for a first image.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.0,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}


def enable(environment: Mapping[str, str] | None = None) -> Path | None:
    """Enables the cache; call it before anything is compiled.

    Args:
      environment: the variables; None for this process's. Settings of JAX's cache among them are respected.

    Returns:
      The folder; None if the cache is disabled.
    """
    variables = os.environ if environment is None else environment
    folder = variables.get(FOLDER)
    if folder == "":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if folder is None:
        folder = str(default_folder(variables))
    jax.config.update("jax_compilation_cache_dir", folder)
    for name, value in _LEAST.items():
        if name not in variables:
            jax.config.update(name.lower(), value)
    return Path(folder)


def default_folder(environment: Mapping[str, str]) -> Path:
    """The user's folder for this kind of processor: a program for another may use instructions that it lacks."""
    home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "tuna_jax" / f"compiled-{platform.machine()}-{_processor()}"


def _processor() -> str:
    """A short name for the features of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256((features or platform.processor()).encode()).hexdigest()[:8]
