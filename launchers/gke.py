#!/usr/bin/env python3
"""Runs a training command on TPU slices of a GKE cluster, as a JobSet or with XPK.

Examples:

    # Two slices of 16 v5p chips, which are 2 x 4 hosts:
    python launchers/gke.py --name=tuna-7b --topology=v5p:2x2x4 --slices=2 \\
        --image=us-docker.pkg.dev/PROJECT/images/tuna:1 -- \\
        python -m tuna_jax.train --config=experiments/tuna/tuna_7b_stage1.py --workdir=gs://BUCKET/tuna-7b

    # Print only the manifest, for `kubectl apply -f -` or a repository of manifests:
    python launchers/gke.py --dry_run ...

    # Run it with XPK:
    python launchers/gke.py --xpk --cluster=CLUSTER --project=PROJECT --zone=ZONE ...

It requires kubectl configured for the cluster, and the JobSet controller in the cluster. The image has this repository
installed with its extra [tpu] (docs/pods.md has an example). The same command again changes nothing while the run
is in progress, and resumes it from the last checkpoint if it has failed or ended. If a host is lost, all hosts restart,
at most --max_restarts times.

Secrets: --secret HF_TOKEN=SECRET:KEY reads the variable from a Kubernetes secret.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import launching

REPLICATED_JOB = "slice"


def main(arguments: Sequence[str]) -> int:
    """Parses the arguments, and applies or prints the manifest."""
    parser = launching.parser(__doc__)
    add = parser.add_argument
    add("--name", required=True, help="name of the JobSet: lower-case letters, digits, dashes")
    add(
        "--topology",
        required=True,
        help="topology of one slice: KIND:AxB or KIND:AxBxC, such as v5p:4x4x4",
    )
    add("--image", required=True, help="container image with this repository installed")
    add("--slices", type=int, default=1, help="number of slices (default: 1)")
    add("--namespace", default="default", help="Kubernetes namespace (default: default)")
    add(
        "--max_restarts",
        type=int,
        default=20,
        help="number of restarts of the whole run (default: 20)",
    )
    add("--priority", help="priorityClassName of the pods; XPK's very-low ... very-high")
    add("--queue", help="local queue of Kueue")
    add("--spot", action="store_true", help="use spot nodes")
    add("--service_account", help="Kubernetes service account, for access to gs://")
    add(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=SECRET:KEY",
        help="see above; may be repeated",
    )
    add("--compile_cache", help="folder of compiled programs (default: WORKDIR/compile_cache)")
    add("--chips_per_host", type=int, help="chips per host (default: by kind of TPU and topology)")
    add(
        "--grace",
        type=int,
        default=300,
        help="seconds for saving before a pod is killed (default: 300)",
    )
    add("--xpk", action="store_true", help="use XPK instead of kubectl")
    add("--cluster", help="cluster, for XPK")
    add("--project", help="project, for XPK")
    add("--zone", help="zone, for XPK")
    try:
        options, command = launching.parse(parser, arguments)
        launching.dns_name(options.name)
        if options.xpk:
            words = xpk(options, command)
            if options.dry_run:
                print(launching.shell(words))
                return 0
            return _call(words).returncode
        text = json.dumps(manifest(options, command), indent=2)
        if options.dry_run:
            print(text)
            return 0
        return _apply(options, text)
    except launching.LaunchError as error:
        launching.fail(error)


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


def manifest(options: Any, command: Sequence[str]) -> dict[str, Any]:
    """The JobSet: one replicated job with a replica per slice and an index per host."""
    (cache, *command), buckets = launching.mounted([options.compile_cache or "", *command])
    folder = launching.shared_workdir(command)
    tpu, shape, hosts, chips = slice_of(options.topology, options.chips_per_host)
    if options.slices < 1:
        raise launching.LaunchError(f"--slices={options.slices} must be at least 1")
    name = options.name
    variables = launching.environment(folder, cache, tpu, launching.settings(options.env)) | {
        # The pods of a JobSet have DNS names in its headless service.
        launching.COORDINATOR: f"{name}-{REPLICATED_JOB}-0-0.{name}:{launching.PORT}",
        launching.PROCESSES: str(options.slices * hosts),
    }
    entries: list[dict[str, Any]] = [{"name": k, "value": v} for k, v in sorted(variables.items())]
    field = "metadata.annotations['jobset.sigs.k8s.io/job-index']"
    entries.append({"name": "SLICE_INDEX", "valueFrom": {"fieldRef": {"fieldPath": field}}})
    entries += _secrets(options.secret)
    number = f"export {launching.PROCESS}=$((SLICE_INDEX * {hosts} + JOB_COMPLETION_INDEX))"
    container = {
        "name": "train",
        "image": options.image,
        "command": ["sh", "-c", launching.supervised(command, [number])],
        "env": entries,
        # The coordinator, and ports of libtpu within a slice and between slices.
        "ports": [{"containerPort": port} for port in (launching.PORT, 8471, 8080)],
        "resources": {
            "requests": {"google.com/tpu": chips},
            "limits": {"google.com/tpu": chips},
        },
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *(
                {"name": f"bucket-{number}", "mountPath": f"{launching.MOUNTS}/{bucket}"}
                for number, bucket in enumerate(buckets)
            ),
        ],
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
        # Data workers pass batches in shared memory.
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            *(_bucket_volume(number, bucket) for number, bucket in enumerate(buckets)),
        ],
    }
    if options.priority:
        pod["priorityClassName"] = options.priority
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    job: dict[str, Any] = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        # A host cannot continue without the others, so the JobSet restarts all of them.
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    if buckets:
        job["template"]["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
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
            "failurePolicy": {"maxRestarts": options.max_restarts},
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


def _bucket_volume(number: int, bucket: str) -> dict[str, Any]:
    """A volume with a bucket as a folder, mounted by GKE's Cloud Storage FUSE driver."""
    attributes = {"bucketName": bucket, "mountOptions": "implicit-dirs"}
    driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
    return {"name": f"bucket-{number}", "csi": driver}


