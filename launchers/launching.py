"""What the launchers share: how a training command is given, names, secrets, and what each kind of TPU wants.

The launchers are plain scripts that run from a clone with Python's standard library alone: the machine that starts a
run need not be able to train. Whatever they start is the training command after `--`, unchanged.
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

# What tuna_jax/parallel/distributed.py reads.
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
      prefix: of Compute Engine's accelerator types, the number after it left out.
      runtime: the TPU VM's software version.
      label: GKE's `cloud.google.com/gke-tpu-accelerator`.
      chips: on a host of a slice with several hosts.
      largest: chips on a host of the largest slice with one host alone.
      axes: of a topology.
      cores: a chip, where accelerator types count cores.
      libtpu: LIBTPU_INIT_ARGS, a flag each.
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


# The windowed einsum costs 2.6 times the matmul it hides behind at our sizes; docs/pods.md says what each flag is.
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
    """A wrong argument; its message says which and what would be right."""


def fail(error: object) -> NoReturn:
    """Ends the program as argparse does for a wrong argument."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a script's docstring, with what every launcher takes."""
    made = argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"python launchers/{Path(sys.argv[0]).name} [OPTION ...] {EXAMPLE}",
        allow_abbrev=False,
    )
    made.add_argument("--dry_run", action="store_true", help="print what would be done, do nothing")
    made.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another variable of the environment; may be repeated. Not for secrets: they would be seen",
    )
    return made


def parse(
    given: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own options, and the training command after `--`.

    Raises:
      LaunchError: there is no command, or a secret's value stands in it or in an option.
    """
    own = list(arguments)
    command: list[str] = []
    if "--" in own:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
    options = given.parse_args(own)
    if not command:
        raise LaunchError(f"there is no training command; give it after two dashes: {EXAMPLE}")
    refuse_secrets([*own, *command], os.environ)
    return options, command


_SECRET = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIALS?|(^|_)KEY)(_|$)", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a variable of this name is kept from command lines, manifests and logs."""
    return _SECRET.search(name) is not None


def refuse_secrets(texts: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raises LaunchError if the value of a secret in the environment stands in one of the texts; it is not repeated."""
    for name, value in environment.items():
        if is_secret(name) and len(value) >= 8 and any(value in text for text in texts):
            raise LaunchError(
                f"the value of {name} stands in the command line, where others can read it; leave it out, and let the "
                f"program read {name} from its environment (--help says how it gets there)"
            )


def settings(given: Sequence[str]) -> dict[str, str]:
    """`--env NAME=VALUE` as a mapping; raises LaunchError for what is no such pair, or looks like a secret."""
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise LaunchError(f"--env {text.split('=')[0]!r} is not NAME=VALUE")
        if is_secret(name):
            raise LaunchError(
                f"--env {name}=... would show a secret in a command line; give it by name with --secret"
            )
        pairs[name] = value
    return pairs


def dns_name(text: str, longest: int = 40) -> str:
    """The name, checked: lower-case letters, digits and dashes, a letter first, no dash last.

    Raises:
      LaunchError: it is not; proposes one that is.
    """
    if re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", text) and len(text) <= longest:
        return text
    proposed = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    proposed = proposed if proposed[:1].isalpha() else f"run-{proposed}"
    proposed = proposed[:longest].strip("-")
    raise LaunchError(
        f"--name={text} cannot be a host's name: at most {longest} lower-case letters, digits and dashes, a letter "
        f"first and no dash last. Take --name={proposed}"
    )


def workdir(command: Sequence[str]) -> str:
    """The run's folder as the training command names it.

    Raises:
      LaunchError: it names none.
    """
    for word, following in zip(command, [*command[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in ("--workdir", "-workdir"):
            folder = value if equals else following
            if folder:
                return folder.rstrip("/")
    raise LaunchError(
        "the training command has no --workdir=FOLDER; the same folder is what makes the same command resume"
    )


def shared_workdir(command: Sequence[str]) -> str:
    """The run's folder, checked to be one that several machines can mean: an absolute path.

    Raises:
      LaunchError: it is relative, a bucket that is not mounted, or the command names none.
    """
    folder = workdir(command)
    if folder.startswith("/"):
        return folder
    raise LaunchError(
        f"--workdir={folder} is no folder that all machines share; give the absolute path of a shared file system, or, "
        f"with tpu_vm.py and gke.py, which mount buckets, gs://BUCKET/{Path(folder).name}"
    )


MOUNTS = "/gcs"
_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]*[a-z0-9])")


def mounted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words with every gs://BUCKET as the folder where BUCKET is mounted, and the buckets."""
    buckets = sorted({bucket for word in words for bucket in _BUCKET.findall(word)})
    return [_BUCKET.sub(rf"{MOUNTS}/\1", word) for word in words], buckets


def environment(
    folder: str, compile_cache: str | None, tpu: Tpu | None, extra: Mapping[str, str]
) -> dict[str, str]:
    """Variables of every process: the compile cache, libtpu's flags for the kind of TPU, and what the user adds."""
    made = {
        "JAX_COMPILATION_CACHE_DIR": compile_cache or f"{folder}/compile_cache",
        "PYTHONUNBUFFERED": "1",
    }
    if tpu is not None:
        made["LIBTPU_INIT_ARGS"] = " ".join(tpu.libtpu)
    return {**made, **extra}


def assignments(variables: Mapping[str, str]) -> list[str]:
    """NAME=VALUE words for a shell, in a stable order."""
    return [f"{name}={shlex.quote(value)}" for name, value in sorted(variables.items())]


def shell(words: Sequence[str]) -> str:
    """A command as one line for a shell; an option a line if it is long."""
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


# Runs the words after it. Asked to stop (TERM), it hands that on and ends with 143 even though the program, which has
# saved, ends with 0: so that what restarts runs knows that this one is not at its end.
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
    """A script for sh that runs a training command and ends with 143 if it was stopped before its end.

    Args:
      command: the training command.
      before: lines that come first: variables, folders.
    """
    return "\n".join([*before, f"set -- {shlex.join(command)}", _SUPERVISED])
