"""Manifests of launchers/gke.py, validated with the schemas of JobSet and Kubernetes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("TUNA_JAX_SHARED", ROOT.parent / "shared"))
CRD = SHARED / "schemas" / "jobset_crd.yaml"
CASES = {
    "two slices": [
        *("--topology=v5p:2x2x4", "--slices=2", "--priority=high", "--secret=A_KEY=s:k"),
        "--local_saves=/dev/shm/tuna_jax",
    ],
    "one host": ["--topology=v6e:2x4", "--spot", "--queue=q", "--service_account=trainer"],
    "direct": ["--topology=v6e:4x4", "--buckets=direct", "--pod_network"],
}
TRAINING = [
    *("--", "python", "-m", "tuna_jax.train", "--config=c.py", "--workdir=gs://bucket/run"),
    "--config.data.streams.draw.manifest=gs://bucket/captions.jsonl",
]


def gke(*arguments, **environment):
    command = [sys.executable, str(ROOT / "launchers" / "gke.py"), "--name=run", "--image=i:1"]
    return subprocess.run(
        [*command, *arguments, *TRAINING],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def manifest(name):
    result = gke("--dry_run", *CASES[name])
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def job_of(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def closed(schema):
    """The schema without unknown fields, as in the strict validation of the API server."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        result.setdefault("additionalProperties", False)
    return result


@pytest.fixture(scope="module")
def schema():
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(CRD.read_text(), Loader=loader)
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1alpha2"]
    result = closed(version["schema"]["openAPIV3Schema"])
    result["properties"]["metadata"] = {"type": "object"}  # Defined by the API server.
    # Checked once; `jsonschema.validate` would check the schema itself for every manifest.
    return jsonschema.validators.validator_for(result)(result)


@pytest.mark.skipif(not CRD.exists(), reason=f"requires the schema of JobSet at {CRD}")
def test_manifests_are_valid_jobsets(schema):
    for name in CASES:
        schema.validate(manifest(name))
    invalid = manifest("one host")
    job_of(invalid)["template"]["spec"]["containers"][0]["imaeg"] = "i"
    with pytest.raises(jsonschema.ValidationError, match="imaeg"):
        schema.validate(invalid)