def xpk(options: Any, command: Sequence[str]) -> list[str]:
    """The XPK command of the run; XPK writes its own JobSet, and GKE variables connect the processes."""
    if not options.cluster:
        raise launching.LaunchError("--xpk requires --cluster")
    if options.secret:
        raise launching.LaunchError(
            "--xpk does not support --secret; without --xpk, kubectl is used"
        )
    if launching.mounted(command)[1]:
        raise launching.LaunchError(
            "--xpk does not mount buckets; attach one with `xpk storage attach`, and pass its folder"
        )
    folder = launching.shared_workdir(command)
    tpu, _, hosts, chips = slice_of(options.topology, options.chips_per_host)
    variables = launching.environment(
        folder, options.compile_cache, tpu, launching.settings(options.env)
    ) | {launching.COORDINATOR: "auto"}
    words = ["xpk", "workload", "create", f"--workload={options.name}"]
    words += [
        f"--{flag}={getattr(options, flag)}"
        for flag in ("cluster", "project", "zone", "priority")
        if getattr(options, flag)
    ]
    words += [
        f"--tpu-type={tpu.prefix}{hosts * chips * tpu.cores}",
        f"--num-slices={options.slices}",
        f"--docker-image={options.image}",
        f"--max-restarts={options.max_restarts}",
    ]
    words += [f"--env={name}={value}" for name, value in sorted(variables.items())]
    return [*words, f"--command={launching.supervised(command)}"]


def _secrets(texts: Sequence[str]) -> list[dict[str, Any]]:
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


def _apply(options: Any, manifest_text: str) -> int:
    """Applies the manifest; a run with this name that has ended or failed is deleted first."""
    where = [f"--namespace={options.namespace}"]
    state = ["get", "jobset", options.name, *where, "--ignore-not-found"]
    status = _call(["kubectl", *state, "--output=jsonpath={.status.terminalState}"], capture=True)
    if status.returncode:
        return status.returncode
    if status.stdout.strip():
        print(f"{options.name} is {status.stdout.strip()}; resuming from its last checkpoint")
        deleted = _call(["kubectl", "delete", "jobset", options.name, *where, "--wait=true"])
        if deleted.returncode:
            return deleted.returncode
    code = _call(["kubectl", "apply", "--filename=-"], text=manifest_text).returncode
    if code == 0:
        pods = f"jobset.sigs.k8s.io/jobset-name={options.name}"
        follow = ["kubectl", "logs", f"--selector={pods}", *where, "--follow", "--prefix"]
        print(f"to follow the log: {launching.shell(follow)}")
    return code


def _call(
    words: Sequence[str], text: str | None = None, capture: bool = False
) -> subprocess.CompletedProcess[str]:
    sys.stdout.flush()
    pipe = subprocess.PIPE if capture else None
    try:
        return subprocess.run(words, input=text, text=True, stdout=pipe)
    except FileNotFoundError:
        raise launching.LaunchError(f"{words[0]} is not installed on this machine") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
