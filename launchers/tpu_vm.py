#!/usr/bin/env python3
"""Runs a training command on all hosts of a Cloud TPU slice: creates it, sets it up, trains, and restarts after
preemption.

Examples:

    # 16 chips of v5e, queued until they are available, cheap and preemptible:
    python launchers/tpu_vm.py --name=tuna-7b --accelerator_type=v5litepod-16 --zone=us-west4-a --spot -- \\
        python -m tuna_jax.train --config=experiments/tuna/tuna_7b_stage1.py --workdir=gs://BUCKET/tuna-7b

    # Print the commands that this would run:
    python launchers/tpu_vm.py --dry_run ...

It requires gcloud with a login. The same command again uses the existing slice, stops the run with this name on it
(which saves), and resumes from the last checkpoint. The code is that of this clone, including changes of tracked files,
or with --repository and --revision a clone of those. The slice is kept at the end and costs money until it is deleted
(--delete deletes it at the end of training).

Secrets: with --secret HF_TOKEN=NAME every host reads the newest version of NAME from Secret Manager.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import launching

# States of a slice that no longer exists, of TPU VMs and of queued resources.
LOST = {"PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDED", "SUSPENDING", "FAILED", "DELETING", ""}
READY = {"READY", "ACTIVE"}
# Exit codes of the supervisor for a stopped run, and of ssh for a lost connection: the slice may be disappearing.
_STOPPED, _DISCONNECTED = 143, 255


def main(arguments: Sequence[str]) -> int:
    """Parses the arguments, and runs or prints the commands."""
    parser = launching.parser(__doc__)
    add = parser.add_argument
    add("--name", required=True, help="name of the slice: lower-case letters, digits, dashes")
    add("--accelerator_type", required=True, help="v5litepod-16, v5p-128, v6e-64, tpu7x-128 ...")
    add("--zone", required=True, help="zone, such as us-east5-a")
    add("--project", help="Google Cloud project (default: that of gcloud)")
    add(
        "--direct",
        action="store_true",
        help="create a TPU VM directly, instead of a queued resource",
    )
    add("--spot", action="store_true", help="preemptible, at a lower price")
    add("--reserved", action="store_true", help="use the reservation of the project")
    add("--network", help="VPC network (default: that of the project)")
    add("--subnetwork", help="subnetwork of the VPC network")
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
        "--retries",
        type=int,
        default=10,
        help="number of restarts after preemption (default: 10)",
    )
    add(
        "--poll",
        type=float,
        default=30.0,
        help="seconds between two checks of the state (default: 30)",
    )
    add("--delete", action="store_true", help="delete the slice after training has succeeded")
    try:
        options, command = launching.parse(parser, arguments)
        launching.dns_name(options.name)
        if bool(options.repository) != bool(options.revision):
            raise launching.LaunchError("--repository and --revision must be used together")
        work = _Slice(options, command)
        return work.print() if options.dry_run else work.run()
    except launching.LaunchError as error:
        launching.fail(error)


class _Slice:
    """A slice and the commands that are run for it."""

    def __init__(self, options, command: Sequence[str]):
        self.options = options
        mounted, self._buckets = launching.mounted([options.compile_cache or "", *command])
        cache, *command = mounted
        folder = launching.shared_workdir(command)
        kinds = [
            t for t in launching.TPUS.values() if options.accelerator_type.startswith(t.prefix)
        ]
        if not kinds:
            prefixes = ", ".join(f"{t.prefix}N" for t in launching.TPUS.values())
            raise launching.LaunchError(
                f"--accelerator_type={options.accelerator_type} is unknown; the known types are {prefixes}"
            )
        self.tpu = kinds[0]
        self._archive = Path(tempfile.gettempdir()) / f"{options.name}.tar.gz"
        variables = launching.environment(
            folder, cache, self.tpu, launching.settings(options.env)
        ) | {launching.COORDINATOR: "auto"}
        self._training = _training(command, variables, _secrets(options.secret), options.name)

    # ---- the commands ----------------------------------------------------------------------------

    def _gcloud(self, *words: str) -> list[str]:
        location = [f"--zone={self.options.zone}"]
        if self.options.project:
            location.append(f"--project={self.options.project}")
        return ["gcloud", "compute", "tpus", *words, *location]

    def describe(self) -> list[str]:
        """Prints the state in one word."""
        if self.options.direct:
            return self._gcloud("tpu-vm", "describe", self.options.name, "--format=value(state)")
        name = self.options.name
        return self._gcloud("queued-resources", "describe", name, "--format=value(state.state)")

    def create(self) -> list[str]:
        """Creates the slice, or a queued resource for it."""
        options, name = self.options, self.options.name
        version = options.runtime_version or self.tpu.runtime
        words = [f"--accelerator-type={options.accelerator_type}"]
        if options.direct:
            words = ["tpu-vm", "create", name, *words, f"--version={version}"]
        else:
            words = ["queued-resources", "create", name, f"--node-id={name}", *words]
            words.append(f"--runtime-version={version}")
        words += [f"--{flag}" for flag in ("spot", "reserved") if getattr(options, flag)]
        for flag in ("network", "subnetwork", "service_account"):
            if getattr(options, flag):
                words.append(f"--{flag.replace('_', '-')}={getattr(options, flag)}")
        return self._gcloud(*words, "--quiet")

    def delete(self) -> list[str]:
        """Deletes the slice."""
        if self.options.direct:
            return self._gcloud("tpu-vm", "delete", self.options.name, "--quiet")
        return self._gcloud("queued-resources", "delete", self.options.name, "--force", "--quiet")

    def _ssh(self, script: str) -> list[str]:
        name = self.options.name
        return self._gcloud("tpu-vm", "ssh", name, "--worker=all", f"--command={script}")

    def send(self) -> list[list[str]]:
        """Copies the code to every host."""
        options = self.options
        if options.repository:
            clone = (
                f"rm -rf tuna_jax.new && git clone --quiet {shlex.quote(options.repository)} tuna_jax.new && "
                f"git -C tuna_jax.new checkout --quiet {shlex.quote(options.revision)} && {_REPLACE}"
            )
            return [self._ssh(clone)]
        unpack = (
            "rm -rf tuna_jax.new && mkdir tuna_jax.new && "
            f"tar -xzf {self._archive.name} -C tuna_jax.new && {_REPLACE}"
        )
        here = shlex.quote(str(self._archive))
        # `git stash create` makes a commit of the current tree without changing anything.
        pack = f'git archive --format=tar.gz --output={here} "$(git stash create)" || git archive '
        pack += f"--format=tar.gz --output={here} HEAD"
        target = f"{options.name}:{self._archive.name}"
        return [
            ["sh", "-c", pack],
            self._gcloud("tpu-vm", "scp", str(self._archive), target, "--worker=all"),
            self._ssh(unpack),
        ]

    def install(self) -> list[str]:
        """Installs Python and the requirements, again if they change, and mounts buckets."""
        mounts = [_MOUNT.format(bucket=bucket, folder=launching.MOUNTS) for bucket in self._buckets]
        return self._ssh("\n".join([_INSTALL, *([_GCSFUSE, *mounts] if mounts else [])]))

    def train(self) -> list[str]:
        """Runs the training command on every host."""
        return self._ssh(self._training)

    # ---- running them ----------------------------------------------------------------------------

    def print(self) -> int:
        """Prints all commands in the order of a first start."""
        steps = [("is it there?", self.describe()), ("if not", self.create())]
        steps += [("the code", words) for words in self.send()]
        steps += [("set up", self.install()), ("train", self.train())]
        steps.append(("after preemption, and then from the top", self.delete()))
        for title, words in steps:
            print(f"# {title}\n{launching.shell(words)}\n")
        return 0

    def run(self) -> int:
        """Runs until training has ended; returns its exit code."""
        code = 1
        for attempt in range(self.options.retries + 1):
            if attempt:
                print(f"restart {attempt} of {self.options.retries}", flush=True)
            self._ensure()
            code = self._work()
            state = self._settled(code)
            if state in READY and code not in (_STOPPED, _DISCONNECTED):
                if code == 0 and self.options.delete:
                    self._do(self.delete())
                return code
            if state not in READY:
                print(f"{self.options.name} is {state or 'gone'}: preempted", flush=True)
        print(f"giving up after {self.options.retries} retries", file=sys.stderr)
        return code or 1

    def _work(self) -> int:
        """Runs set-up and training; returns the exit code of the first command that fails, or 0."""
        for words in [*self.send(), self.install(), self.train()]:
            code = self._do(words)
            if code:
                return code
        return 0

    def _ensure(self) -> None:
        """Waits until the slice is ready; creates it if it does not exist, and again if it is lost."""
        created = False
        while True:
            state = self._state()
            if state in READY:
                return
            if state in LOST:
                if created and state == "FAILED":
                    raise launching.LaunchError(
                        f"{self.options.name} could not be created; see: {launching.shell(self.describe())}"
                    )
                if state:
                    self._do(self.delete())
                if self._do(self.create()):
                    raise launching.LaunchError("gcloud could not create the slice; see above")
                created = True
            print(f"{self.options.name}: waiting ({self._state() or 'creating'})", flush=True)
            time.sleep(self.options.poll)

    def _settled(self, code: int) -> str:
        """The state; after a stop or a lost connection, when it has had time to change."""
        state = self._state()
        checks = 3 if code in (_STOPPED, _DISCONNECTED) else 0
        while state in READY and checks:
            time.sleep(self.options.poll)
            state, checks = self._state(), checks - 1
        return state

    def _state(self) -> str:
        """The state in one word; empty if the slice does not exist."""
        result = subprocess.run(self.describe(), capture_output=True, text=True)
        if result.returncode and "NOT_FOUND" not in result.stderr:
            raise launching.LaunchError(f"gcloud failed: {result.stderr.strip()}")
        return "" if result.returncode else result.stdout.strip()

    def _do(self, words: Sequence[str]) -> int:
        print(f"+ {launching.shell(words)}", flush=True)
        try:
            return subprocess.run(words, cwd=launching.ROOT).returncode
        except FileNotFoundError:
            raise launching.LaunchError(
                f"{words[0]} is not installed on this machine; https://cloud.google.com/sdk/docs/install"
            ) from None


# Replaces the code and keeps its virtual environment.
_REPLACE = (
    "{ mv tuna_jax/.venv tuna_jax.new/ 2>/dev/null || true; } && rm -rf tuna_jax && "
    "mv tuna_jax.new tuna_jax"
)

_INSTALL = """\
set -e
cd ~/tuna_jax
wanted="$(cat requirements.txt pyproject.toml constraints.txt | cksum)"
if [ "$(cat .venv/ready 2>/dev/null)" != "$wanted" ]; then
  python=
  for candidate in python3.12 python3.11; do
    if [ -z "$python" ] && command -v $candidate >/dev/null; then python=$candidate; fi
  done
  if [ -z "$python" ]; then
    sudo apt-get -qq update && sudo apt-get -qq install -y python3.11 python3.11-venv
    python=python3.11
  fi
  $python -m venv .venv
  .venv/bin/pip install --quiet --constraint constraints.txt --editable '.[tpu]'
  echo "$wanted" > .venv/ready
