"""The JobSet of a run on GKE: a replicated job with a replica per slice and an index per host, and what restarts it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import launching
import supervisor

REPLICATED_JOB = "slice"
CONTAINER = "train"
DRIVER = "gcsfuse.csi.storage.gke.io"


def slice_of(topology: str, chips_per_host: int | None) -> tuple[launching.Tpu, str, int, int]:
    """A topology such as v5p:2x2x4 as (kind, shape, hosts, chips per host).

    Raises:
      LaunchError: an unknown kind, a wrong number of axes, or chips that cannot be divided between hosts.
    """
    kind, _, shape = topology.partition(":")
    tpu = launching.TPUS.get(kind)
    if tpu is None:
        raise launching.LaunchError(
            f"--topology={topology}: the kinds are {', '.join(launching.TPUS)}"
        )
    sizes = shape.split("x")
    if len(sizes) != tpu.axes or not all(size.isdigit() and int(size) for size in sizes):
        example = "x".join(["4"] * tpu.axes)
        raise launching.LaunchError(
            f"--topology={topology}: {kind} has {tpu.axes} axes, for example {kind}:{example}"
        )
    chips = math.prod(map(int, sizes))
    each = chips_per_host or (chips if chips <= tpu.largest else tpu.chips)
    if chips % each:
        raise launching.LaunchError(
            f"--topology={topology}: {chips} chips are not a multiple of {each} per host"
        )
    return tpu, shape, chips // each, each


_LOCAL_SAVES = "/local_saves"


def check_slices(options: Any, hosts: int) -> None:
    """Raises LaunchError unless --slices is a number of slices that GKE can join."""
    if options.slices < 1:
        raise launching.LaunchError(f"--slices={options.slices} must be at least 1")
    if options.slices > 1 and hosts == 1:
        raise launching.LaunchError(
            f"--slices={options.slices}: GKE joins slices of several hosts only, and --topology={options.topology} has "
            f"one; use one larger slice"
        )


def manifest(options: Any, command: Sequence[str]) -> dict[str, Any]:
    """The JobSet.

    Raises:
      LaunchError: an invalid topology, number or folder; the message names the option.
    """
    command, cache, mounts = buckets(options, command)
    folder = launching.shared_workdir(command, buckets=options.buckets == "direct")
    tpu, shape, hosts, chips = slice_of(options.topology, options.chips_per_host)
    check_slices(options, hosts)
    name = options.name
    variables = launching.environment(folder, cache, tpu, launching.settings(options.env)) | {
        # The pods of a JobSet have DNS names in its headless service.
        launching.COORDINATOR: f"{name}-{REPLICATED_JOB}-0-0.{name}:{launching.PORT}",
        launching.PROCESSES: str(options.slices * hosts),
    }
    if options.local_saves:
        if not options.local_saves.startswith("/"):
            raise launching.LaunchError(
                f"--local_saves={options.local_saves} must be an absolute folder of nodes, such as /dev/shm/tuna_jax"
            )
        variables["TUNA_JAX_LOCAL_SAVES"] = _LOCAL_SAVES
        own_mounts = [{"name": "local-saves", "mountPath": _LOCAL_SAVES}]
        own_volumes = [
            {
                "name": "local-saves",
                "hostPath": {"path": options.local_saves, "type": "DirectoryOrCreate"},
            }
        ]
    else:
        own_mounts = own_volumes = []
    entries: list[dict[str, Any]] = [{"name": k, "value": v} for k, v in sorted(variables.items())]
    field = "metadata.annotations['jobset.sigs.k8s.io/job-index']"
    entries.append({"name": "SLICE_INDEX", "valueFrom": {"fieldRef": {"fieldPath": field}}})
    entries += secrets(options.secret)
    number = f"export {launching.PROCESS}=$((SLICE_INDEX * {hosts} + JOB_COMPLETION_INDEX))"
    container = {
        "name": CONTAINER,
        "image": options.image,
        "command": ["sh", "-c", supervisor.supervised(command, [number], progress=folder)],
        "env": entries,
        "resources": {
            "requests": {"google.com/tpu": chips},
            "limits": {"google.com/tpu": chips},
        },
        "volumeMounts": [*volume_mounts(mounts), *own_mounts],
    }
    selector = {
        "cloud.google.com/gke-tpu-accelerator": tpu.label,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [*volumes(options, mounts), *own_volumes],
    }
    if not options.pod_network:
        # Between slices, a pod's virtual network costs bandwidth. Names of pods still come from the cluster's DNS.
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if options.priority:
        pod["priorityClassName"] = options.priority
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    template: dict[str, Any] = {"spec": pod}
    if mounts:
        template["metadata"] = {"annotations": sidecar(options, any(m.data for m in mounts))}
    job: dict[str, Any] = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        # A host cannot continue without the others, so the JobSet restarts all of them.
        "backoffLimit": 0,
        "podFailurePolicy": _POD_FAILURES,
        "template": template,
    }
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": options.namespace,
        # Each slice is a separate node pool.
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    if options.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": options.max_restarts, "rules": _RESTARTS},
            "network": {"enableDNSHostnames": True},
            "replicatedJobs": [
                {
                    "name": REPLICATED_JOB,
                    "replicas": options.slices,
                    "template": {"spec": job},
                }
            ],
        },
    }


# The first rule that a failed pod matches decides. All three fail the pod's job; why is in the message of the job's
# condition, which the JobSet's rules read, since the reason is PodFailurePolicy for all.
_POD_FAILURES = {
    "rules": [
        # Preempted, drained, evicted, or its node is lost.
        {
            "action": "FailJob",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
        *(
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": codes},
            }
            for codes in ([supervisor.PROGRESS], sorted(supervisor.FINAL))
        ),
    ]
}


def _rule(name: str, action: str, pattern: str) -> dict[str, Any]:
    reasons = ["PodFailurePolicy"]
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": reasons,
        "onJobFailureMessagePatterns": [pattern],
    }


# Other failures restart all, at most maxRestarts times. JobSet counts restarts for ever and cannot set the count back
# when a run has come further, so the script of a pod reports progress as an exit code of its own.
_IGNORE = "RestartJobSetAndIgnoreMaxRestarts"
_RESTARTS = [
    _rule("disruption", _IGNORE, "has condition DisruptionTarget "),
    _rule("error_after_progress", _IGNORE, f"failed with exit code {supervisor.PROGRESS} "),
    _rule(
        "beyond_mending",
        "FailJobSet",
        f"failed with exit code ({'|'.join(map(str, sorted(supervisor.FINAL)))}) ",
    ),
]


def buckets(
    options: Any, command: Sequence[str]
) -> tuple[list[str], str | None, list[launching.Mount]]:
    """The command and the compile cache with buckets as folders, and their mounts; unchanged with --buckets=direct."""
    if options.buckets == "direct":
        return list(command), options.compile_cache, []
    cache = [f"--compile_cache={options.compile_cache}"] if options.compile_cache else []
    words, mounts = launching.mounted([*cache, *command])
    if not cache:
        return words, None, mounts
    return words[1:], words[0].partition("=")[2], mounts


def volume_mounts(mounts: Sequence[launching.Mount]) -> list[dict[str, Any]]:
    """Where a container has the volumes of `volumes`."""
    return [
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        *(
            {"name": _volume(mount, number), "mountPath": mount.folder, "readOnly": mount.data}
            for number, mount in enumerate(mounts)
        ),
    ]


def volumes(options: Any, mounts: Sequence[launching.Mount]) -> list[dict[str, Any]]:
    """The volumes of a pod: shared memory, in which data workers pass batches, and buckets."""
    return [
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        *(_bucket(mount, number, options) for number, mount in enumerate(mounts)),
    ]


def _volume(mount: launching.Mount, number: int) -> str:
    return f"{'data' if mount.data else 'output'}-{number}"


def _bucket(mount: launching.Mount, number: int, options: Any) -> dict[str, Any]:
    """A volume with a bucket as a folder, mounted by GKE's Cloud Storage FUSE driver."""
    settings = mount.options(options.file_cache_gb)
    words = ["implicit-dirs", *(f"{key}:{value}" for key, value in settings.items())]
    if mount.data:
        words.append("read_ahead_kb=1024")
    attributes = {"bucketName": mount.bucket, "mountOptions": ",".join(words)}
    if not options.pod_network:
        # A pod in the host's network would otherwise get the identity of the node.
        attributes["hostNetworkPodKSA"] = "true"
    return {
        "name": _volume(mount, number),
        "csi": {"driver": DRIVER, "readOnly": mount.data, "volumeAttributes": attributes},
    }


