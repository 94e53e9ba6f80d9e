"""Common code of the launchers: parsing of training commands, names, secrets, and settings of each kind of TPU.

The launchers are plain scripts that run from a clone with only Python's standard library, so the machine that starts a
run need not be able to train. They start the training command after `--` unchanged.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]

# Variables that tuna_jax/parallel/distributed.py reads.
COORDINATOR, PROCESSES, PROCESS = (
    "TUNA_JAX_COORDINATOR",
    "TUNA_JAX_PROCESSES",
    "TUNA_JAX_PROCESS",
)
PORT = 8476

EXAMPLE = "-- python -m tuna_jax.train --config=experiments/emoji/demo.py --workdir=runs/emoji"


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A kind of TPU.

    Attributes:
      name: as in `--tpu` and in topologies (`v5p:4x4x4`).
      prefix: of Compute Engine's accelerator types, before the number.
      runtime: software version of the TPU VM.
      label: GKE's `cloud.google.com/gke-tpu-accelerator`.
      chips: chips per host in a slice with several hosts.
      largest: chips of the largest slice with a single host.
      axes: number of axes of a topology.
      cores: number that accelerator types count per chip: 2 if they count cores, otherwise 1.
      libtpu: flags of LIBTPU_INIT_ARGS.
    """

    name: str
    prefix: str
    runtime: str
    label: str
    chips: int
    largest: int
    axes: int
    cores: int
    libtpu: tuple[str, ...]


# At our sizes the windowed einsum takes 2.6 times as long as the matmul that it overlaps; docs/pods.md explains each
# flag.
_ALL = (
    "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
)
_MEGACORE = "--xla_tpu_megacore_fusion_allow_ags=false"
_VMEM = "--xla_tpu_scoped_vmem_limit_kib=98304"

TPUS = {
    tpu.name: tpu
    for tpu in (
        Tpu("v5e", "v5litepod-", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 4, 8, 2, 1, _ALL),
        Tpu("v5p", "v5p-", "v2-alpha-tpuv5", "tpu-v5p-slice", 4, 4, 3, 2, (*_ALL, _MEGACORE)),
        Tpu("v6e", "v6e-", "v2-alpha-tpuv6e", "tpu-v6e-slice", 4, 8, 2, 1, (*_ALL, _VMEM)),
        Tpu("tpu7x", "tpu7x-", "v2-alpha-tpu7-ubuntu2404", "tpu7x", 4, 4, 3, 2, _ALL),
    )
}


class LaunchError(ValueError):
    """An invalid argument; the message names it and says what is expected."""


def fail(error: object) -> NoReturn:
    """Prints an error and exits with 2, as argparse does."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of all launchers; `doc` is the docstring of the script, for --help."""
    result = argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"python launchers/{Path(sys.argv[0]).name} [OPTION ...] {EXAMPLE}",
        allow_abbrev=False,
    )
    result.add_argument(
        "--dry_run", action="store_true", help="print what would be done, without doing it"
    )
    result.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further environment variable; may be repeated. Not for secrets, which would be visible",
    )
    return result


