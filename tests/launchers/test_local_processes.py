"""launchers/local.py with small programs instead of training."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LOCAL = Path(__file__).parents[2] / "launchers" / "local.py"


def start(program, *arguments, **environment):
    command = [sys.executable, str(LOCAL), *arguments, "--", sys.executable, "-c", program]
    return subprocess.Popen(
        [*command, "--workdir=x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def test_each_process_has_its_variables():
    names = [
        "TUNA_JAX_COORDINATOR",
        "TUNA_JAX_PROCESSES",
        "TUNA_JAX_PROCESS",
        "JAX_PLATFORMS",
        "XLA_FLAGS",
    ]
    program = f"import os; print(*(os.environ[name] for name in {names}), sep=' | ')"
    flags = "--mine=1 --xla_force_host_platform_device_count=2 "
    flags += "--xla_cpu_collective_call_terminate_timeout_seconds=1800 --xla_cpu_collective_timeout_seconds=1800"
    running = start(program, "--processes=3", "--devices=2", "--port=5005", XLA_FLAGS="--mine=1")
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert sorted(output.splitlines()) == [
        f"[{n}] 127.0.0.1:5005 | 3 | {n} | cpu | {flags}" for n in range(3)
    ]


@pytest.mark.parametrize("failure", ["sys.exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_failed_process_stops_the_others(failure):
    # Process 0 ignores SIGTERM, like a process that waits in a collective.
    program = (
        "import os, signal, sys, time\n"
        "if os.environ['TUNA_JAX_PROCESS'] == '1':\n"
        f"    {failure}\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "time.sleep(300)"
    )
    running = start(program, "--processes=2", "--grace=0.2")
    output, _ = running.communicate(timeout=60)
    assert running.returncode == (3 if "exit" in failure else 137)
    assert "process 1 ended with" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_forwarded_to_all(number):
    program = (
        "import os, signal, sys, time\n"
        "def save(n, frame): print('saved', n); sys.exit(0)\n"
        f"signal.signal({int(number)}, save)\n"
        "print('up', flush=True)\n"
        "time.sleep(300)"
    )
    running = start(program, "--processes=2")
    assert sorted(running.stdout.readline() for _ in range(2)) == ["[0] up\n", "[1] up\n"]
    running.send_signal(number)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert sorted(output.splitlines()) == [f"[{n}] saved {int(number)}" for n in range(2)]


def test_a_second_signal_kills():
    program = (
        "import signal, time\n"
        "def slow(n, frame): print('saving', flush=True); time.sleep(300)\n"
        "signal.signal(signal.SIGTERM, slow)\n"
        "print('up', flush=True)\n"
        "time.sleep(300)"
    )
    running = start(program, "--processes=1")
    for line in ("[0] up\n", "[0] saving\n"):
        assert running.stdout.readline() == line
        running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 137


def test_a_missing_program_is_an_error():
    command = [sys.executable, str(LOCAL), "--", "no-such-python", "--workdir=x"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "no-such-python" in result.stderr