@pytest.mark.parametrize("name", CASES)
def test_jobs_and_pods_are_valid(name):
    job = job_of(manifest(name))
    version = kubernetes_validate.latest_version()
    metadata = {"name": "run"}
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": job["template"]["spec"]}
    for resource in (whole, pod):
        kubernetes_validate.validate(resource, version, strict=True)
    pod["spec"]["nodeSelectr"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize(
    ("topology", "hosts", "chips"),
    [
        ("v5e:2x4", 1, 8),
        ("v5e:4x4", 4, 4),
        ("v5e:16x16", 64, 4),
        ("v5p:2x2x1", 1, 4),
        ("v5p:4x4x4", 16, 4),
        ("v6e:1x1", 1, 1),
        ("tpu7x:2x2x2", 2, 4),
    ],
)
def test_hosts_of_a_slice(topology, hosts, chips):
    job = job_of(json.loads(gke("--dry_run", f"--topology={topology}").stdout))
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    (container,) = job["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_processes_are_numbered_over_slices_and_hosts():
    """Runs the script of the container with the variables of a pod."""
    result = gke("--dry_run", *CASES["two slices"])
    (container,) = job_of(json.loads(result.stdout))["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    assert variables["TUNA_JAX_COORDINATOR"] == "run-slice-0-0.run:8476"
    assert variables["TUNA_JAX_PROCESSES"] == "8"
    shell, flag, script = container["command"]
    script = script.replace("set -- python", "set -- sh -c 'echo $TUNA_JAX_PROCESS'")
    numbers = []
    for slice_index in range(2):
        for host in range(4):
            pod = {"SLICE_INDEX": str(slice_index), "JOB_COMPLETION_INDEX": str(host)}
            run = [shell, flag, script]
            output = subprocess.run(run, env={**os.environ, **pod}, capture_output=True, text=True)
            numbers.append(int(output.stdout))
    assert numbers == list(range(8))


def test_pods_use_the_network_of_the_hosts_and_the_names_of_the_cluster():
    pod = job_of(manifest("two slices"))["template"]["spec"]
    assert pod["hostNetwork"] is True and pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    # In the host's network, mounts would have the identity of the node.
    volumes = [volume["csi"] for volume in pod["volumes"] if "csi" in volume]
    assert [v["volumeAttributes"]["hostNetworkPodKSA"] for v in volumes] == ["true"] * 2
    assert "hostNetwork" not in job_of(manifest("direct"))["template"]["spec"]


def test_local_saves_are_in_a_folder_of_the_node_that_outlives_the_pod():
    pod = job_of(manifest("two slices"))["template"]["spec"]
    (volume,) = [volume for volume in pod["volumes"] if "hostPath" in volume]
    assert volume["hostPath"] == {"path": "/dev/shm/tuna_jax", "type": "DirectoryOrCreate"}
    (container,) = pod["containers"]
    variables = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
    assert variables["TUNA_JAX_LOCAL_SAVES"] == mount["mountPath"]
    assert not any(
        "hostPath" in v for v in job_of(manifest("direct"))["template"]["spec"]["volumes"]
    )


def options_of(volume):
    attributes = volume["csi"]["volumeAttributes"]
    return dict(
        option.rsplit(":", 1) for option in attributes["mountOptions"].split(",") if ":" in option
    )


def test_what_is_written_and_what_is_read_are_mounted_separately():
    template = job_of(manifest("two slices"))["template"]
    (container,), volumes = template["spec"]["containers"], template["spec"]["volumes"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in volumes}
    assert set(mounts) == set(volumes) == {"shared-memory", "local-saves", "output-0", "data-1"}
    script = container["command"][2]
    assert "--workdir=/gcs/bucket/run" in script and "=/gcs-data/bucket/captions.jsonl" in script
    output, data = options_of(volumes["output-0"]), options_of(volumes["data-1"])
    assert mounts["output-0"]["mountPath"] == "/gcs/bucket" and not mounts["output-0"]["readOnly"]
    assert output["metadata-cache:ttl-secs"] == output["file-cache:max-size-mb"] == "0"
    assert mounts["data-1"]["mountPath"] == "/gcs-data/bucket" and mounts["data-1"]["readOnly"]
    assert data["metadata-cache:ttl-secs"] == "-1" and data["file-cache:max-size-mb"] == "30720"
    annotations = template["metadata"]["annotations"]
    assert annotations["gke-gcsfuse/volumes"] == "true"
    # The cache fits into the disk that is asked for.
    assert annotations["gke-gcsfuse/ephemeral-storage-request"] == "40Gi"


def test_limits_of_the_mounts_are_those_that_were_given():
    result = gke("--dry_run", "--topology=v6e:4x4", "--fuse_limits=4,32Gi,100Gi")
    annotations = job_of(json.loads(result.stdout))["template"]["metadata"]["annotations"]
    limits = {name: value for name, value in annotations.items() if name.endswith("-limit")}
    assert list(limits.values()) == ["4", "32Gi", "100Gi"]
    assert not any(name.endswith("-request") for name in annotations)


def test_addresses_of_buckets_reach_the_program_as_they_are():
    template = job_of(manifest("direct"))["template"]
    (container,) = template["spec"]["containers"]
    assert "metadata" not in template and len(template["spec"]["volumes"]) == 1
    assert "--workdir=gs://bucket/run" in container["command"][2]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert variables["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/run/compile_cache"


def decision(jobset, pods):
    """What Kubernetes and JobSet do when pods of one job have failed.

    Args:
      jobset: the manifest.
      pods: (exit code, whether the pod has the condition DisruptionTarget) each.
    """
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    job = job_of(jobset)
    assert job["backoffLimit"] == 0
    for code, disrupted in pods:
        for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
            codes = rule.get("onExitCodes", {}).get("values", [])
            conditions = [condition["type"] for condition in rule.get("onPodConditions", [])]
            why = None
            if code in codes:
                why = f"Container train for pod default/run-slice-0-0 failed with exit code {code}"
            elif disrupted and "DisruptionTarget" in conditions:
                why = "Pod default/run-slice-0-0 has condition DisruptionTarget"
            if why and reason != "PodFailurePolicy":
                reason, message = (
                    "PodFailurePolicy",
                    f"{why} matching FailJob rule at index {index}",
                )
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("pods", "action"),
    [
        ([(143, True)], "RestartJobSetAndIgnoreMaxRestarts"),
        ([(2, True)], "RestartJobSetAndIgnoreMaxRestarts"),
        ([(85, False)], "RestartJobSetAndIgnoreMaxRestarts"),
        ([(75, False)], "RestartJobSet"),  # The watchdog, without progress.
        ([(2, False)], "FailJobSet"),
        ([(126, False)], "FailJobSet"),
        ([(127, False), (1, False)], "FailJobSet"),
        ([(1, False)], "RestartJobSet"),
        ([(134, False), (137, False)], "RestartJobSet"),
        ([(143, False)], "RestartJobSet"),
        ([(22, False)], "RestartJobSet"),
    ],
)
def test_what_a_failure_leads_to(pods, action):
    assert decision(manifest("one host"), pods) == action


def test_restarts_without_progress_are_counted():
    policy = manifest("one host")["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 5
    given = json.loads(gke("--dry_run", "--max_restarts=3", *CASES["one host"]).stdout)
    assert given["spec"]["failurePolicy"]["maxRestarts"] == 3
