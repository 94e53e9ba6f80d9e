"""What runs in the process of a peer's own: its module, its model, and what they cost.

So neither side has the other's threads, memory and allocator about it. JAX is not wanted here.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


class Told(NamedTuple):
    """What a call gave.

    Attributes:
      result: the function's.
      memory: bytes that the process held at most meanwhile; 0 where the system does not tell, or nobody asked.
    """

    result: Any
    memory: int = 0


_peer: list[Any] = []  # The module and the model.


def start(path: str, config: dict[str, Any], weights: str) -> None:
    """Imports the peer and builds its model; raises ValueError if it cannot build."""
    module = _imported(path)
    if not hasattr(module, "build"):
        raise ValueError(f"the peer {path} has no function build(config, weights)")
    _peer[:] = [module, module.build(config, weights)]


def has(function: str) -> bool:
    """Whether the peer can do it."""
    return hasattr(_peer[0], function)


def call(function: str, argument: Any, watched: bool = False) -> Told:
    """`function(model, argument)` of the peer's; `watched`: the memory is asked for."""
    module, model = _peer
    reset = watched and _reset_memory()
    result = getattr(module, function)(model, argument)
    return Told(result, _most_memory() if reset else 0)


def processor() -> float:
    """Seconds that this process has spent on all cores."""
    return time.process_time()


def _imported(path: str) -> ModuleType:
    name = f"tuna_jax_peer_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _reset_memory() -> bool:
    """Has Linux forget how much this process held at most; False where it cannot."""
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _most_memory() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