def sidecar(options: Any, data: bool) -> dict[str, str]:
    """Annotations for the container that serves the mounts.

    If it is killed at a limit, the mounts are gone and so is the run; its defaults are a quarter of a core and 256 MiB.
    Every file that is being written takes some 100 MB of memory.
    """
    limits = options.fuse_limits.split(",")
    if len(limits) != 3 or not all(limits):
        raise launching.LaunchError(
            f"--fuse_limits={options.fuse_limits} is not CPU,MEMORY,DISK, such as 4,32Gi,100Gi; 0 is no limit"
        )
    names = ("cpu", "memory", "ephemeral-storage")
    disk = options.file_cache_gb * data + 10
    requests = ("1", "4Gi", f"{disk}Gi")
    annotations = {"gke-gcsfuse/volumes": "true"}
    for name, limit, request in zip(names, limits, requests, strict=True):
        annotations[f"gke-gcsfuse/{name}-limit"] = limit
        # With a limit, the request is the same by default.
        if limit == "0":
            annotations[f"gke-gcsfuse/{name}-request"] = request
    return annotations


def secrets(texts: Sequence[str]) -> list[dict[str, Any]]:
    """`--secret NAME=SECRET:KEY` options as entries of a container's environment."""
    entries = []
    for text in texts:
        variable, _, rest = text.partition("=")
        secret, _, key = rest.partition(":")
        if not variable.isidentifier() or not secret or not key:
            raise launching.LaunchError(
                f"--secret {variable} is not VARIABLE=SECRET:KEY, a key of a Kubernetes secret (not its value)"
            )
        reference = {"secretKeyRef": {"name": secret, "key": key}}
        entries.append({"name": variable, "valueFrom": reference})
    return entries
