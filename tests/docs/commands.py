"""Finds the command lines of pages and docstrings, and checks them with the real parsers, without doing their work."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import io
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from tuna_jax.ablations import study
from tuna_jax.cli import config_flags, parsing
from tuna_jax.cli.main import COMMANDS, module_of
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.emoji.encoder_trainer import EncoderSettings
from tuna_jax.emoji.vae_trainer import VAESettings
from tuna_jax.trainers.config import MultitaskExperiment
from tuna_jax.utils import config_parsing, old_names

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "WORKSPACE.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
LAUNCHERS = ("local.py", "tpu_vm.py", "gke.py", "slurm.py")
EXPERIMENTS = {
    "emoji": EmojiExperiment,
    "multitask": MultitaskExperiment,
    "encoder": EncoderSettings,
    "vae": VAESettings,
}
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


class WrongCommandError(AssertionError):
    """A command line that would not run; the message says why."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line and where it is written.

    Attributes:
      file: relative to the repository.
      line: its number there; of a docstring, in the docstring.
      words: the command, split like a shell does, without variables before it and comments after it.
    """

    file: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {shlex.join(self.words)}"


def code_blocks(text: str) -> Iterator[tuple[str, int, list[str]]]:
    """(language, number of the first line, lines) of every fenced and every indented code block of a page."""
    block: list[str] = []
    language, fenced, start = "", False, 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        fence = line.strip().startswith("```")
        if fenced and fence:
            yield language, start, block
            block, fenced = [], False
        elif fence:
            block, fenced, start, language = [], True, number + 1, line.strip()[3:]
        elif fenced:
            block.append(line)
        elif line.startswith("    "):
            start = start if block else number
            block.append(line)
        elif block:
            yield "", start, block
            block = []


def inline_code(text: str) -> Iterator[tuple[int, str]]:
    """(line number, code) of every code span that is a command of a launcher, or a module with arguments."""
    pattern = re.compile(
        r"(TUNA_JAX\S+ )?(\./launchers/local\.sh \w|python launchers/\S+ -|python -m \S+ \S)"
    )
    for number, line in enumerate(text.splitlines(), 1):
        for code in re.findall(r"`([^`]+)`", line):
            if pattern.match(code):
                yield number, code


def commands_of(file: str, first: int, lines: Sequence[str]) -> Iterator[Command]:
    """The commands of this project in some lines of code."""
    joined = ""
    for number, line in enumerate(lines, first):
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        text, joined = joined, ""
        if re.search(r"\b(tuna-jax|tuna_jax\.|launchers/|pytest)", text) is None:
            continue
        with contextlib.suppress(ValueError):  # Prose with an apostrophe.
            words = shlex.split(text, comments=True)
            while words and (_ASSIGNMENT.fullmatch(words[0]) or words[0] == "export"):
                words.pop(0)
            if words and _is_ours(words):
                yield Command(file, number, tuple(words))


def _is_ours(words: Sequence[str]) -> bool:
    program = Path(words[0]).name
    if program == "python" and words[1:2] == ["-m"]:
        return len(words) > 2 and words[2].split(".")[0] in ("tuna_jax", "pytest")
    return (
        program in ("tuna-jax", "local.sh")
        or program == "python"
        and words[1:2] != []
        and words[1].startswith(("launchers/", "docs/", "tests/"))
    )


def on_pages() -> list[Command]:
    """The commands of README.md, WORKSPACE.md and docs/."""
    found: list[Command] = []
    for page in PAGES:
        name, text = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")
        for language, first, lines in code_blocks(text):
            if language != "python":
                found += commands_of(name, first, lines)
        for number, code in inline_code(text):
            found += commands_of(name, number, [code])
    return found


def in_docstrings() -> list[Command]:
    """The commands of the docstrings of tuna_jax/*.py and experiments/."""
    found: list[Command] = []
    for path in [
        *sorted((ROOT / "tuna_jax").glob("*.py")),
        *sorted((ROOT / "experiments").rglob("*.py")),
    ]:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found += commands_of(path.relative_to(ROOT).as_posix(), 1, text.splitlines())
    return found


def check(words: Sequence[str]) -> None:
    """Parses a command as it would be parsed.

    Raises:
      WrongCommandError: the command would end with an error about its flags, its configuration keys or its files, or
        it uses an old name.
    """
    program, rest = Path(words[0]).name, list(words[1:])
    if program == "tuna-jax":
        _check_tuna_jax(rest)
    elif program == "local.sh":
        _check_local_sh(rest)
    elif rest[0] == "-m":
        _check_module(rest[1], rest[2:])
    elif rest[0].startswith("launchers/"):
        _check_launcher(rest)
    else:
        _require((ROOT / rest[0]).is_file(), f"there is no {rest[0]}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise WrongCommandError(message)


@contextlib.contextmanager
def _parsing() -> Iterator[None]:
    """Exits and warnings of a parser become WrongCommandError; its output is kept quiet."""
    errors = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(errors),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error", FutureWarning)  # an old name
            yield
    except SystemExit as end:
        _require(not end.code, errors.getvalue())
    except (FutureWarning, ValueError, FileNotFoundError) as error:
        raise WrongCommandError(str(error)) from error


def _check_tuna_jax(arguments: list[str]) -> None:
    name, rest = (arguments or [""])[0], arguments[1:]
    if name == "--help":
        return
    _require(name in COMMANDS, f"there is no command {name!r}")
    module = importlib.import_module(module_of(name))
    with _parsing():
        # The command parses and checks its flags, and calls `run` with the work.
        with mock.patch.object(parsing, "run", lambda *arguments: 0):
            module.main(rest)
        _check_config(rest)


def _check_config(arguments: Sequence[str]) -> None:
    """The files of experiments, sweeps and studies exist, and all keys on the command line are keys of theirs."""
    others, overrides = config_flags.split_overrides(arguments)
    files = [
        (name, argument.partition("=")[2])
        for argument in others
        for name in ("config", "sweep", "study")
        if argument.startswith(f"--{name}=") and argument.endswith(".py")
    ]
    for name, file in files:
        values = config_flags.read(file, overrides, name)
        if name == "study":
            study.parse(values)
        if (
            name == "config" and overrides
        ):  # The parser of the trainer knows the keys that the file does not set.
            values = old_names.experiment(values)
            config_parsing.parse(EXPERIMENTS[values["kind"]], values)
    _require(bool(files) or not overrides, f"{overrides}: there is no file whose keys they are")


def _check_module(module: str, arguments: list[str]) -> None:
    command = module.removeprefix("tuna_jax.").replace("_", "-")
    if module == "pytest":
        _check_paths(arguments)
    elif command in COMMANDS:
        _check_tuna_jax([command, *arguments])
    else:
        # A module with a parser of its own: all flags must be in its help.
        output = io.StringIO()
        with (
            mock.patch.object(sys, "argv", [module, "--help"]),
            # The import hook of tests/conftest.py would leave its own code of the module for other processes.
            mock.patch.object(sys, "dont_write_bytecode", True),
            contextlib.redirect_stdout(output),
            contextlib.suppress(SystemExit),
        ):
            runpy.run_module(module, run_name="__main__")
        for argument in arguments:
            flag = argument.partition("=")[0]
            _require(
                re.search(rf"{flag}\b", output.getvalue()) is not None,
                f"{module} has no {argument}",
            )


def _check_paths(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if argument.startswith("tests/"):
            _require((ROOT / argument.partition("::")[0]).exists(), f"there is no {argument}")


def _check_local_sh(arguments: list[str]) -> None:
    command, rest = (arguments or [""])[0], arguments[1:]
    if command == "demo":
        wrong = [word for word in rest if not word.startswith(("--workdir=", "--config."))]
        _require(not wrong, f"local.sh demo does not take {wrong}")
        _check_tuna_jax(
            ["train", "--config=experiments/emoji/demo.py", "--workdir=runs/demo", *rest]
        )
    elif command == "run":
        (_check_module(rest[0], rest[1:]) if "." in rest[0] else _check_tuna_jax(rest))
    elif command == "test":
        _check_paths(rest)
    elif command == "setup":
        _require(rest in ([], ["dev"], ["torch"], ["plan"]), f"local.sh setup does not take {rest}")
    else:
        _require(command in ("check", "--help") and not rest, f"local.sh has no command {command}")


def _check_launcher(words: list[str]) -> None:
    script, *arguments = words
    _require(Path(script).name in LAUNCHERS, f"there is no launcher {script}")
    line = [sys.executable, script, "--dry_run", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    _require(done.returncode == 0, done.stderr)
    if "--" in arguments:
        check(arguments[arguments.index("--") + 1 :])