fi"""


_GCSFUSE = """\
if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee $key >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
fi"""

_MOUNT = """\
sudo mkdir -p {folder}/{bucket} && sudo chown "$USER" {folder}/{bucket}
mountpoint -q {folder}/{bucket} || gcsfuse --implicit-dirs {bucket} {folder}/{bucket}"""


def _secrets(texts: Sequence[str]) -> dict[str, str]:
    """`--secret NAME=SECRET` options: variable -> name in Secret Manager."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, _, secret = text.partition("=")
        pairs[name] = secret
        if not name.isidentifier() or not secret:
            raise launching.LaunchError(
                f"--secret {name} is not VARIABLE=SECRET, the name of a secret in Secret Manager (not its value)"
            )
    return pairs


def _training(
    command: Sequence[str], variables: dict[str, str], secrets: dict[str, str], name: str
) -> str:
    """The script of one host: waits until an earlier run with this name has saved and ended, then starts this one."""
    pid = f"~/.tuna_jax/{name}.pid"
    before = [
        "set -e",
        "cd ~/tuna_jax",
        "mkdir -p ~/.tuna_jax",
        f'former="$(cat {pid} 2>/dev/null || true)"',
        'if [ -n "$former" ] && grep -qs tuna_jax "/proc/$former/cmdline"; then',
        '  kill -TERM "$former"',
        '  timeout 900 tail --pid="$former" -f /dev/null',
        "fi",
        f"echo $$ > {pid}",
        'export PATH="$HOME/tuna_jax/.venv/bin:$PATH"',
        *(f"export {assignment}" for assignment in launching.assignments(variables)),
        *(
            f'{variable}="$(gcloud secrets versions access latest --secret={shlex.quote(secret)})"; export {variable}'
            for variable, secret in sorted(secrets.items())
        ),
        "set +e",
    ]
    return launching.supervised(command, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
