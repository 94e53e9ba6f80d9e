"""Manifests of launchers/gke.py, validated with the schemas of JobSet and Kubernetes, and its calls of kubectl."""

import json
import os
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
    "two slices": ["--topology=v5p:2x2x4", "--slices=2", "--priority=high", "--secret=A_KEY=s:k"],
    "one host": ["--topology=v6e:2x4", "--spot", "--queue=q", "--service_account=trainer"],
}
TRAINING = ["--", "python", "-m", "tuna_jax.train", "--config=c.py", "--workdir=gs://bucket/run"]


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
    return result


@pytest.mark.skipif(not CRD.exists(), reason=f"requires the schema of JobSet at {CRD}")
def test_manifests_are_valid_jobsets(schema):
    for name in CASES:
        jsonschema.validate(manifest(name), schema)
    invalid = manifest("one host")
    job_of(invalid)["template"]["spec"]["containers"][0]["imaeg"] = "i"
    with pytest.raises(jsonschema.ValidationError, match="imaeg"):
        jsonschema.validate(invalid, schema)


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


KUBECTL = """\
#!/bin/sh
echo "$1 $2 $3" >> "$FAKE/calls"
case "$1" in
  get) cat "$FAKE/state" ;;
  apply) cat > "$FAKE/applied" ;;
esac
"""


@pytest.mark.parametrize("state", ["", "Failed"])
def test_applies_after_deleting_a_failed_run(tmp_path, state):
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    (tmp_path / "state").write_text(state)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = gke(*CASES["two slices"], PATH=path, FAKE=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "applied").read_text()) == manifest("two slices")
    delete = ["delete jobset run"] if state else []
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.strip() for call in calls] == ["get jobset run", *delete, "apply --filename=-"]
