#!/usr/bin/env python3
"""Runs a training command as several processes on this machine, in the way it would run on several hosts.

Examples:

    # Two processes with four virtual devices each (CPU):
    python launchers/local.py --processes=2 --devices=4 -- \\
        python -m tuna_jax.train --config=experiments/emoji/demo.py --workdir=runs/emoji

    # Print the commands that this would start:
    python launchers/local.py --processes=2 --devices=4 --dry_run -- python -m tuna_jax.train ...

Every line of output starts with the number of its process. Ctrl-C and SIGTERM are forwarded to all processes: the run
saves and ends; a second signal ends it immediately. If a process fails, the others are stopped. The exit code is the
worst of the processes that ended by themselves. The same command again resumes from the last checkpoint.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

import launching


def main(arguments: Sequence[str]) -> int:
    """Parses the arguments, and runs or prints the commands."""
    parser = launching.parser(__doc__)
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default: 2)")
    parser.add_argument(
        "--devices",
        type=int,
        help="virtual CPU devices per process (default: the devices of this machine)",
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port of process 0 (default: a free port)"
    )
    parser.add_argument(
        "--compile_cache",
        help="folder of compiled programs (default: $JAX_COMPILATION_CACHE_DIR, or else .cache/jax)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=10.0,
        help="seconds until the other processes are killed after one has failed (default: 10)",
    )
    try:
        options, command = launching.parse(parser, arguments)
        for name in ("processes", "devices"):
            if getattr(options, name) is not None and getattr(options, name) < 1:
                raise launching.LaunchError(f"--{name} must be at least 1")
        extra = launching.settings(options.env)
    except launching.LaunchError as error:
        launching.fail(error)
    if not options.port and not options.dry_run:
        options.port = _free_port()
    environments = [_environment(options, extra, process) for process in range(options.processes)]
    if options.dry_run:
        for variables in environments:
            print(" ".join(launching.assignments(variables)), launching.shell(command))
        return 0
    return _Processes(command, environments, options.grace).wait()


def _environment(options, extra: dict[str, str], process: int) -> dict[str, str]:
    """The environment variables of one process, in addition to those of this program."""
    cache = options.compile_cache or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    variables = launching.environment(
        "", cache or str(launching.ROOT / ".cache" / "jax"), None, extra
    )
    port = options.port or "FREE_PORT"
    variables |= {
        launching.COORDINATOR: f"127.0.0.1:{port}",
        launching.PROCESSES: str(options.processes),
        launching.PROCESS: str(process),
    }
    if options.devices:
        variables["JAX_PLATFORMS"] = "cpu"
        # Threads of XLA's pool. A collective occupies one until all of its devices have arrived; with only as many
        # threads as devices, concurrent collectives can occupy all of them and deadlock.
        variables["NPROC"] = str(16 * options.devices)
        flags = variables.get("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
        virtual = [f"--xla_force_host_platform_device_count={options.devices}", *_PATIENCE]
        variables["XLA_FLAGS"] = " ".join([flags, *virtual]).strip()
    return variables


# Virtual devices wait for each other on few cores; XLA's timeout of 40 seconds would end a run on a busy machine.
_PATIENCE = (
    "--xla_cpu_collective_call_terminate_timeout_seconds=1800",
    "--xla_cpu_collective_timeout_seconds=1800",
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Processes:
    """The running processes, their output, and their exit codes."""

    def __init__(self, command: Sequence[str], environments: list[dict[str, str]], grace: float):
        self._grace = grace
        self._signals = 0
        self._running: dict[int, subprocess.Popen[str]] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        try:
            for process, variables in enumerate(environments):
                # A separate session: Ctrl-C reaches it only through `_forward`, and it is killed with its children.
                self._running[process] = subprocess.Popen(
                    command,
                    env={**os.environ, **variables},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
        except OSError as error:
            self._kill()
            launching.fail(f"{command[0]} cannot be started: {error}")
        self._readers = [
            threading.Thread(target=_copy, args=(process, running.stdout))
            for process, running in self._running.items()
        ]
        for reader in self._readers:
            reader.start()

    def wait(self) -> int:
        """Waits for all processes; returns the worst exit code of those that this program did not stop."""
        worst, failed_at = 0, None
        while self._running:
            for process, running in list(self._running.items()):
                code = running.poll()
                if code is None:
                    continue
                del self._running[process]
                if failed_at is None:
                    worst = max(worst, code if code >= 0 else 128 - code)
                if code and failed_at is None:
                    print(f"process {process} ended with {code}; stopping the others", flush=True)
                    failed_at = time.monotonic()
                    self._signal(signal.SIGTERM)
            # Processes that wait for the failed one can no longer save, and JAX's handler of SIGTERM does not end them.
            if failed_at is not None and time.monotonic() - failed_at > self._grace:
                self._kill()
            time.sleep(0.05)
        for reader in self._readers:
            reader.join(timeout=5)
        return worst

    def _forward(self, number: int, frame: object) -> None:
        del frame
        self._signals += 1
        if self._signals > 1:
            self._kill()
        else:
            self._signal(number)

    def _signal(self, number: int) -> None:
        for running in list(self._running.values()):
            if running.poll() is None:
                running.send_signal(number)

    def _kill(self) -> None:
        for running in list(self._running.values()):
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)


_OUTPUT = threading.Lock()


def _copy(process: int, stream: IO[str] | None) -> None:
    """Copies lines, including updates of a progress bar, with the number of the process in front."""
    assert stream is not None
    for line in stream:
        if line.strip():
            with _OUTPUT:
                sys.stdout.write(f"[{process}] {line.rstrip()}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
