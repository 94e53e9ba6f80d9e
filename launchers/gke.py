#!/usr/bin/env python3
"""Runs a training command on TPU slices of a GKE cluster, as a JobSet or with XPK, or a server, as a Deployment; sets
the cluster up and removes it.

Examples:

    # Two slices of 16 v5p chips, which are 2 x 4 hosts:
    python launchers/gke.py --name=tuna-7b --topology=v5p:2x2x4 --slices=2 \\
        --image=us-docker.pkg.dev/PROJECT/images/tuna:1 --service_account=tuna -- \\
        python -m tuna_jax.train --config=experiments/tuna/tuna_7b_stage1.py --workdir=gs://BUCKET/tuna-7b

    # Follow its log, through restarts; end it (the files stay):
    python launchers/gke.py --name=tuna-7b --logs
    python launchers/gke.py --name=tuna-7b --delete

    # Two servers of a model, on a TPU host each (docs/serving.md):
    python launchers/gke.py --serve --name=tuna --topology=v6e:2x2 --replicas=2 \\
        --image=IMAGE --service_account=tuna --secret=TUNA_JAX_API_KEYS=SECRET:KEY -- \\
        tuna-jax serve --model=gs://BUCKET/model

    # Before the first run, in this order (docs/pods.md explains them); --dry_run prints the commands of each:
    python launchers/gke.py --setup --project=P --cluster=C --zone=us-east5-a --bucket=B --image=I
    python launchers/gke.py --create_node_pool --project=P --cluster=C --zone=us-east5-a --name=tuna-7b \\
        --topology=v5p:2x2x4 --slices=2
    python launchers/gke.py --build=cloud --image=I

    # Print only the manifest, for `kubectl apply -f -` or a repository of manifests:
    python launchers/gke.py --dry_run ...

The same command again changes nothing while the run is in progress, and resumes it from the last checkpoint if it has
failed or ended. If a host is lost, all hosts restart. Restarts after a disruption or after progress are not counted,
others are, up to --max_restarts; an error that a restart cannot mend ends the run (docs/pods.md has the exit codes).

Buckets: gs://BUCKET in the command becomes a folder, mounted once for what the run writes (nothing is cached) and once
for data (read-only, cached on the host's disk). With --buckets=direct the program gets the addresses as they are.

Secrets: --secret HF_TOKEN=SECRET:KEY reads the variable from a Kubernetes secret.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import gke_cloud
import gke_manifest
import gke_serve
import gke_xpk
import launching

STEPS = ("setup", "create_node_pool", "build", "logs", "delete", "delete_node_pool", "teardown")


def main(arguments: Sequence[str]) -> int:
    """Parses the arguments, and applies or prints the manifest, or carries out a step."""
    try:
        options, command = launching.parse(_parser(), arguments, without=STEPS)
        chosen = [step for step in STEPS if getattr(options, step)]
        if len(chosen) > 1:
            raise launching.LaunchError(f"--{' and --'.join(chosen)} are separate commands")
        if chosen and command:
            raise launching.LaunchError(f"--{chosen[0]} takes no training command after `--`")
        if options.name or not set(chosen) & {"setup", "build", "teardown"}:
            gke_cloud.required(options, f"--{chosen[0]}" if chosen else "a run", "name")
            launching.dns_name(options.name)
        if chosen:
            return _step(chosen[0], options)
        if options.serve:
            return _serve(options, command)
        gke_cloud.required(options, "a run", "topology", "image")
        if options.max_restarts is None:
            options.max_restarts = 20 if options.xpk else 5
        if options.xpk:
            words = gke_xpk.xpk(options, command)
            if options.dry_run:
                print(launching.shell(words))
                return 0
            return gke_cloud.call(words).returncode
        text = json.dumps(gke_manifest.manifest(options, command), indent=2)
        if options.dry_run:
            print(text)
            return 0
        return _apply(options, text)
    except launching.LaunchError as error:
        launching.fail(error)


def _parser() -> argparse.ArgumentParser:
    parser = launching.parser(__doc__)
    add = parser.add_argument
    add("--name", default="", help="name of the run: lower-case letters, digits, dashes")
    add("--topology", help="topology of one slice: KIND:AxB or KIND:AxBxC, such as v5p:4x4x4")
    add("--image", help="container image with this repository installed; --build makes it")
    add("--slices", type=int, default=1, help="number of slices (default: 1)")
    add("--namespace", default="default", help="Kubernetes namespace (default: default)")
    add(
        "--max_restarts",
        type=int,
        help="number of restarts without progress, of the whole run (default: 5); XPK counts all (default: 20)",
    )
    add("--priority", help="priorityClassName of the pods; XPK's very-low ... very-high")
    add("--queue", help="local queue of Kueue")
    add("--spot", action="store_true", help="use spot nodes")
    add("--reservation", help="reservation that --create_node_pool takes")
    add("--service_account", help="Kubernetes service account of the pods; --setup makes `tuna`")
    add(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=SECRET:KEY",
        help="see above; may be repeated",
    )
    add(
        "--local_saves",
        metavar="FOLDER",
        help="folder of each node, such as /dev/shm/tuna_jax (memory), for config.local_saves: a pod that is restarted "
        "on the same node finds them",
    )
    add("--compile_cache", help="folder of compiled programs (default: WORKDIR/compile_cache)")
    add("--chips_per_host", type=int, help="chips per host (default: by kind of TPU and topology)")
    add(
        "--grace",
        type=int,
        default=300,
        help="seconds for saving before a pod is killed (default: 300); on spot nodes no more than 15 are real",
    )
    add(
        "--pod_network",
        action="store_true",
        help="use the cluster's network between hosts instead of the hosts' own, which is faster between slices",
    )
    add(
        "--buckets",
        choices=("mount", "direct"),
        default="mount",
        help="gs:// addresses become folders (default), or reach the program as they are",
    )
    add(
        "--file_cache_gb",
        type=int,
        default=30,
        metavar="N",
        help="gigabytes of each host's boot disk for data that was read (default: 30; 0: none)",
    )
    add(
        "--fuse_limits",
        default="0,0,0",
        metavar="CPU,MEMORY,DISK",
        help="limits of the container that serves the mounts, such as 4,32Gi,100Gi (default: 0,0,0, no limits)",
    )
    serve = parser.add_argument_group("a server")
    add = serve.add_argument
    add(
        "--serve",
        action="store_true",
        help="the command is a server: run it as a Deployment with a Service",
    )
    add("--replicas", type=int, default=1, help="number of servers (default: 1)")
    add(
        "--gpu",
        metavar="KIND[:N]",
        help="N GPUs per server, such as nvidia-l4:1, in place of --topology",
    )
    add("--cpus", type=int, metavar="N", help="N cores per server, in place of --topology")
    step = parser.add_argument_group("steps other than a run, one at a time")
    add = step.add_argument
    add("--setup", action="store_true", help="make cluster, bucket, identities, image repository")
    add("--create_node_pool", action="store_true", help="make a node pool per slice")
    add(
        "--build",
        choices=("docker", "cloud"),
        help="build and push --image, here or in Cloud Build",
    )
    add(
        "--logs",
        nargs="?",
        const="first",
        choices=("first", "all", "past"),
        help="follow the log of process 0 (default) or of all, or print what Cloud Logging has kept",
    )
    add(
        "--device",
        choices=("tpu", "cuda", "cpu"),
        default="tpu",
        help="what --build builds the image for (default: tpu)",
    )
    add("--delete", action="store_true", help="end the run and delete it; its files stay")
    add("--delete_node_pool", action="store_true", help="delete the node pools of this name")
    add("--teardown", action="store_true", help="delete what --setup has made, but not the bucket")
    add("--bucket", help="bucket that --setup makes, without gs://")
    add("--cluster", help="cluster, for the steps and for XPK")
    add("--project", help="project, for the steps and for XPK")
    add("--zone", help="zone, for the steps and for XPK")
    add("--poll", type=float, default=10.0, help="seconds between two looks at a run (default: 10)")
    xpk = parser.add_argument_group("XPK")
    xpk.add_argument("--xpk", action="store_true", help="use XPK instead of kubectl")
    xpk.add_argument(
        "--storage",
        action="append",
        default=[],
        metavar="NAME",
        help="storage that was attached with `xpk storage attach`; may be repeated",
    )
    return parser


def _step(name: str, options: Any) -> int:
    if name == "logs":
        return _logs(options)
    if name == "delete":
        what = "deployment,service" if options.serve else "jobset"
        words = _kubectl(options, "delete", what, options.name, "--ignore-not-found")
        title = "end the servers" if options.serve else "end the run"
        return gke_cloud.carry_out([gke_cloud.Step(title, words)], options.dry_run)
    if name == "setup":
        gke_cloud.required(options, "--setup", "project")
        number = "PROJECT_NUMBER" if options.dry_run else _project_number(options.project)
        steps = gke_cloud.setup(options, number)
    else:
        make = {
            "create_node_pool": gke_cloud.node_pools,
            "delete_node_pool": gke_cloud.delete_node_pools,
            "build": gke_cloud.build,
            "teardown": gke_cloud.teardown,
        }
        steps = make[name](options)
    code = gke_cloud.carry_out(steps, options.dry_run)
    if name == "teardown" and code == 0:
        print("# the bucket stays; `gcloud storage rm --recursive gs://BUCKET` deletes it")
    return code


def _serve(options: Any, command: Sequence[str]) -> int:
    """Applies or prints the manifests of a server."""
    gke_cloud.required(options, "--serve", "image")
    if options.xpk:
        raise launching.LaunchError("--serve and --xpk are separate: XPK runs what ends")
    options.pod_network = True  # Servers of one host would share its ports.
    text = json.dumps(gke_serve.manifests(options, command), indent=2)
    if options.dry_run:
        print(text)
        return 0
    code = gke_cloud.call(["kubectl", "apply", "--filename=-"], text=text).returncode
    if code == 0:
        deployment = f"deployment/{options.name}"
        wait = launching.shell(_kubectl(options, "rollout", "status", deployment))
        forward = _kubectl(options, "port-forward", f"service/{options.name}", "8000:80")
        print(f"to wait until all servers are ready: {wait}")
        print(f"to reach one from this machine, at 127.0.0.1:8000: {launching.shell(forward)}")
    return code


def _project_number(project: str) -> str:
    words = ["gcloud", "projects", "describe", project, "--format=value(projectNumber)"]
    result = gke_cloud.call(words, capture=True)
    if result.returncode or not result.stdout.strip():
        raise launching.LaunchError(f"--project={project}: gcloud cannot describe it; see above")
    return result.stdout.strip()


def _kubectl(options: Any, *words: str) -> list[str]:
    return ["kubectl", *words, f"--namespace={options.namespace}"]


def _state(options: Any) -> str | None:
    """Completed or Failed, empty while the run is in progress; None if there is no such run.

    Raises:
      LaunchError: kubectl fails.
    """
    get = ["get", "jobset", options.name, "--ignore-not-found"]
    words = _kubectl(options, *get, "--output=jsonpath={.kind}:{.status.terminalState}")
    status = gke_cloud.call(words, capture=True)
    if status.returncode:
        raise launching.LaunchError(
            "kubectl cannot read JobSets; see above, and `gke.py --setup` for access and for their controller"
        )
    kind, _, state = status.stdout.strip().partition(":")
    return state if kind else None


def _apply(options: Any, manifest_text: str) -> int:
    """Applies the manifest; a run with this name that has ended or failed is deleted first."""
    state = _state(options)
    if state:
        print(f"{options.name} is {state}; resuming from its last checkpoint")
        deleted = gke_cloud.call(_kubectl(options, "delete", "jobset", options.name, "--wait=true"))
        if deleted.returncode:
            return deleted.returncode
    code = gke_cloud.call(["kubectl", "apply", "--filename=-"], text=manifest_text).returncode
    here = f"python launchers/gke.py --name={options.name} --namespace={options.namespace}"
    if code == 0:
        print(f"to follow the log: {here} --logs")
    elif state == "":
        print(
            f"{options.name} is in progress; to run it with other options: {here} --delete, and then this command",
            file=sys.stderr,
        )
    return code


def _logs(options: Any) -> int:
    """Follows the log until the run has ended, also over restarts; returns 0 if it has completed."""
    if options.serve:
        follow = ["logs", f"--selector=app={options.name}", f"--container={gke_serve.CONTAINER}"]
        follow += ["--follow", "--tail=-1", "--prefix", "--max-log-requests=4096"]
        step = gke_cloud.Step("log of the servers", _kubectl(options, *follow))
        return gke_cloud.carry_out([step], options.dry_run)
    run = f"jobset.sigs.k8s.io/jobset-name={options.name}"
    if options.logs == "past":
        kept = f'labels."k8s-pod/jobset_sigs_k8s_io/jobset-name"="{options.name}"'
        words = ["gcloud", "logging", "read", f'resource.type="k8s_container" AND {kept}']
        words += ["--order=asc", "--format=value(timestamp,textPayload)", "--freshness=30d"]
        words += [f"--project={options.project}"] if options.project else []
        return gke_cloud.carry_out([gke_cloud.Step("past log", words)], options.dry_run)
    if options.logs == "first":
        run += ",jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    follow = ["logs", f"--selector={run}", f"--container={gke_manifest.CONTAINER}", "--follow"]
    # Without them, kubectl prints the last ten lines, and refuses more than five pods.
    follow += ["--tail=-1"]
    follow += ["--prefix", "--max-log-requests=4096"] if options.logs == "all" else []
    words = _kubectl(options, *follow)
    if options.dry_run:
        print(launching.shell(words))
        return 0
    seen = False
    while True:
        state = _state(options)
        if state is None:
            raise launching.LaunchError(
                f"--name={options.name}: there is no such run in this cluster"
            )
        if not (state and seen):
            # It fails until the pods have started.
            seen = gke_cloud.call(words).returncode == 0 or seen
            state = _state(options)
        if state:
            print(f"{options.name} is {state}")
            return 0 if state == "Completed" else 1
        time.sleep(options.poll)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
