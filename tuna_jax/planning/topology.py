"""The devices of a TPU slice that is not present: the TPU compiler does not need one."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

from tuna_jax.hardware.chips import chip_of

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # Of this machine; the TPU compiler is loaded in addition.
    "TPU_SKIP_MDS_QUERY": "1",  # Do not query a cloud's metadata server.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # No TPU is used, so several plans may run at once.
}


def prepare_environment() -> None:
    """Sets the variables that JAX and the TPU compiler read when they are loaded; call it before `import jax`."""
    os.environ.update(_ENVIRONMENT)


def chip_count(name: str) -> int:
    """The number of chips of one slice: 16 for 'v5e:4x4'.

    Raises:
      ValueError: the name is not KIND:AxB or KIND:AxBxC with a known kind.
    """
    chip_of(name)
    if not re.fullmatch(r"\w+:\d+(x\d+){1,2}", name):
        raise ValueError(
            f"--topology={name}: a topology is KIND:AxB or KIND:AxBxC, for example v5e:4x4 or v5p:4x4x4"
        )
    count = 1
    for extent in name.split(":")[1].split("x"):
        count *= int(extent)
    return count


def devices(name: str, slices: int = 1) -> list[Any]:
    """JAX devices of `slices` slices of this topology, to compile programs for.

    Raises:
      ValueError: there is no such topology; the message has the compiler's reason.
      ModuleNotFoundError: the TPU compiler is not installed.
    """
    chip_count(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError("the TPU compiler is not installed: pip install libtpu")
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    # The plugin raises exceptions of several kinds; all mean that there is no such topology.
    except Exception as error:
        raise ValueError(
            f"--topology={name}: not a topology of the TPU compiler: {error}"
        ) from error
    return list(description.devices)
