"""All checks, in their order."""

from __future__ import annotations

from tuna_jax.diagnostics import (
    attention_backends,
    collectives,
    devices,
    experiment,
    goldens,
    resume,
    storage,
    versions,
)
from tuna_jax.diagnostics.runner import Check

_SEND = "send us the JSON file"
_DEVICES = f"run again with --checks=devices; if it goes on, {_SEND}"

CHECKS = (
    Check("versions", "libraries and code: as required, the same on all hosts", versions.versions,
          "pip install -c constraints.txt -e . in the clone"),
    Check("storage", "a folder or bucket: write, rename, list, read back elsewhere; rates", storage.storage,
          "check the address, the permissions and the mount; another one with --folder"),
    Check("resume", "a short training run, killed and resumed: losses equal to the bit", resume.resume,
          f"the last lines of the run are in the JSON file; {_SEND}"),
    Check("devices", "kinds, counts, memory, topology; products equal on all", devices.devices, _DEVICES),
    Check("goldens", "a tiny model's numbers, in float32 and bfloat16", goldens.goldens, _DEVICES),
    Check("attention", "each attention backend against the dense one, with gradients",
          attention_backends.attention_backends, "config.model.attention_backend='xla' needs no kernel"),
    Check("collectives", "values and bandwidth over each mesh axis", collectives.collectives,
          "check the mesh (--mesh, config.mesh) and the network between the hosts"),
    Check("step", "time and memory of the experiment's step, next to the prediction", experiment.step,
          "check --config; a smaller batch or more fsdp if memory is short"),
    Check("data", "the experiment's input pipeline, next to its step", experiment.data,
          "check the experiment's data: config.data"),
)  # fmt: skip
"""The first ones need no device: `resume` starts processes that use this one's."""
