"""Steps around runs on GKE: project and cluster, bucket, identity, node pools, image, and their removal.

A step is a command of gcloud, kubectl or docker, and a command that succeeds if there is nothing left to do. The steps
are printed with --dry_run; a user who may not create things in a project hands the list to somebody who may.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gke_manifest
import launching

JOBSET = "v0.12.0"
_NODES = "e2-standard-4"  # JobSet's controller requires two cores.
_APIS = ("container", "artifactregistry", "cloudbuild", "storage", "logging")


@dataclasses.dataclass(frozen=True)
class Step:
    """A command to run.

    Attributes:
      title: what it is for.
      command: its words.
      done: the words of a command that exits with 0 if the step is done already; empty if repeating it does no harm.
    """

    title: str
    command: Sequence[str]
    done: Sequence[str] = ()

    def __str__(self) -> str:
        unless = f"# unless this succeeds: {shlex.join(self.done)}\n" if self.done else ""
        return f"# {self.title}\n{unless}{launching.shell(self.command)}\n"


def carry_out(steps: Sequence[Step], dry_run: bool) -> int:
    """Prints or runs the steps; returns the exit code of the first that fails, or 0."""
    if dry_run:
        print("\n".join(map(str, steps)))
        return 0
    for step in steps:
        if step.done and call(step.done, quiet=True).returncode == 0:
            print(f"{step.title}: there already", flush=True)
            continue
        print(f"{step.title}\n+ {launching.shell(step.command)}", flush=True)
        code = call(step.command).returncode
        if code:
            print(f"error: {step.title}: exit code {code}; see above", file=sys.stderr)
            return code
    return 0


def call(
    words: Sequence[str], text: str | None = None, capture: bool = False, quiet: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a command.

    Args:
      words: its words.
      text: its standard input.
      capture: whether its output is returned rather than printed.
      quiet: whether its output and errors are dropped.

    Raises:
      LaunchError: there is no such program.
    """
    sys.stdout.flush()
    out = subprocess.DEVNULL if quiet else subprocess.PIPE if capture else None
    error = subprocess.DEVNULL if quiet else None
    try:
        # In the clone, which steps read.
        return subprocess.run(
            words, input=text, text=True, stdout=out, stderr=error, cwd=launching.ROOT
        )
    except FileNotFoundError:
        raise launching.LaunchError(f"{words[0]} is not installed on this machine") from None


_EXAMPLES = {
    "name": "tuna-7b",
    "project": "my-project",
    "cluster": "pods",
    "zone": "us-east5-a",
    "bucket": "my-bucket",
    "topology": "v5p:4x4x4",
    "image": "us-docker.pkg.dev/my-project/images/tuna:1",
}


def required(options: Any, step: str, *names: str) -> None:
    """Raises LaunchError, with an example, if an option that a step requires is missing."""
    for name in names:
        if not getattr(options, name):
            raise launching.LaunchError(
                f"{step} requires --{name}, such as --{name}={_EXAMPLES[name]}"
            )


def region(zone: str) -> str:
    """The region of a zone: us-east5-a -> us-east5.

    Raises:
      LaunchError: it is not a zone.
    """
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", zone):
        raise launching.LaunchError(f"--zone={zone} is not a zone, such as us-east5-a")
    return zone[:-2]


def repository(image: str) -> tuple[str, str, str]:
    """(location, project, repository) of an image in Artifact Registry.

    Raises:
      LaunchError: the image is elsewhere.
    """
    match = re.match(r"([a-z0-9-]+)-docker\.pkg\.dev/([^/]+)/([^/]+)/[^/]+", image or "")
    if match is None:
        raise launching.LaunchError(
            f"--image={image} is not in Artifact Registry; "
            "use --image=LOCATION-docker.pkg.dev/PROJECT/REPOSITORY/NAME:TAG, such as "
            "--image=us-docker.pkg.dev/my-project/images/tuna:1"
        )
    return match[1], match[2], match[3]


def _nodes_account(options: Any) -> str:
    """The Google service account of the nodes; its identifier has 6 to 30 characters."""
    return f"{f'{options.cluster}-nodes'[:30].strip('-')}@{options.project}.iam.gserviceaccount.com"


