"""What launchers/gke.py --xpk hands to XPK, with an xpk that treats it as the real one does.

The real one (AI-Hypercomputer/xpk, June 2026) pastes the command into an indented line of a YAML manifest, runs it in
the background of bash, and forwards SIGTERM to the last process that it started.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

XPK = """\
#!{python}
import argparse, os, pathlib, sys
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("noun", choices=["workload"])
parser.add_argument("verb", choices=["create"])
for flag in ("workload", "command", "tpu-type", "cluster", "docker-image"):
    parser.add_argument("--" + flag, required=True)
parser.add_argument("--priority", choices=["very-low", "low", "medium", "high", "very-high"])
for flag in ("project", "zone", "max-restarts", "restart-on-exit-codes"):
    parser.add_argument("--" + flag)
for flag in ("num-slices", "termination-grace-period-seconds"):
    parser.add_argument("--" + flag, type=int)
for flag in ("env", "storage"):
    parser.add_argument("--" + flag, action="append", default=[])
options = parser.parse_args()
[int(code) for code in options.restart_on_exit_codes.split(",")]
variables = "".join(
    "\\n        - name: " + pair.split("=", 1)[0] + '\\n          value: "' + pair.split("=", 1)[1] + '"'
    for pair in options.env
)
folder = pathlib.Path(os.environ["FAKE"])
(folder / "manifest").write_text(f'''\\
spec:
    containers:
      - name: jax-tpu
        env: {{variables}}
        command:
        - bash
        - -c
        - |
          echo start;
          _sigterm() (kill -SIGTERM $! 2>/dev/null;);
          trap _sigterm SIGTERM;
          ({{options.command}}) & PID=$!;
          while kill -0 $PID 2>/dev/null;
              do sleep 0.05;
          done;
          wait $PID;
          EXIT_CODE=$?;
          exit $EXIT_CODE
        image: {{options.docker_image}}
''')
"""


@pytest.fixture
def pod(tmp_path):
    """Starts the pod's command for a program."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "xpk").write_text(XPK.format(python=sys.executable))
    (tmp_path / "bin" / "xpk").chmod(0o755)
    (tmp_path / "run" / "checkpoints" / "00000100").mkdir(parents=True)

    def start(program):
        own = ["--name=run", "--xpk", "--cluster=c", "--image=i:1", "--topology=v5p:2x2x1"]
        own += ["--priority=high", "--storage=shared", "--env=WORDS=two words"]
        command = ["sh", "-c", program, "it's: {a} #b", f"--workdir={tmp_path / 'run'}"]
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        launch = [sys.executable, str(ROOT / "launchers" / "gke.py"), *own, "--", *command]
        environment = {**os.environ, "PATH": path, "FAKE": str(tmp_path)}
        result = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=60)
        assert result.returncode == 0, result.stderr
        (container,) = yaml.safe_load((tmp_path / "manifest").read_text())["spec"]["containers"]
        assert container["image"] == "i:1", "the command has ended the block"
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        assert variables["TUNA_JAX_COORDINATOR"] == "auto" and variables["WORDS"] == "two words"
        return subprocess.Popen(
            container["command"], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )

    return start


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ('echo "$0"; exit 0', 0),
        ('echo "$0"; exit 2', 2),
        ('echo "$0"; exit 1', 1),
        ('echo "$0"; mkdir run/checkpoints/00000200; exit 1', 85),
    ],
)
def test_the_command_reaches_the_pod_and_its_exit_code_the_restarter(pod, program, code):
    running = pod(program)
    output, _ = running.communicate(timeout=60)
    assert output.splitlines()[:2] == ["start", "it's: {a} #b"]
    assert running.returncode == code


def test_a_stopped_run_saves_and_is_restarted(pod):
    """XPK restarts at exit codes of 127 and above."""
    running = pod("trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.01; done")
    assert [running.stdout.readline() for _ in range(2)] == ["start\n", "up\n"]
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    assert output == "saved\n" and running.returncode == 143
