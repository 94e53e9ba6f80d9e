#!/usr/bin/env python3
"""Runs a training command on all hosts of one or more Cloud TPU slices: creates them, sets them up, trains, and
restarts after preemption.

Examples:

    # 16 chips of v5e, queued until they are available, cheap and preemptible:
    python launchers/tpu_vm.py --name=tuna-7b --accelerator_type=v5litepod-16 --zone=us-west4-a --spot -- \\
        python -m tuna_jax.train --config=experiments/tuna/tuna_7b_stage1.py --workdir=gs://BUCKET/tuna-7b

    # Follow its log; end it and delete the slices (the files stay):
    python launchers/tpu_vm.py --name=tuna-7b --zone=us-west4-a --logs
    python launchers/tpu_vm.py --name=tuna-7b --zone=us-west4-a --delete

    # Print the commands that this would run:
    python launchers/tpu_vm.py --dry_run ...

It requires gcloud with a login. The same command again uses the existing slices, stops the run with this name on them
(which saves), and resumes from the last checkpoint. The code is that of this clone, including changes of tracked files,
or with --repository and --revision a clone of those. The hosts run the command in the background and keep its output in
~/.tuna_jax/NAME.log, so the run outlives this program and a lost connection. The slices are kept at the end and cost
money until they are deleted (--delete with a training command deletes them when it has succeeded).

--slices=N makes N slices that train together; the service tells every host its place (MEGASCALE_... in its metadata).
Hosts with --internal_ips have no external address: the subnetwork needs Private Google Access and Cloud NAT, for
packages, and this machine is in the same network or uses --iap.

The Cloud TPU API, which this uses, gets no new features and has no tpu7x: that is gke.py's.

Secrets: with --secret HF_TOKEN=NAME every host reads the newest version of NAME from Secret Manager.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import launching
import supervisor
import tpu_vm_commands

# States of a slice that no longer exists, of TPU VMs and of queued resources.
LOST = {"PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDED", "SUSPENDING", "FAILED", "DELETING", ""}
READY = {"READY", "ACTIVE"}
# Exit code of ssh for a lost connection: the slice may be disappearing.
_DISCONNECTED = 255


def main(arguments: Sequence[str]) -> int:
    """Parses the arguments, and runs or prints the commands."""
    try:
        options, command = launching.parse(_parser(), arguments, without=("logs", "delete"))
        launching.dns_name(options.name)
        if bool(options.repository) != bool(options.revision):
            raise launching.LaunchError("--repository and --revision must be used together")
        if options.slices < 1:
            raise launching.LaunchError(f"--slices={options.slices} must be at least 1")
        for flag, used in (("slices", options.slices > 1), ("iap", options.iap)):
            if options.direct and used:
                raise launching.LaunchError(f"--{flag} requires a queued resource; remove --direct")
        if command:
            tpu_vm_commands.kind(options.accelerator_type)
        work = _Run(options, tpu_vm_commands.Commands(options, command))
        if options.logs:
            return work.one(work.commands.follow())
        if not command:
            return work.one(work.commands.delete())
        return work.print() if options.dry_run else work.run()
    except launching.LaunchError as error:
        launching.fail(error)


def _parser() -> argparse.ArgumentParser:
    parser = launching.parser(__doc__)
    add = parser.add_argument
    add("--name", required=True, help="name of the slices: lower-case letters, digits, dashes")
    add("--accelerator_type", default="", help="v5litepod-16, v5p-128, v6e-64 ...")
    add("--zone", required=True, help="zone, such as us-east5-a")
    add("--project", help="Google Cloud project (default: that of gcloud)")
    add("--slices", type=int, default=1, help="number of slices (default: 1)")
    add(
        "--direct",
        action="store_true",
        help="create a TPU VM directly, instead of a queued resource",
    )
    add("--spot", action="store_true", help="preemptible, at a lower price")
    add("--reserved", action="store_true", help="use the reservation of the project")
    add("--network", help="VPC network (default: that of the project)")
    add("--subnetwork", help="subnetwork of the VPC network")
    add("--internal_ips", action="store_true", help="hosts without external addresses, see above")
    add("--iap", action="store_true", help="reach the hosts through Identity-Aware Proxy")
    add("--service_account", help="service account of the hosts (default: that of Compute Engine)")
    add(
        "--runtime_version",
        help="software of the TPU VM (default: by kind of TPU, see docs/pods.md)",
    )
    add(
        "--repository",
        help="clone this repository instead of sending this clone; requires --revision",
    )
    add("--revision", help="commit, tag or branch of --repository")
    add(
        "--secret",
        action="append",
        default=[],
        metavar="NAME=SECRET",
        help="see above; may be repeated",
    )
    add("--compile_cache", help="folder of compiled programs (default: WORKDIR/compile_cache)")
    add(
        "--buckets",
        choices=("mount", "direct"),
        default="mount",
        help="gs:// addresses become folders (default), or reach the program as they are",
    )
    add(
        "--file_cache_gb",
        type=int,
        default=30,
        metavar="N",
        help="gigabytes of each host's boot disk for data that was read (default: 30; 0: none)",
    )
    add(
        "--retries",
        type=int,
        default=10,
        help="number of restarts after preemption (default: 10); with --workdir=gs://..., without a new checkpoint",
    )
    add(
        "--poll",
        type=float,
        default=30.0,
        help="seconds between two checks of the state (default: 30)",
    )
    add("--logs", action="store_true", help="follow the log of the run, from its start")
    add(
        "--delete",
        action="store_true",
        help="delete the slices after training has succeeded; without a training command, now",
    )
    return parser


class _Run:
    """Runs or prints the commands."""

    def __init__(self, options: Any, commands: tpu_vm_commands.Commands):
        self.options = options
        self.commands = commands

    def one(self, words: Sequence[str]) -> int:
        """Runs or prints one command."""
        if self.options.dry_run:
            print(launching.shell(words))
            return 0
        return self._do(words)

    def print(self) -> int:
        """Prints all commands in the order of a first start."""
        commands = self.commands
        steps = [("is it there?", commands.describe()), ("if not", commands.create())]
        steps += [("the code", words) for words in commands.send()]
        steps += [("set up", commands.install()), ("start", commands.start())]
        steps.append(("wait for the end, again after a lost connection", commands.follow()))
        steps.append(("after preemption, and then from the top", commands.delete()))
        for title, words in steps:
            print(f"# {title}\n{launching.shell(words)}\n")
        return 0

    def run(self) -> int:
        """Runs until training has ended; returns its exit code."""
        failures, step = 0, self._newest()
        while True:
            self._ensure()
            code = self._work()
            state = self._settled(code)
            again = (supervisor.STOPPED, supervisor.STALLED, _DISCONNECTED)
            if state in READY and code not in again:
                if code == 0 and self.options.delete:
                    self._do(self.commands.delete())
                return code
            if state not in READY:
                print(f"{self.options.name} is {state or 'gone'}: preempted", flush=True)
            before, step = step, self._newest()
            failures = 0 if step > before else failures + 1
            if failures > self.options.retries:
                print(f"giving up after {self.options.retries} retries", file=sys.stderr)
                return code or 1
            print(f"restart; {failures} of {self.options.retries} without progress", flush=True)

    def _work(self) -> int:
        """Runs set-up and training; returns the exit code of the first command that fails, or 0."""
        commands = self.commands
        for words in [*commands.send(), commands.install(), commands.start()]:
            code = self._do(words)
            if code:
                return code
        code = self._do(commands.follow())
        for _ in range(self.options.retries):
            if code != _DISCONNECTED or self._settled(code) not in READY:
                break
            # The run does not depend on the connection. If its host has restarted, this finds it stopped: 143.
            print("the connection was lost; looking for the run", flush=True)
            code = self._do(commands.follow())
        return code

    def _ensure(self) -> None:
        """Waits until the slices are ready; creates them if they do not exist, and again if they are lost."""
        created = False
        while True:
            state = self._state()
            if state in READY:
                return
            if state in LOST:
                describe = launching.shell(self.commands.describe())
                if created and state == "FAILED":
                    raise launching.LaunchError(
                        f"{self.options.name} could not be created; see: {describe}"
                    )
                if state:
                    self._do(self.commands.delete())
                if self._do(self.commands.create()):
                    raise launching.LaunchError("gcloud could not create the slice; see above")
                created = True
            print(f"{self.options.name}: waiting ({self._state() or 'creating'})", flush=True)
            time.sleep(self.options.poll)

    def _settled(self, code: int) -> str:
        """The state; after a stop or a lost connection, when it has had time to change."""
        state = self._state()
        checks = 3 if code in (supervisor.STOPPED, _DISCONNECTED) else 0
        while state in READY and checks:
            time.sleep(self.options.poll)
            state, checks = self._state(), checks - 1
        return state

    def _state(self) -> str:
        """The state in one word; empty if the slices do not exist."""
        result = self._ask(self.commands.describe())
        if result.returncode and "NOT_FOUND" not in result.stderr:
            raise launching.LaunchError(f"gcloud failed: {result.stderr.strip()}")
        return "" if result.returncode else result.stdout.strip()

    def _newest(self) -> int:
        """The step of the newest checkpoint; 0 before the first, or if this machine cannot see it."""
        words = self.commands.checkpoints()
        if not words:
            return 0
        listed = self._ask(words).stdout.split()
        names = [line.rstrip("/").rpartition("/")[2] for line in listed]
        return max((int(name) for name in names if name.isdigit()), default=0)

    def _do(self, words: Sequence[str]) -> int:
        print(f"+ {launching.shell(words)}", flush=True)
        return self._call(words, capture=False).returncode

    def _ask(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return self._call(words, capture=True)

    def _call(self, words: Sequence[str], capture: bool) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(words, cwd=launching.ROOT, capture_output=capture, text=True)
        except FileNotFoundError:
            raise launching.LaunchError(
                f"{words[0]} is not installed on this machine; https://cloud.google.com/sdk/docs/install"
            ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
