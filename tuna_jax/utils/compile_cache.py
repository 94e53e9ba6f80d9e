"""Compiled programs are kept on disk, so that a command which ran once before starts in seconds.

JAX can do that and does not by itself; the commands switch it on. `JAX_COMPILATION_CACHE_DIR` says where; set and
empty, it keeps nothing. Without it they lie in `$XDG_CACHE_HOME/tuna_jax` (`~/.cache/tuna_jax`).
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import jax

FOLDER = "JAX_COMPILATION_CACHE_DIR"
_LEAST = {  # JAX leaves out what compiles in under a second: most of what a first picture waits for
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.0,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}


def enable(environment: Mapping[str, str] | None = None) -> Path | None:
    """Switches the cache on; before anything is compiled.

    Args:
      environment: variables; None: this process's. What they say of JAX's cache is left as it is.

    Returns:
      Where programs are kept; None: nowhere.
    """
    given = os.environ if environment is None else environment
    folder = given.get(FOLDER)
    if folder == "":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if folder is None:
        folder = str(default_folder(given))
    jax.config.update("jax_compilation_cache_dir", folder)
    for name, value in _LEAST.items():
        if name not in given:
            jax.config.update(name.lower(), value)
    return Path(folder)


def default_folder(environment: Mapping[str, str]) -> Path:
    """A folder of this user's, one for each kind of processor: a program for another may hold instructions it lacks."""
    home = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "tuna_jax" / f"compiled-{platform.machine()}-{_processor()}"


def _processor() -> str:
    """A short name for what this machine's processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256((told or platform.processor()).encode()).hexdigest()[:8]
