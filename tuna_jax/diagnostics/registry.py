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
_DEVICES = f"run again with --checks=devices; if it happens again, {_SEND}"

CHECKS = (
    Check("versions", versions.versions, "pip install -c constraints.txt -e . in the clone"),
    Check(
        "storage",
        storage.storage,
        "check the address, the permissions and the mount; --folder names another",
    ),
    Check("resume", resume.resume, f"the run's last lines are in the JSON file; {_SEND}"),
    Check("devices", devices.devices, _DEVICES),
    Check("goldens", goldens.goldens, _DEVICES),
    Check(
        "attention",
        attention_backends.attention_backends,
        "config.model.attention_backend='xla' needs no kernel",
    ),
    Check(
        "collectives",
        collectives.collectives,
        "check the mesh (--mesh, config.mesh) and the network between the hosts",
    ),
    Check(
        "step",
        experiment.step,
        "check --config; if memory is short, a smaller batch or a larger config.mesh.fsdp",
    ),
    Check("data", experiment.data, "check the data of the experiment, config.data"),
)
"""`doctor.CHECKS` describes them. The first ones need no device: `resume` starts processes that use this one's."""
