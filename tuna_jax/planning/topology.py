"""The devices of a TPU slice that is not there: the TPU compiler runs without one."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

from tuna_jax.hardware.chips import chip_of

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # This machine's own devices; the compiler for TPUs is loaded beside them.
    "TPU_SKIP_MDS_QUERY": "1",  # Do not ask a cloud's metadata server what this machine is.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # No TPU is held, so several plans may run at once.
}


def prepare_environment() -> None:
    """Sets what JAX and the TPU compiler read when they are loaded; call it before `import jax`."""
    os.environ.update(_ENVIRONMENT)


def chip_count(name: str) -> int:
    """Chips of one slice: 'v5e:4x4' has 16.

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
    """JAX devices of `slices` slices of this topology; programs compile for them and do not run.

    Raises:
      ValueError: no such topology; the compiler's own words are told.
      ModuleNotFoundError: the TPU compiler is not installed; says how to install it.
    """
    chip_count(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError("the TPU compiler is not installed: pip install libtpu")
    from jax.experimental import topologies

    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except (
        Exception
    ) as error:  # The plugin raises several kinds; all mean that there is no such topology.
        raise ValueError(
            f"--topology={name}: the TPU compiler knows no such topology: {error}"
        ) from error
    return list(found.devices)
