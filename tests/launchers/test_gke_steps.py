"""launchers/gke.py around a run, with a gcloud, kubectl and docker that record their calls and answer from files."""

import json
import tarfile
from pathlib import Path

import pytest

from tests.fixtures.fake_cloud import calls, gke

ROOT = Path(__file__).parents[2]

RUN = ["--topology=v5p:2x2x4", "--slices=2", "--image=i:1"]
RUN += ["--", "python", "-m", "tuna_jax.train", "--config=c.py", "--workdir=gs://bucket/run"]
CLOUD = ["--project=p", "--cluster=pods", "--zone=us-east5-a"]
IMAGE = "--image=us-docker.pkg.dev/p/images/tuna:1"


@pytest.mark.parametrize("state", ["", "JobSet:", "JobSet:Failed", "JobSet:Completed"])
def test_a_run_that_has_ended_is_deleted_and_applied_again(fake, state):
    result = gke(fake, *RUN, kubectl_get_jobset=[state])
    assert result.returncode == 0, result.stderr
    printed = gke(fake, "--dry_run", *RUN).stdout
    assert json.loads((fake / "input").read_text()) == json.loads(printed)
    delete = ["kubectl delete jobset"] if state[7:] else []
    done = [" ".join(call.split()[:3]) for call in calls(fake)]
    assert done == [*delete, "kubectl apply --filename=-"]
    assert "--logs" in result.stdout


def test_other_options_for_a_run_in_progress_are_refused_with_the_mend(fake):
    arguments = {"kubectl_get_jobset": ["JobSet:"], "kubectl_apply_--filename=-": ["!"]}
    result = gke(fake, *RUN, **arguments)
    assert result.returncode == 1 and "--name=run --namespace=default --delete" in result.stderr


def test_a_cluster_without_jobsets_is_reported_with_the_mend(fake):
    result = gke(fake, *RUN, kubectl_get_jobset=["!"])
    assert result.returncode == 2 and "--setup" in result.stderr
    assert "Traceback" not in result.stderr


def test_setup_makes_what_is_missing_and_nothing_twice(fake):
    setup = ["--setup", *CLOUD, "--bucket=b", IMAGE, "--namespace=research"]
    number = {"gcloud_projects_describe": ["123456"]}
    result = gke(fake, *setup, **number)
    assert result.returncode == 0, result.stderr
    made = calls(fake)
    text = "\n".join(made)
    assert "projects/123456/locations/global/workloadIdentityPools/p.svc.id.goog/" in text
    assert "/subject/ns/research/sa/tuna --role=roles/storage.objectUser" in text
    order = [
        *("services enable", "iam service-accounts create pods-nodes", "buckets create gs://b"),
        *("repositories create images", "clusters create pods", "member=principal://"),
        *("get-credentials pods", "kubectl apply", "kubectl wait", "kubectl create namespace"),
        "kubectl create serviceaccount tuna --namespace=research",
    ]
    found = [next(i for i, call in enumerate(made) if part in call) for part in order]
    assert found == sorted(found), made
    # Everything is there: only what may be repeated is.
    (fake / "calls").unlink()
    there = {
        "gcloud_iam_service-accounts_describe": ["there"],
        "gcloud_storage_buckets_describe": ["there"],
        "gcloud_artifacts_repositories_describe": ["there"],
        "gcloud_container_clusters_describe": ["there"],
        "kubectl_get_namespace": ["there"],
        "kubectl_get_serviceaccount": ["there"],
    }
    result = gke(fake, *setup, **number, **there)
    assert result.returncode == 0 and result.stdout.count("there already") == len(there)
    assert not [call for call in calls(fake) if " create " in call]


def test_setup_ends_with_the_first_step_that_fails(fake):
    answers = {"gcloud_projects_describe": ["1"], "gcloud_storage_buckets": ["!", "!"]}
    result = gke(fake, "--setup", *CLOUD, "--bucket=b", IMAGE, **answers)
    assert result.returncode == 1 and "error: bucket" in result.stderr
    assert not [call for call in calls(fake) if "clusters create" in call]


