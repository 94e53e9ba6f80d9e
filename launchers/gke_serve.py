"""The Deployment and the Service of a server on GKE: `gke.py --serve`.

A pod is one server on one host. It gets requests while GET /health says that everything is compiled, and when it is
stopped, it first lets the requests that it has finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gke_manifest
import launching

CONTAINER = "serve"
PORT = 8000
_UNROUTED = 10
"""Seconds between the end of routing to a pod and its SIGTERM: until all nodes know that it is going."""
_DRAIN = 30.0  # Default of `tuna-jax serve --drain`.
_COMPILE = 3600
"""Seconds that a new pod may take until it is ready, before `kubectl rollout status` reports a failure."""


def manifests(options: Any, command: Sequence[str]) -> dict[str, Any]:
    """The List of the Deployment and the Service.

    Raises:
      LaunchError: the command is no server, or an option is invalid; the message names it.
    """
    if not {"serve", "tuna_jax.serve"} & set(command[:3]):
        raise launching.LaunchError(
            "--serve takes a command such as `tuna-jax serve --model=gs://BUCKET/model` after `--`"
        )
    if options.replicas < 1:
        raise launching.LaunchError(f"--replicas={options.replicas} must be at least 1")
    words, cache, mounts = gke_manifest.buckets(options, command)
    words = [*words, *_listening(words)]
    pod = _pod(options, words, cache, mounts)
    labels = {"app": options.name}
    metadata = {"name": options.name, "namespace": options.namespace, "labels": labels}
    template: dict[str, Any] = {"metadata": {"labels": labels}, "spec": pod}
    if mounts:
        annotations = gke_manifest.sidecar(options, any(mount.data for mount in mounts))
        template["metadata"]["annotations"] = annotations
    # An accelerator is rarely free, so a pod of the old version makes way for one of the new.
    is_scarce = options.topology is not None or options.gpu is not None
    surge = (
        {"maxSurge": 0, "maxUnavailable": 1} if is_scarce else {"maxSurge": 1, "maxUnavailable": 0}
    )
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": options.replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": surge},
            "progressDeadlineSeconds": _COMPILE,
            "template": template,
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "selector": labels,
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }
    return {"apiVersion": "v1", "kind": "List", "items": [deployment, service]}


def _listening(command: Sequence[str]) -> list[str]:
    """The flags of the server that its probes and its Service need, as far as the command leaves them out.

    Raises:
      LaunchError: the command has another address or port.
    """
    flags = []
    for flag, needed in (("host", "0.0.0.0"), ("port", str(PORT))):
        given = launching.value_of(command, flag)
        if given not in ("", needed):
            raise launching.LaunchError(
                f"--{flag}={given}: a pod's server listens on {needed}; leave --{flag} out"
            )
        flags += [] if given else [f"--{flag}={needed}"]
    return flags


def _drain(command: Sequence[str]) -> float:
    """Seconds that requests under way have."""
    text = launching.value_of(command, "drain")
    try:
        return float(text) if text else _DRAIN
    except ValueError:
        raise launching.LaunchError(f"--drain={text} is not a number of seconds") from None


def _pod(
    options: Any, command: Sequence[str], cache: str | None, mounts: Sequence[launching.Mount]
) -> dict[str, Any]:
    selector, resources, tpu = _hardware(options)
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    # Without a bucket for them, compiled programs last as long as the pod.
    variables = launching.environment("/tmp", cache, tpu, launching.settings(options.env))
    health = {"path": "/health", "port": "http"}
    container = {
        "name": CONTAINER,
        "image": options.image,
        # Not in a shell, so that the server itself gets SIGTERM.
        "command": list(command),
        "env": [
            *({"name": name, "value": value} for name, value in sorted(variables.items())),
            *gke_manifest.secrets(options.secret),
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"requests": resources, "limits": resources},
        # 503 until everything is compiled, and while the server drains.
        "readinessProbe": {"httpGet": health, "periodSeconds": 5, "failureThreshold": 2},
        # Compiling and draining are no reasons to be killed: only a server that accepts no connection is.
        "livenessProbe": {
            "tcpSocket": {"port": "http"},
            "initialDelaySeconds": 120,
            "periodSeconds": 20,
            "failureThreshold": 6,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_UNROUTED)]}}},
        "volumeMounts": gke_manifest.volume_mounts(mounts),
    }
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": _UNROUTED + round(_drain(command)) + 15,
        "containers": [container],
        "volumes": gke_manifest.volumes(options, mounts),
    }
    if selector:
        pod["nodeSelector"] = selector
    if options.priority:
        pod["priorityClassName"] = options.priority
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    return pod


def _hardware(options: Any) -> tuple[dict[str, str], dict[str, Any], launching.Tpu | None]:
    """(node selector, resources, kind of TPU) of a pod.

    Raises:
      LaunchError: there are several kinds of hardware, or several hosts.
    """
    given = [
        flag
        for flag, value in (
            ("--topology", options.topology),
            ("--gpu", options.gpu),
            ("--cpus", options.cpus),
        )
        if value is not None
    ]
    if len(given) != 1:
        raise launching.LaunchError(
            f"--serve takes one of --topology (TPUs), --gpu and --cpus, not {' and '.join(given) or 'none'}"
        )
    if options.topology is not None:
        tpu, shape, hosts, chips = gke_manifest.slice_of(options.topology, options.chips_per_host)
        if hosts != 1 or options.slices != 1:
            raise launching.LaunchError(
                f"--topology={options.topology}: a server runs on one host, and this has {hosts * options.slices}; "
                f"--replicas runs several servers"
            )
        selector = {
            "cloud.google.com/gke-tpu-accelerator": tpu.label,
            "cloud.google.com/gke-tpu-topology": shape,
        }
        return selector, {"google.com/tpu": chips}, tpu
    if options.gpu is not None:
        kind, _, count = options.gpu.partition(":")
        if not kind or not (count or "1").isdecimal() or count == "0":
            raise launching.LaunchError(
                f"--gpu={options.gpu} is not KIND or KIND:N, such as nvidia-l4:1"
            )
        selector = {"cloud.google.com/gke-accelerator": kind}
        return selector, {"nvidia.com/gpu": int(count or 1)}, None
    if options.cpus < 1:
        raise launching.LaunchError(f"--cpus={options.cpus} must be at least 1")
    return {}, {"cpu": options.cpus, "memory": f"{4 * options.cpus}Gi"}, None
