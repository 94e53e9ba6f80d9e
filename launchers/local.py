#!/usr/bin/env python3
"""Runs a training command as several processes on this machine, as it would run on several hosts.

Examples:

    # Two processes with four virtual devices each (CPU):
    python launchers/local.py --processes=2 --devices=4 -- \\
        python -m tuna_jax.train --config=experiments/emoji/demo.py --workdir=runs/emoji

    # What that would start:
    python launchers/local.py --processes=2 --devices=4 --dry_run -- python -m tuna_jax.train ...

Every line of output begins with the number of its process. Ctrl-C and SIGTERM are handed on to all: the run saves and
ends; a second one ends it at once. If a process fails, the others are ended. The exit code is the worst of those that
ended by themselves. The same command again goes on from the last checkpoint.
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
    """Parses, and runs or prints."""
    parser = launching.parser(__doc__)
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument(
        "--devices",
        type=int,
        help="virtual CPU devices of each process; without it, the machine's own",
    )
    parser.add_argument("--port", type=int, default=0, help="of process 0 (default: a free one)")
    parser.add_argument(
        "--compile_cache",
        help="folder of compiled programs (default: $JAX_COMPILATION_CACHE_DIR, else .cache/jax)",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=10.0,
        help="seconds that the others have to end after one failed (default: 10)",
    )
    try:
        options, command = launching.parse(parser, arguments)
        for name in ("processes", "devices"):
            if getattr(options, name) is not None and getattr(options, name) < 1:
                raise launching.LaunchError(f"--{name} is at least 1")
        launching.workdir(command)
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
    """What one process has beyond this program's own environment."""
    cache = options.compile_cache or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    made = launching.environment("", cache or str(launching.ROOT / ".cache" / "jax"), None, extra)
    port = options.port or "FREE_PORT"
    made |= {
        launching.COORDINATOR: f"127.0.0.1:{port}",
        launching.PROCESSES: str(options.processes),
        launching.PROCESS: str(process),
    }
    if options.devices:
        made["JAX_PLATFORMS"] = "cpu"
        # Threads of XLA's pool. A collective holds one until all of its devices have come: with no more threads than
        # devices, collectives that are under way at once can hold them all, and nobody comes.
        made["NPROC"] = str(16 * options.devices)
        flags = made.get("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
        virtual = [f"--xla_force_host_platform_device_count={options.devices}", *_PATIENCE]
        made["XLA_FLAGS"] = " ".join([flags, *virtual]).strip()
    return made


# Virtual devices wait for each other on few cores: XLA's 40 seconds end a run on a busy machine.
_PATIENCE = (
    "--xla_cpu_collective_call_terminate_timeout_seconds=1800",
    "--xla_cpu_collective_timeout_seconds=1800",
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Processes:
    """The started processes, their output, and what becomes of them."""

    def __init__(self, command: Sequence[str], environments: list[dict[str, str]], grace: float):
        self._grace = grace
        self._signals = 0
        self._running: dict[int, subprocess.Popen[str]] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hand_on)
        try:
            for process, variables in enumerate(environments):
                # A session of its own: Ctrl-C reaches it through `_hand_on` alone, and it is ended with its children.
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
        """Until all have ended; the exit code is the worst of those that were not ended from here."""
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
                    print(f"process {process} ended with {code}; ending the others", flush=True)
                    failed_at = time.monotonic()
                    self._signal(signal.SIGTERM)
            # Those that wait for the one that failed can no longer save: JAX's handler of SIGTERM does not end them.
            if failed_at is not None and time.monotonic() - failed_at > self._grace:
                self._kill()
            time.sleep(0.05)
        for reader in self._readers:
            reader.join(timeout=5)
        return worst

    def _hand_on(self, number: int, frame: object) -> None:
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
    """Copies lines, and what a progress bar writes over itself, with the process's number before each."""
    assert stream is not None
    for line in stream:
        if line.strip():
            with _OUTPUT:
                sys.stdout.write(f"[{process}] {line.rstrip()}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