def parse(
    own_parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own options, and the training command after `--`.

    Raises:
      LaunchError: there is no command, or it or an option contains the value of a secret.
    """
    own = list(arguments)
    command: list[str] = []
    if "--" in own:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
    options = own_parser.parse_args(own)
    if not command:
        raise LaunchError(f"there is no training command; pass it after two dashes: {EXAMPLE}")
    refuse_secrets([*own, *command], os.environ)
    return options, command


_SECRET = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS?|(^|_)KEY)(_|$)", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a variable with this name must not appear in command lines, manifests and logs."""
    return _SECRET.search(name) is not None


def refuse_secrets(texts: Sequence[str], environment: Mapping[str, str]) -> None:
    """Checks that no text contains the value of a secret in the environment.

    Raises:
      LaunchError: one does; the message names the secret without its value.
    """
    for name, value in environment.items():
        if is_secret(name) and len(value) >= 8 and any(value in text for text in texts):
            raise LaunchError(
                f"the command line contains the value of {name}, where others can read it; remove it, and let the "
                f"program read {name} from its environment (see --help)"
            )


def settings(texts: Sequence[str]) -> dict[str, str]:
    """`--env NAME=VALUE` options as a mapping.

    Raises:
      LaunchError: a text is not NAME=VALUE, or the name looks like that of a secret.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise LaunchError(f"--env {text.split('=')[0]!r} is not NAME=VALUE")
        if is_secret(name):
            raise LaunchError(
                f"--env {name}=... would expose a secret in a command line; pass its name with --secret"
            )
        pairs[name] = value
    return pairs


def dns_name(text: str, longest: int = 40) -> str:
    """Checks a name: lower-case letters, digits and dashes, starting with a letter and not ending with a dash.

    Raises:
      LaunchError: the name is invalid; the message proposes a valid one.
    """
    if re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", text) and len(text) <= longest:
        return text
    proposed = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    proposed = proposed if proposed[:1].isalpha() else f"run-{proposed}"
    proposed = proposed[:longest].strip("-")
    raise LaunchError(
        f"--name={text} is not a valid host name, which has at most {longest} lower-case letters, digits and dashes, "
        f"starts with a letter and does not end with a dash. Use --name={proposed}"
    )


def workdir(command: Sequence[str]) -> str:
    """The --workdir of a training command.

    Raises:
      LaunchError: there is none.
    """
    for word, following in zip(command, [*command[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in ("--workdir", "-workdir"):
            folder = value if equals else following
            if folder:
                return folder.rstrip("/")
    raise LaunchError(
        "the training command has no --workdir=FOLDER, which is required to resume a run"
    )


def shared_workdir(command: Sequence[str]) -> str:
    """The --workdir of a training command, which must be an absolute path, equal on all machines.

    Raises:
      LaunchError: it is relative, or a bucket that is not mounted, or there is none.
    """
    folder = workdir(command)
    if folder.startswith("/"):
        return folder
    raise LaunchError(
        f"--workdir={folder} is not a folder that all machines share; pass an absolute path on a shared file system, "
        f"or, for tpu_vm.py and gke.py, which mount buckets, gs://BUCKET/{Path(folder).name}"
    )


MOUNTS = "/gcs"
_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]*[a-z0-9])")


def mounted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words with every gs://BUCKET replaced by the folder where it is mounted, and the buckets."""
    buckets = sorted({bucket for word in words for bucket in _BUCKET.findall(word)})
    return [_BUCKET.sub(rf"{MOUNTS}/\1", word) for word in words], buckets


def environment(
    folder: str, compile_cache: str | None, tpu: Tpu | None, extra: Mapping[str, str]
) -> dict[str, str]:
    """Environment variables of every process: compile cache, libtpu flags for the kind of TPU, and the user's."""
    variables = {
        "JAX_COMPILATION_CACHE_DIR": compile_cache or f"{folder}/compile_cache",
        "PYTHONUNBUFFERED": "1",
    }
    if tpu is not None:
        variables["LIBTPU_INIT_ARGS"] = " ".join(tpu.libtpu)
    return {**variables, **extra}


def assignments(variables: Mapping[str, str]) -> list[str]:
    """NAME=VALUE words for a shell, sorted by name."""
    return [f"{name}={shlex.quote(value)}" for name, value in sorted(variables.items())]


def shell(words: Sequence[str]) -> str:
    """A command for a shell: one line, or one option per line if it is long."""
    line = shlex.join(words)
    if len(line) <= 100:
        return line
    lines: list[str] = []
    for word in words:
        quoted = shlex.quote(word)
        if lines and not word.startswith("--") and len(lines[-1]) + len(quoted) < 90:
            lines[-1] += f" {quoted}"
        else:
            lines.append(quoted)
    return " \\\n  ".join(lines)


# Runs the command in its arguments. On SIGTERM it forwards the signal and exits with 143, although the program saves
# and exits with 0, so that a restarter can distinguish a stopped run from a finished one.
_SUPERVISED = """\
stopped=
child=
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
"$@" &
child=$!
[ -z "$stopped" ] || kill -TERM "$child"
code=0
wait "$child" || code=$?
# A signal ends `wait` early.
while kill -0 "$child" 2>/dev/null; do
  code=0
  wait "$child" || code=$?
done
if [ -n "$stopped" ] && [ "$code" -eq 0 ]; then
  code=143
fi
exit "$code"
"""


def supervised(command: Sequence[str], before: Sequence[str] = ()) -> str:
    """A script for sh that runs a training command and exits with 143 if it was stopped before its end.

    Args:
      command: the training command.
      before: preceding lines, such as variables and folders.
    """
    return "\n".join([*before, f"set -- {shlex.join(command)}", _SUPERVISED])
