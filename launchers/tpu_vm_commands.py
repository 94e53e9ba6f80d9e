"""The commands of gcloud and the scripts of hosts with which tpu_vm.py runs a training command."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import launching
import supervisor


def kind(accelerator_type: str) -> launching.Tpu:
    """The kind of TPU of an accelerator type such as v5p-128.

    Raises:
      LaunchError: it is unknown, or the Cloud TPU API does not offer it.
    """
    offered = [tpu for tpu in launching.TPUS.values() if tpu.runtime]
    for tpu in launching.TPUS.values():
        if accelerator_type.startswith(tpu.prefix):
            if tpu.runtime:
                return tpu
            raise launching.LaunchError(
                f"--accelerator_type={accelerator_type}: the Cloud TPU API does not offer {tpu.name}; use "
                f"launchers/gke.py --topology={tpu.name}:{'x'.join('4' * tpu.axes)}"
            )
    prefixes = ", ".join(f"{tpu.prefix}N" for tpu in offered)
    raise launching.LaunchError(
        f"--accelerator_type={accelerator_type} is unknown; the known types are {prefixes}"
    )


class Commands:
    """The commands, as lists of words.

    Args:
      options: of tpu_vm.py.
      command: the training command; empty if only `describe`, `follow` and `delete` are used.
    """

    def __init__(self, options: Any, command: Sequence[str]):
        self._options = options
        self._archive = Path(tempfile.gettempdir()) / f"{options.name}.tar.gz"
        self._workdir = launching.workdir(command) if command else ""
        self._mounts: list[launching.Mount] = []
        if not command:
            return
        cache = [f"--compile_cache={options.compile_cache}"] if options.compile_cache else []
        words = [*cache, *command]
        if options.buckets == "mount":
            words, self._mounts = launching.mounted(words)
        command = words[len(cache) :]
        folder = launching.shared_workdir(command, buckets=options.buckets == "direct")
        variables = launching.environment(
            folder,
            words[0].partition("=")[2] if cache else None,
            kind(options.accelerator_type),
            launching.settings(options.env),
        ) | {launching.COORDINATOR: "auto"}
        secrets = _secrets(options.secret)
        self._training = _training(command, variables, secrets, options.slices)

    def _gcloud(self, *words: str) -> list[str]:
        location = [f"--zone={self._options.zone}"]
        if self._options.project:
            location.append(f"--project={self._options.project}")
        return ["gcloud", "compute", "tpus", *words, *location]

    def describe(self) -> list[str]:
        """Prints the state in one word."""
        name = self._options.name
        if self._options.direct:
            return self._gcloud("tpu-vm", "describe", name, "--format=value(state)")
        return self._gcloud("queued-resources", "describe", name, "--format=value(state.state)")

    def create(self) -> list[str]:
        """Creates the slice, or a queued resource for all slices."""
        options, name = self._options, self._options.name
        version = options.runtime_version or kind(options.accelerator_type).runtime
        words = [f"--accelerator-type={options.accelerator_type}"]
        if options.direct:
            words = ["tpu-vm", "create", name, *words, f"--version={version}"]
        else:
            nodes = [f"--node-id={name}"]
            if options.slices > 1:
                nodes = [f"--node-count={options.slices}", f"--node-prefix={name}"]
            words = ["queued-resources", "create", name, *nodes, *words]
            words.append(f"--runtime-version={version}")
        for flag in ("spot", "reserved", "internal_ips"):
            words += [f"--{flag.replace('_', '-')}"] if getattr(options, flag) else []
        for flag in ("network", "subnetwork", "service_account"):
            if getattr(options, flag):
                words.append(f"--{flag.replace('_', '-')}={getattr(options, flag)}")
        return self._gcloud(*words, "--quiet")

    def delete(self) -> list[str]:
        """Deletes the slices."""
        if self._options.direct:
            return self._gcloud("tpu-vm", "delete", self._options.name, "--quiet")
        return self._gcloud("queued-resources", "delete", self._options.name, "--force", "--quiet")

    def checkpoints(self) -> list[str]:
        """Lists the checkpoints; empty if they are not in a bucket."""
        if not self._workdir.startswith("gs://"):
            return []
        return ["gcloud", "storage", "ls", f"{self._workdir}/checkpoints/"]

    def _remote(self, action: str, *words: str) -> list[str]:
        """ssh or scp to all hosts of all slices, at once: they wait for each other."""
        options = self._options
        group = ["tpu-vm"] if options.direct else ["queued-resources"]
        everywhere = ["--worker=all"]
        if not options.direct:
            everywhere += ["--node=all", "--batch-size=all"]
        if options.iap:
            everywhere.append("--tunnel-through-iap")
        elif options.internal_ips:
            everywhere.append("--internal-ip")
        return self._gcloud(*group, action, *words, *everywhere)

    def _ssh(self, script: str) -> list[str]:
        return self._remote("ssh", self._options.name, f"--command={script}")

    def send(self) -> list[list[str]]:
        """Copies the code to every host."""
        options = self._options
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
        target = f"{options.name}:{self._archive.name}"
        return [
            ["sh", "-c", launching.pack(str(self._archive))],
            self._remote("scp", str(self._archive), target),
            self._ssh(unpack),
        ]

    def install(self) -> list[str]:
        """Installs Python and the requirements, again if they change, and mounts buckets."""
        mounts = [_GCSFUSE] if self._mounts else []
        for mount in self._mounts:
            settings = mount.options(self._options.file_cache_gb)
            flags = [f"--{_flag(key)}={value}" for key, value in settings.items()]
            if mount.data:
                flags += ["-o ro", f"--cache-dir=$HOME/.tuna_jax/cache/{mount.bucket}"]
            mounts.append(
                _MOUNT.format(folder=mount.folder, bucket=mount.bucket, flags=" ".join(flags))
            )
        return self._ssh("\n".join([_APT, _INSTALL, *mounts]))

    def start(self) -> list[str]:
        """Stops an earlier run of this name, which saves, and starts this one in the background of every host."""
        script = shlex.quote(self._training)
        return self._ssh(_START.format(name=self._options.name, script=script))

    def follow(self) -> list[str]:
        """Prints the log of the first host until the run has ended on all; exits with its exit code."""
        return self._ssh(_FOLLOW.format(name=self._options.name))


def _flag(key: str) -> str:
    """gcsfuse's flag for a key of its configuration file."""
    section, _, name = key.partition(":")
    short = ("kernel-list-cache-ttl-secs", "stat-cache-max-size-mb", "type-cache-max-size-mb")
    return name if name in short else f"{section}-{name}"