@pytest.mark.parametrize(
    ("topology", "slices", "machine", "nodes"),
    [
        ("v5p:2x2x4", 2, "ct5p-hightpu-4t", 4),
        ("v5e:2x4", 1, "ct5lp-hightpu-8t", 1),
        ("v6e:4x4", 1, "ct6e-standard-4t", 4),
        ("tpu7x:2x2x2", 1, "tpu7x-standard-4t", 2),
    ],
)
def test_a_node_pool_per_slice(fake, topology, slices, machine, nodes):
    pools = ["--create_node_pool", *CLOUD, f"--topology={topology}", f"--slices={slices}"]
    assert gke(fake, *pools).returncode == 0
    made = calls(fake, "gcloud container node-pools create")
    assert [call.split()[4] for call in made] == [f"run-{number}" for number in range(slices)]
    for call in made:
        assert f"--machine-type={machine} " in call and f"--num-nodes={nodes} " in call
        assert ("--tpu-topology=" in call) == (nodes > 1 and "tpu7x" not in topology)
    policies = calls(fake, "gcloud compute resource-policies create workload-policy")
    assert len(policies) == (topology.startswith("tpu7x"))
    gke(fake, "--delete_node_pool", *CLOUD, f"--slices={slices}")
    deleted = calls(fake, "gcloud container node-pools delete")
    assert [call.split()[4] for call in deleted] == [call.split()[4] for call in made]


def test_the_image_holds_the_tracked_files_as_they_are(fake):
    result = gke(fake, "--build=docker", IMAGE)
    assert result.returncode == 0, result.stderr
    with tarfile.open(fake / "input") as context:
        names = set(context.getnames())
    assert {"Dockerfile", "constraints.txt", "tuna_jax/train.py", "launchers/gke.py"} <= names
    assert not any(name.startswith((".venv", ".cache", "runs/")) for name in names)
    built, pushed = calls(fake, "docker")
    assert built == (
        f"docker build --platform=linux/amd64 --build-arg=DEVICE=tpu --tag={IMAGE[8:]} -"
    )
    assert pushed == f"docker push {IMAGE[8:]}"


def test_the_dockerfile_copies_what_exists_and_takes_the_python_of_the_constraints():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / name).exists() for name in line.split()[1:-1])
    (image,) = [line.split()[1] for line in lines if line.startswith("FROM")]
    python = image.removeprefix("python:").removesuffix("-slim")
    assert f"on Python {python}." in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize(("state", "code"), [("Completed", 0), ("Failed", 1)])
def test_the_log_is_followed_through_restarts(fake, state, code):
    states = ["JobSet:"] * 5 + [f"JobSet:{state}"]
    logs = ["!", "step 100", "step 200"]  # No pod yet, then two attempts.
    answers = {"kubectl_get_jobset": states, "kubectl_logs": logs}
    result = gke(fake, "--logs", **answers)
    assert result.returncode == code, result.stderr
    assert result.stdout.splitlines() == ["step 100", "step 200", f"run is {state}"]
    assert all(FIRST in call for call in calls(fake, "kubectl logs"))


def test_a_run_that_has_ended_has_a_log(fake):
    answers = {"kubectl_get_jobset": ["JobSet:Completed"] * 2, "kubectl_logs": ["step 300"]}
    result = gke(fake, "--logs", **answers)
    assert result.stdout.splitlines() == ["step 300", "run is Completed"]


FIRST = (
    "--selector=jobset.sigs.k8s.io/jobset-name=run,jobset.sigs.k8s.io/job-index=0,"
    "batch.kubernetes.io/job-completion-index=0"
)


def test_a_run_that_does_not_exist_has_no_log(fake):
    result = gke(fake, "--logs", kubectl_get_jobset=[""])
    assert result.returncode == 2 and "--name=run" in result.stderr


def test_ends(fake):
    assert gke(fake, "--delete", "--namespace=n").returncode == 0
    assert calls(fake) == ["kubectl delete jobset run --ignore-not-found --namespace=n"]
    result = gke(fake, "--teardown", *CLOUD, IMAGE)
    assert result.returncode == 0 and "the bucket stays" in result.stdout
    assert not [call for call in calls(fake) if "bucket" in call]
