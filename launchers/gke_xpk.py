"""The XPK command of a run: XPK writes its own JobSet, and GKE's variables connect the processes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import gke_manifest
import launching
import supervisor


def xpk(options: Any, command: Sequence[str]) -> list[str]:
    """The words of `xpk workload create`.

    Raises:
      LaunchError: an option that XPK requires or cannot do.
    """
    if not options.cluster:
        raise launching.LaunchError("--xpk requires --cluster")
    if options.local_saves:
        raise launching.LaunchError(
            "--local_saves: XPK mounts no folder of the nodes; leave it away, or start the run without --xpk"
        )
    if options.secret:
        raise launching.LaunchError(
            "--xpk does not support --secret; without --xpk, kubectl is used"
        )
    command, cache, mounts = gke_manifest.buckets(options, command)
    if mounts:
        raise launching.LaunchError(
            "--xpk does not mount buckets; attach one with `xpk storage attach`, pass its folder, and name it with "
            "--storage, or use --buckets=direct"
        )
    if any("\n" in word for word in command):
        raise launching.LaunchError(
            "--xpk: a word of the training command has a line break, which XPK cannot pass on; without --xpk, kubectl "
            "is used"
        )
    folder = launching.shared_workdir(command, buckets=True)
    tpu, _, hosts, chips = gke_manifest.slice_of(options.topology, options.chips_per_host)
    gke_manifest.check_slices(options, hosts)
    variables = launching.environment(folder, cache, tpu, launching.settings(options.env)) | {
        launching.COORDINATOR: "auto"
    }
    words = ["xpk", "workload", "create", f"--workload={options.name}"]
    words += [
        f"--{flag}={getattr(options, flag)}"
        for flag in ("cluster", "project", "zone", "priority")
        if getattr(options, flag)
    ]
    words += [f"--storage={name}" for name in options.storage]
    words += [
        f"--tpu-type={tpu.prefix}{hosts * chips * tpu.cores}",
        f"--num-slices={options.slices}",
        f"--docker-image={options.image}",
        f"--max-restarts={options.max_restarts}",
        # XPK ends the run at other exit codes than 42 and 127 and above. A process that has lost another ends with 1.
        f"--restart-on-exit-codes=1,{supervisor.STALLED},{supervisor.PROGRESS}",
        f"--termination-grace-period-seconds={options.grace}",
    ]
    words += [f"--env={name}={value}" for name, value in sorted(variables.items())]
    # XPK pastes the command into an indented line of YAML, and sends SIGTERM to what that line starts.
    script = supervisor.one_line(supervisor.supervised(command, progress=folder))
    return [*words, f"--command=exec sh -c {shlex.quote(script)}"]
