"""The process of a baseline: its module, its model, and their memory and time.

A separate process keeps the threads, memory and allocators of both implementations separate. It does not import JAX.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


class Result(NamedTuple):
    """The result of a call.

    Attributes:
      result: of the function.
      memory: peak memory of the process in bytes; 0 if it was not measured, or the system does not report it.
    """

    result: Any
    memory: int = 0


_baseline: list[Any] = []  # The module and the model.


def start(path: str, config: dict[str, Any], weights: str) -> None:
    """Imports the baseline and builds its model; raises ValueError if it has no `build`."""
    module = _imported(path)
    if not hasattr(module, "build"):
        raise ValueError(f"the baseline {path} has no function build(config, weights)")
    _baseline[:] = [module, module.build(config, weights)]


def has(function: str) -> bool:
    """Whether the baseline has this function."""
    return hasattr(_baseline[0], function)


def call(function: str, argument: Any, with_memory: bool = False) -> Result:
    """The result of `function(model, argument)`; `with_memory`: also measure the peak memory."""
    module, model = _baseline
    reset = with_memory and _reset_memory()
    result = getattr(module, function)(model, argument)
    return Result(result, _most_memory() if reset else 0)


def processor() -> float:
    """Seconds that this process has spent on all cores."""
    return time.process_time()


def _imported(path: str) -> ModuleType:
    name = f"tuna_jax_baseline_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _reset_memory() -> bool:
    """Resets Linux's peak memory of this process; False where that is not possible."""
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _most_memory() -> int:
    status = Path("/proc/self/status").read_text().split("\n")
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