# Replaces the code and keeps its virtual environment.
_REPLACE = (
    "{ mv tuna_jax/.venv tuna_jax.new/ 2>/dev/null || true; } && rm -rf tuna_jax && "
    "mv tuna_jax.new tuna_jax"
)

# In its first minutes a host upgrades itself and holds apt's locks; DPkg's timeout does not cover that of the lists.
_APT = """\
apt_get() {
  tries=0
  while ! problem="$(sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 "$@" 2>&1)"; do
    tries=$((tries + 1))
    case "$problem" in
      *lock*) echo "waiting for apt's lock" ;;
      *) echo "$problem" >&2; return 1 ;;
    esac
    if [ "$tries" -ge 60 ]; then echo "$problem" >&2; return 1; fi
    sleep "${APT_PAUSE:-10}"
  done
}"""

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
    apt_get update && apt_get install -y python3.11 python3.11-venv
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
  apt_get update && apt_get install -y gcsfuse
fi"""

_MOUNT = """\
sudo mkdir -p {folder} && sudo chown "$USER" {folder}
mountpoint -q {folder} || gcsfuse --implicit-dirs {flags} {bucket} {folder}"""


# A run is a process, its log and, at its end, its exit code.
_START = """\
set -e
mkdir -p ~/.tuna_jax
run="$HOME/.tuna_jax/{name}"
former="$(cat "$run.pid" 2>/dev/null || true)"
if [ -n "$former" ] && grep -qs tuna_jax "/proc/$former/cmdline"; then
  echo "stopping the former run, which saves"
  kill -TERM "$former"
  timeout 900 tail --pid="$former" -f /dev/null
fi
rm -f "$run.code" "$run.pid"
mv -f "$run.log" "$run.former.log" 2>/dev/null || true
printf '%s' {script} > "$run.sh"
# A session of its own: it does not end with the connection. Its code is written under another name first, since
# somebody may look for it.
nohup setsid sh -c 'sh "$1.sh"; echo $? > "$1.new" && mv "$1.new" "$1.code"' tuna_jax "$run" \\
  > "$run.log" 2>&1 < /dev/null &
until [ -s "$run.pid" ]; do sleep 0.1; done"""

_FOLLOW = """\
run="$HOME/.tuna_jax/{name}"
pid="$(cat "$run.pid" 2>/dev/null)" || {{ echo "no run {name} on $(hostname)" >&2; exit 143; }}
case "$(hostname)" in
  # The other hosts of a slice; process 0 prints what there is to say.
  *-w-[1-9]*) tail --pid="$pid" -f /dev/null ;;
  *) tail --pid="$pid" -n +1 -f "$run.log" ;;
esac
# Without a code, the host was restarted.
sleep "${{FOLLOW_PAUSE:-2}}"
code="$(cat "$run.code" 2>/dev/null || echo 143)"
if [ "$code" -ne 0 ]; then
  echo "$(hostname): exit code $code; the end of its log:"
  tail -n 20 "$run.log"
fi
exit "$code\""""


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


# The service lists what a host needs to find the other slices in its metadata, as lines such as
# MEGASCALE_NUM_SLICES: '2'. libtpu and JAX read them there too; without them the slices would train separately.
_SLICES = """\
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes/tpu-env
eval "$(curl -fsS -H 'Metadata-Flavor: Google' "$metadata" |
  sed -n "s/^\\(MEGASCALE_[A-Z_]*\\): *'\\{{0,1\\}}\\([^']*\\)'\\{{0,1\\}}$/export \\1='\\2'/p")"
if [ "${{MEGASCALE_NUM_SLICES:-1}}" != {slices} ]; then
  echo "error: --slices={slices}, but this host's metadata has ${{MEGASCALE_NUM_SLICES:-no MEGASCALE_NUM_SLICES}};" \\
    "create the slices with --slices={slices} in one queued resource" >&2
  exit 2
fi"""


def _training(
    command: Sequence[str], variables: dict[str, str], secrets: dict[str, str], slices: int
) -> str:
    """The script of one host; its name without .sh is that of the run."""
    before = [
        "set -e",
        'echo $$ > "${0%.sh}.pid"',
        "cd ~/tuna_jax",
        'export PATH="$HOME/tuna_jax/.venv/bin:$PATH"',
        *(f"export {assignment}" for assignment in launching.assignments(variables)),
        *(
            f'{variable}="$(gcloud secrets versions access latest --secret={shlex.quote(secret)})"; export {variable}'
            for variable, secret in sorted(secrets.items())
        ),
        *([_SLICES.format(slices=slices)] if slices > 1 else []),
        "set +e",
    ]
    return supervisor.supervised(command, before)