def setup(options: Any, number: str) -> list[Step]:
    """Everything that runs need, once per project: APIs, identity, bucket, images, cluster, JobSet.

    Args:
      options: of gke.py.
      number: of the project, which names of identities contain.
    """
    required(options, "--setup", "project", "cluster", "zone", "bucket", "image")
    project, cluster, bucket = f"--project={options.project}", options.cluster, options.bucket
    where = f"--location={region(options.zone)}"
    account = _nodes_account(options)
    location, image_project, images = repository(options.image)
    ours = ["gcloud", "artifacts", "repositories"]
    image_place = [f"--location={location}", f"--project={image_project}"]
    kubernetes_account = options.service_account or "tuna"
    pool = f"{options.project}.svc.id.goog"
    pod = (
        f"principal://iam.googleapis.com/projects/{number}/locations/global/workloadIdentityPools/{pool}"
        f"/subject/ns/{options.namespace}/sa/{kubernetes_account}"
    )
    grant = ["gcloud", "storage", "buckets", "add-iam-policy-binding", f"gs://{bucket}"]
    clusters = ["gcloud", "container", "clusters"]
    manifests = "https://github.com/kubernetes-sigs/jobset/releases/download"
    steps = [
        Step(
            "APIs of the project",
            ["gcloud", "services", "enable", *(f"{api}.googleapis.com" for api in _APIS), project],
        ),
        Step(
            "service account of the nodes",
            [
                *("gcloud", "iam", "service-accounts", "create", account.partition("@")[0]),
                *("--display-name=nodes of the cluster " + cluster, project),
            ],
            ["gcloud", "iam", "service-accounts", "describe", account, project],
        ),
        Step(
            "its role: logs and metrics",
            [
                *("gcloud", "projects", "add-iam-policy-binding", options.project),
                f"--member=serviceAccount:{account}",
                *("--role=roles/container.defaultNodeServiceAccount", "--condition=None"),
            ],
        ),
        Step(
            "bucket, in which folders are renamed at once",
            [
                *("gcloud", "storage", "buckets", "create", f"gs://{bucket}", where, project),
                *("--uniform-bucket-level-access", "--enable-hierarchical-namespace"),
            ],
            ["gcloud", "storage", "buckets", "describe", f"gs://{bucket}"],
        ),
        Step(
            "the bucket for nodes",
            [*grant, f"--member=serviceAccount:{account}", "--role=roles/storage.objectUser"],
        ),
        Step(
            "repository of images",
            [*ours, "create", images, "--repository-format=docker", *image_place],
            [*ours, "describe", images, *image_place],
        ),
        Step(
            "images for nodes",
            [
                *(*ours, "add-iam-policy-binding", images, *image_place),
                *(f"--member=serviceAccount:{account}", "--role=roles/artifactregistry.reader"),
            ],
        ),
        Step(
            "cluster (takes some minutes)",
            [
                *(*clusters, "create", cluster, where, f"--node-locations={options.zone}", project),
                *("--release-channel=regular", f"--machine-type={_NODES}", "--num-nodes=1"),
                *(f"--workload-pool={pool}", "--addons=GcsFuseCsiDriver"),
                *(f"--service-account={account}", "--scopes=cloud-platform"),
            ],
            [*clusters, "describe", cluster, where, project],
        ),
        # Mounts have the identity of the pod, which exists since the cluster does. What the program itself reads in
        # the host's network, such as gs:// addresses, has that of the node.
        Step(
            "the bucket for pods",
            [*grant, f"--member={pod}", "--role=roles/storage.objectUser"],
        ),
        Step(
            "kubectl's access to the cluster",
            [*clusters, "get-credentials", cluster, where, project],
        ),
        Step(
            "controller of JobSets",
            [
                "kubectl",
                "apply",
                "--server-side",
                f"--filename={manifests}/{JOBSET}/manifests.yaml",
            ],
        ),
        Step(
            "until it runs",
            [
                *("kubectl", "wait", "deployment/jobset-controller-manager"),
                *("--namespace=jobset-system", "--for=condition=Available", "--timeout=300s"),
            ],
        ),
    ]
    if options.namespace != "default":
        namespaces = ["kubectl", "get", "namespace", options.namespace]
        steps.append(
            Step("namespace", ["kubectl", "create", "namespace", options.namespace], namespaces)
        )
    accounts = ["serviceaccount", kubernetes_account, f"--namespace={options.namespace}"]
    steps.append(
        Step(
            "Kubernetes service account of runs",
            ["kubectl", "create", *accounts],
            ["kubectl", "get", *accounts],
        )
    )
    return steps


