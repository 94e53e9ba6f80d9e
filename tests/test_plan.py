"""The command from end to end: a real step through the TPU compiler, for a slice that this machine does not have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = "--config=tests/planning/tiny_stage.py"


def plan(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # The tests' settings are for programs on CPU.
    for name in ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "tuna_jax.plan", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def test_help_has_examples_and_flags():
    process = plan("--help")
    for words in ("Examples", "--topology=v5e:8x8", "--rows_per_device", "pip install libtpu"):
        assert words in process.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --config=EXPERIMENT and --topology=KIND:AxB"),
        ([TINY, "--topology=v5e:2x2", "--layouts", "--search"], "leave out --search"),
        ([TINY, "--topology=v5e:2x4", "--stream=sing"], "has the streams describe, draw"),
    ],
)
def test_a_wrong_argument_is_named(arguments, words):
    pytest.importorskip("libtpu")
    process = plan(*arguments)
    assert process.returncode != 0
    assert words in process.stdout + process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_the_tiny_step_compiles_and_its_numbers_agree(tmp_path):
    pytest.importorskip("libtpu")
    file = tmp_path / "plans" / "tiny.json"
    where = (TINY, "--topology=v5e:2x4", "--stream=draw", "--rows_per_device=4")
    process = plan(*where, "--profile", f"--json={file}")
    assert process.returncode == 0, process.stderr[-3000:]
    assert "train draw: fits" in process.stderr
    assert "tiny_stage on v5e:2x4 (8 chips), mesh data 2 x fsdp 4, remat none" in process.stdout
    assert "Nothing here was measured on a TPU" in process.stdout
    assert "train draw: the compiler's estimates of a core's cycles" in process.stdout
    saved = json.loads(file.read_text())
    assert "--topology=v5e:2x4" in saved["command"]
    (result,) = saved["results"]
    assert (result["chips"], result["rows"], result["tokens"]) == (8, 32, 32 * 64)
    memory, network, bound = result["memory"], result["network"], result["bound"]
    # The carried state and the batch are handed in, and the state goes out where it came in. The compiler pads small
    # arrays, so its sizes are larger than the arithmetic.
    assert memory["arguments"] >= sum(memory["parts"].values())
    carried = sum(memory["parts"][name] for name in ("parameters", "optimizer", "average"))
    assert memory["aliased"] >= carried
    assert memory["arguments"] < memory["peak"] < 0.1 * memory["usable"]
    assert network["count"]["all-gather"] > 0
    assert result["flops"]["useful"] == result["flops"]["counted"]
    shares = [cost["share"] for cost in result["profile"]]
    assert len(shares) == 40 and sorted(shares, reverse=True) == shares and 0.2 < sum(shares) <= 1
    assert {"forward", "backward"} <= {cost["direction"] for cost in result["profile"]}
    assert bound["step"] == max(bound[name] for name in ("compute", "memory", "network", "dcn"))
    peak = 8 * 197e12 * bound["step"]
    assert bound["mfu"] == pytest.approx(result["flops"]["useful"] / peak)


@pytest.mark.slow
def test_every_layout_of_inference_is_planned(tmp_path):
    pytest.importorskip("libtpu")
    file = tmp_path / "layouts.json"
    process = plan(TINY, "--topology=v5e:2x2", "--layouts", f"--json={file}")
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Sampling with the model of tiny_stage on v5e:2x2 (4 chips)" in process.stdout
    saved = json.loads(file.read_text())
    assert saved["kind"] == "layouts"
    replicated, tensor, fsdp = saved["results"]
    names = [each["layout"]["name"] for each in saved["results"]]
    assert names == ["replicated", "tensor parallel", "FSDP"]
    assert [each["layout"]["chosen"] for each in saved["results"]] == [True, False, False]
    assert (replicated["mesh"]["data"], tensor["mesh"]["tensor"], fsdp["mesh"]["fsdp"]) == (4, 2, 4)
    assert all(each["pictures"] == 4 and each["memory"]["fits"] for each in saved["results"])
    gathered = [each["network"]["bytes"]["all-gather"] for each in saved["results"]]
    assert fsdp["memory"]["parts"]["parameters"] < replicated["memory"]["parts"]["parameters"]
    assert gathered[2] > gathered[0]


@pytest.mark.slow
def test_only_gradients_travel_between_slices(tmp_path):
    """Two slices hold the same parameters, each sharded over its own four chips only."""
    pytest.importorskip("libtpu")
    file = tmp_path / "slices.json"
    process = plan(
        TINY, "--topology=v5e:2x2", "--slices=2", "--stream=draw", "--rows_per_device=4",
        "--config.mesh.data=1", "--config.mesh.fsdp=4", f"--json={file}",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    (result,) = json.loads(file.read_text())["results"]
    assert (result["chips"], result["mesh"]["slices"], result["mesh"]["fsdp"]) == (8, 2, 4)
    within = sum(result["network"]["bytes"].values())
    # Gradients, in part as bfloat16 and never gathered; parameters stay within their slice.
    own = result["memory"]["parts"]["parameters"]
    assert own / 2 < result["network"]["dcn"] < 2 * own
    assert result["network"]["dcn"] < within
