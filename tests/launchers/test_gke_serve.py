"""`launchers/gke.py --serve`: its manifests against the schemas of Kubernetes, and the image that runs them."""

import copy
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest

from tests.fixtures.fake_cloud import calls, gke

ROOT = Path(__file__).parents[2]
SERVER = ("--", "tuna-jax", "serve", "--model=gs://bucket/model", "--drain=60")
HARDWARE = {
    "tpu": "--topology=v6e:2x2",
    "gpu": "--gpu=nvidia-l4:2",
    "cpu": "--cpus=4",
}


def serve(*arguments, server=SERVER):
    command = [sys.executable, str(ROOT / "launchers" / "gke.py"), "--serve", "--name=tuna"]
    command += ["--image=i:1", "--dry_run", *arguments, *server]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def manifests(*arguments, **options):
    result = serve(*arguments, **options)
    assert result.returncode == 0, result.stderr
    listed = json.loads(result.stdout)
    assert listed["kind"] == "List"
    return listed["items"]


def pod_of(deployment):
    return deployment["spec"]["template"]["spec"]


@pytest.mark.parametrize("hardware", HARDWARE)
def test_manifests_are_valid(hardware):
    version = kubernetes_validate.latest_version()
    deployment, service = manifests(
        *(HARDWARE[hardware], "--spot", "--service_account=tuna", "--priority=high"),
        *("--replicas=2", "--secret=TUNA_JAX_API_KEYS=keys:all", "--env=A=b"),
    )
    for resource in (deployment, service):
        kubernetes_validate.validate(resource, version, strict=True)
    invalid = copy.deepcopy(deployment)
    pod_of(invalid)["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(invalid, version, strict=True)


def test_the_service_finds_the_pods_and_their_port():
    deployment, service = manifests(HARDWARE["cpu"])
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    (port,) = pod_of(deployment)["containers"][0]["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    command = pod_of(deployment)["containers"][0]["command"]
    assert f"--port={port['containerPort']}" in command and "--host=0.0.0.0" in command


def test_a_pod_is_ready_by_its_health_and_drains():
    (container,) = pod_of(manifests(HARDWARE["cpu"])[0])["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"
    assert "httpGet" not in container["livenessProbe"]  # It is 503 while the server compiles.
    # The server itself gets SIGTERM: there is no shell before it.
    assert container["command"][:2] == ["tuna-jax", "serve"]
    unrouted = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    for server, drain in ((SERVER, 60), (SERVER[:-1], 30)):
        pod = pod_of(manifests(HARDWARE["cpu"], server=server)[0])
        assert pod["terminationGracePeriodSeconds"] > unrouted + drain


def test_each_hardware_has_its_nodes_and_resources():
    pods = {name: pod_of(manifests(flag)[0]) for name, flag in HARDWARE.items()}
    resources = {name: pod["containers"][0]["resources"]["limits"] for name, pod in pods.items()}
    assert resources == {
        "tpu": {"google.com/tpu": 4},
        "gpu": {"nvidia.com/gpu": 2},
        "cpu": {"cpu": 4, "memory": "16Gi"},
    }
    assert pods["tpu"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2"
    assert pods["gpu"]["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert "nodeSelector" not in pods["cpu"]
    strategies = {
        name: manifests(flag)[0]["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
        for name, flag in HARDWARE.items()
    }
    assert strategies == {"tpu": 0, "gpu": 0, "cpu": 1}


def test_a_model_in_a_bucket_is_a_folder_that_is_only_read():
    deployment, _ = manifests(HARDWARE["cpu"], "--compile_cache=gs://bucket/compiled")
    (container,) = pod_of(deployment)["containers"]
    assert "--model=/gcs-data/bucket/model" in container["command"]
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in container["volumeMounts"]}
    assert mounts["/gcs-data/bucket"] is True and mounts["/gcs/bucket"] is False
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables["JAX_COMPILATION_CACHE_DIR"] == "/gcs/bucket/compiled"
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["gke-gcsfuse/volumes"] == "true"


@pytest.mark.parametrize(
    ("arguments", "server", "named"),
    [
        ([], SERVER, "--topology"),
        (["--cpus=4", "--gpu=nvidia-l4"], SERVER, "--gpu and --cpus"),
        (["--topology=v6e:4x4"], SERVER, "--replicas"),
        (["--topology=v6e:2x2", "--slices=2"], SERVER, "one host"),
        (["--gpu=nvidia-l4:none"], SERVER, "--gpu"),
        (["--cpus=0"], SERVER, "--cpus"),
        (["--cpus=1", "--replicas=0"], SERVER, "--replicas"),
        (["--cpus=1"], ("--", "python", "train.py"), "tuna-jax serve"),
        (["--cpus=1"], (*SERVER, "--port=80"), "--port"),
        (["--cpus=1"], (*SERVER, "--host=127.0.0.1"), "--host"),
        (["--cpus=1"], (*SERVER[:-1], "--drain=long"), "--drain"),
        (["--cpus=1", "--xpk"], SERVER, "--xpk"),
    ],
)
def test_an_error_names_the_option(arguments, server, named):
    result = serve(*arguments, server=server)
    assert result.returncode == 2 and named in result.stderr and not result.stdout


def test_it_is_applied_followed_and_deleted(fake):
    result = gke(fake, "--serve", "--image=i:1", "--cpus=2", *SERVER)
    assert result.returncode == 0, result.stderr
    applied = json.loads((fake / "input").read_text())
    assert [item["kind"] for item in applied["items"]] == ["Deployment", "Service"]
    assert "rollout status deployment/run" in result.stdout and "port-forward" in result.stdout
    assert gke(fake, "--serve", "--logs").returncode == 0
    assert gke(fake, "--serve", "--delete").returncode == 0
    done = [" ".join(call.split()[:4]) for call in calls(fake)]
    assert done == [
        "kubectl apply --filename=-",
        "kubectl logs --selector=app=run --container=serve",
        "kubectl delete deployment,service run",
    ]


@pytest.mark.parametrize(
    ("device", "package"), [("cpu", "jax"), ("cuda", "jax[cuda13]"), ("tpu", "jax[tpu]")]
)
def test_the_dockerfile_installs_what_the_device_needs(device, package, tmp_path):
    """The lines of its RUN, with a pip that records its words."""
    assert _install(device, tmp_path)[-1] == package
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert "serve" in extras
    if device != "cpu":
        (requirement,) = extras[device]
        assert requirement.startswith(package)


def test_the_dockerfile_refuses_another_device(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        _install("gpu", tmp_path)


def _install(device, folder):
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    run = next(line for line in text.split("\n") if line.startswith("RUN case"))
    pip = folder / "pip"
    pip.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    pip.chmod(0o755)
    result = subprocess.run(
        ["sh", "-c", run.removeprefix("RUN ")],
        env={"DEVICE": device, "PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()