def node_pools(options: Any) -> list[Step]:
    """A node pool per slice."""
    required(options, "--create_node_pool", "project", "cluster", "zone", "topology")
    tpu, shape, hosts, chips = gke_manifest.slice_of(options.topology, options.chips_per_host)
    gke_manifest.check_slices(options, hosts)
    where = [f"--cluster={options.cluster}", *_place(options)]
    steps, placement = [], []
    if hosts > 1 and tpu.name == "tpu7x":
        # Ironwood's topology is that of a workload policy.
        policy = f"tuna-tpu7x-{shape}"
        policies = ["gcloud", "compute", "resource-policies"]
        here = [f"--region={region(options.zone)}", f"--project={options.project}"]
        create = [*policies, "create", "workload-policy", policy, *here, "--type=HIGH_THROUGHPUT"]
        create.append(f"--accelerator-topology={shape}")
        steps.append(Step("workload policy", create, [*policies, "describe", policy, *here]))
        placement = [f"--placement-policy={policy}"]
    elif hosts > 1:
        placement = [f"--tpu-topology={shape}", "--placement-type=COMPACT"]
    for name in _pools(options):
        create = [
            *("gcloud", "container", "node-pools", "create", name, *where),
            *(f"--node-locations={options.zone}", f"--machine-type={tpu.machine}{chips}t"),
            *(*placement, f"--num-nodes={hosts}"),
            *("--disk-size=200", "--enable-gvnic", "--workload-metadata=GKE_METADATA"),
            *(f"--service-account={_nodes_account(options)}", "--scopes=cloud-platform"),
        ]
        if options.spot:
            create.append("--spot")
        if options.reservation:
            create += ["--reservation-affinity=specific", f"--reservation={options.reservation}"]
        done = ["gcloud", "container", "node-pools", "describe", name, *where]
        steps.append(Step(f"node pool of {hosts} hosts with {chips} chips each", create, done))
    return steps


def _place(options: Any) -> list[str]:
    return [f"--location={region(options.zone)}", f"--project={options.project}"]


def _pools(options: Any) -> Iterator[str]:
    return (f"{options.name}-{number}" for number in range(options.slices))


def delete_node_pools(options: Any) -> list[Step]:
    """Deletes the node pools of this name: chips cost money until then."""
    required(options, "--delete_node_pool", "project", "cluster", "zone")
    where = [f"--cluster={options.cluster}", *_place(options)]
    return [
        Step(
            f"node pool {name}",
            ["gcloud", "container", "node-pools", "delete", name, *where, "--quiet"],
        )
        for name in _pools(options)
    ]


def teardown(options: Any) -> list[Step]:
    """Deletes what `setup` has made, but not the bucket. gcloud asks before each deletion."""
    required(options, "--teardown", "project", "cluster", "zone", "image")
    location, project, images = repository(options.image)
    account = _nodes_account(options)
    return [
        Step(
            "cluster, with its node pools",
            ["gcloud", "container", "clusters", "delete", options.cluster, *_place(options)],
        ),
        Step(
            "repository of images",
            [
                *("gcloud", "artifacts", "repositories", "delete", images),
                *(f"--location={location}", f"--project={project}"),
            ],
        ),
        Step(
            "service account of the nodes",
            [
                "gcloud",
                "iam",
                "service-accounts",
                "delete",
                account,
                f"--project={options.project}",
            ],
        ),
    ]


def build(options: Any) -> list[Step]:
    """Builds and pushes --image from the tracked files of this clone, with their changes, and its Dockerfile."""
    required(options, "--build", "image")
    archive = str(Path(tempfile.gettempdir()) / "tuna_jax_image.tar.gz")
    steps = [Step("source, as git tracks it", ["sh", "-c", launching.pack(archive)])]
    if options.build == "cloud":
        project = [f"--project={options.project}"] if options.project else []
        submit = ["gcloud", "builds", "submit", archive, *project]
        words = ["build", f"--build-arg=DEVICE={options.device}", f"--tag={options.image}", "."]
        # Of all its options only a file has build arguments.
        config = {
            "steps": [{"name": "gcr.io/cloud-builders/docker", "args": words}],
            "images": [options.image],
            "timeout": "3600s",
        }
        file = str(Path(tempfile.gettempdir()) / "tuna_jax_image.json")
        write = f"printf %s {shlex.quote(json.dumps(config))} > {shlex.quote(file)}"
        steps.append(Step("what Cloud Build does", ["sh", "-c", write]))
        return [*steps, Step("build and push with Cloud Build", [*submit, f"--config={file}"])]
    command = f"docker build --platform=linux/amd64 --build-arg=DEVICE={options.device}"
    command += f" --tag={shlex.quote(options.image)} - < {shlex.quote(archive)}"
    return [
        *steps,
        Step("build with docker", ["sh", "-c", command]),
        Step("push", ["docker", "push", options.image]),
    ]
