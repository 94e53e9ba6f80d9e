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
from pathlib import Path, PurePosixPath
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
      prefix: of the accelerator types, before the number.
      runtime: software version of the TPU VM; empty if the Cloud TPU API does not offer this kind.
      label: GKE's `cloud.google.com/gke-tpu-accelerator`.
      machine: GKE's machine types, before the number of chips.
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
    machine: str
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
        Tpu(
            *("v5e", "v5litepod-", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
            *("ct5lp-hightpu-", 4, 8, 2, 1, _ALL),
        ),
        Tpu(
            *("v5p", "v5p-", "v2-alpha-tpuv5", "tpu-v5p-slice"),
            *("ct5p-hightpu-", 4, 4, 3, 2, (*_ALL, _MEGACORE)),
        ),
        Tpu(
            *("v6e", "v6e-", "v2-alpha-tpuv6e", "tpu-v6e-slice"),
            *("ct6e-standard-", 4, 8, 2, 1, (*_ALL, _VMEM)),
        ),
        Tpu("tpu7x", "tpu7x-", "", "tpu7x", "tpu7x-standard-", 4, 4, 3, 2, _ALL),
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
    own_parser: argparse.ArgumentParser, arguments: Sequence[str], without: Sequence[str] = ()
) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own options, and the training command after `--`.

    Args:
      own_parser: of the launcher's options.
      arguments: the command line.
      without: names of options that need no training command, such as `logs`.

    Raises:
      LaunchError: there is no command, or it or an option contains the value of a secret.
    """
    own = list(arguments)
    command: list[str] = []
    if "--" in own:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
    options = own_parser.parse_args(own)
    if not command and not any(getattr(options, name) for name in without):
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


# Flags of our commands, or last parts of configuration keys, whose folders are written to.
_WRITTEN = ("workdir", "output", "cache", "compile_cache")


def _flag(word: str) -> str:
    """The last part of a flag's name, without its value: `--config.data.cache=x` -> `cache`."""
    return word.partition("=")[0].lstrip("-").rpartition(".")[2] if word.startswith("-") else ""


def value_of(command: Sequence[str], flag: str) -> str:
    """The value of `--flag=value` or `--flag value`; empty without the flag."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.lstrip("-") == flag and name != flag:
            return value if equals else following
    return ""


def workdir(command: Sequence[str]) -> str:
    """The folder of a run: the --workdir of its command or, for commands without one, the folder of --output.

    Raises:
      LaunchError: there is neither.
    """
    folder = value_of(command, "workdir").rstrip("/")
    if folder:
        return folder
    output = value_of(command, "output").rstrip("/")
    if output:
        path = PurePosixPath(output)
        # `--output=answers.jsonl` is a file; PurePosixPath would shorten gs:// to gs:/.
        return output[: -len(path.name)].rstrip("/") or "." if path.suffix else output
    raise LaunchError(
        "the training command has no --workdir=FOLDER (or --output=FOLDER), which is required to resume a run"
    )


def shared_workdir(command: Sequence[str], buckets: bool = False) -> str:
    """The folder of a run, which must be an absolute path, equal on all machines.

    Args:
      command: the training command.
      buckets: whether the address of a bucket will do, because the program reads it itself.

    Raises:
      LaunchError: it is relative, or a bucket that is not mounted, or there is none.
    """
    folder = workdir(command)
    if folder.startswith("/") or buckets and folder.startswith("gs://"):
        return folder
    flag = "workdir" if value_of(command, "workdir") else "output"
    raise LaunchError(
        f"--{flag}={folder} is not a folder that all machines share; pass an absolute path on a shared file system, "
        f"or, for tpu_vm.py and gke.py, which mount buckets, gs://BUCKET/{PurePosixPath(folder).name}"
    )


@dataclasses.dataclass(frozen=True, order=True)
class Mount:
    """A bucket as a folder of a host, by Cloud Storage FUSE.

    Attributes:
      bucket: its name.
      data: whether it is only read. Then what was read once is kept: names and sizes for as long as the mount lasts,
        and files on the host's disk. Otherwise nothing is kept, since other hosts write too.
    """

    bucket: str
    data: bool

    @property
    def folder(self) -> str:
        """Where it is mounted."""
        return f"{DATA_MOUNTS if self.data else MOUNTS}/{self.bucket}"

    def options(self, cache_gb: int) -> dict[str, str]:
        """Settings of gcsfuse's configuration file, as `section:key`.

        All are set: on machines with TPUs, gcsfuse would keep names and sizes forever.

        Args:
          cache_gb: gigabytes of the host's disk for files that were read; 0 keeps none.
        """
        keep = "-1" if self.data else "0"
        settings = {
            "metadata-cache:ttl-secs": keep,
            # A name that does not exist yet may be written by another host at any time.
            "metadata-cache:negative-ttl-secs": "0",
            "file-system:kernel-list-cache-ttl-secs": keep,
            "file-cache:max-size-mb": str(cache_gb * 1024) if self.data else "0",
        }
        if self.data:
            settings["metadata-cache:stat-cache-max-size-mb"] = "-1"
            settings["metadata-cache:type-cache-max-size-mb"] = "-1"
        if self.data and cache_gb:
            settings["file-cache:cache-file-for-range-read"] = "true"
            settings["file-cache:enable-parallel-downloads"] = "true"
        return settings


MOUNTS, DATA_MOUNTS = "/gcs", "/gcs-data"
_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]*[a-z0-9])")


def mounted(words: Sequence[str]) -> tuple[list[str], list[Mount]]:
    """The words with every gs://BUCKET replaced by the folder where it is mounted, and the mounts.

    Folders that are written to (`--workdir`, `--output`, caches) are on another mount than those that are only read,
    also if they are in one bucket.
    """
    mounts: set[Mount] = set()
    replaced = []
    for before, word in zip(["", *words[:-1]], words, strict=True):
        flag = _flag(word) or (_flag(before) if "=" not in before else "")

        def replace(match: re.Match[str], data: bool = flag not in _WRITTEN) -> str:
            mount = Mount(match[1], data)
            mounts.add(mount)
            return mount.folder

        replaced.append(_BUCKET.sub(replace, word))
    return replaced, sorted(mounts)


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


def pack(archive: str) -> str:
    """A line of shell, to be run in the clone, that puts its tracked files with their changes into a .tar.gz."""
    # `git stash create` makes a commit of the current tree without changing anything; it prints nothing if there is no
    # change. It fails without a message on a file that has a new time and its old content, hence the refresh, whose
    # exit status only says whether there are changes.
    words = f"git archive --format=tar.gz -1 --output={shlex.quote(archive)}"
    refresh = "git update-index -q --refresh > /dev/null"
    return f'{refresh}; changed="$(git stash create)" && {words} "${{changed:-HEAD}}"'
