"""Parsers of commands and of the values of their flags, and what every command does around its work.

Every command parses with argparse, whose help teaches by example and knows subcommands. Experiment and sweep files and
their `--config.KEY=VALUE` overrides go through ml_collections (`cli/config_flags.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence

from tuna_jax.utils import old_names, seeds, shipped
from tuna_jax.utils.text_files import check_text


def make_parser(command: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a command; its module's docstring is the help text.

    Args:
      command: as the user types it after `tuna-jax`.
      doc: the module's docstring.
    """
    parser = argparse.ArgumentParser(
        prog=f"tuna-jax {command}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-v",
        "--verbosity",
        type=int,
        default=0,
        metavar="N",
        help="1 also prints log messages of libraries and where an error was raised (default 0)",
    )
    return parser


def current_arguments(command: str, arguments: Sequence[str] | None) -> list[str]:
    """The command line with today's names of flags, keys and experiment files; underscores for dashes in flags."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    with one_line_warnings():
        return old_names.arguments(command, given)


def run(
    work: Callable[[], int | None],
    verbosity: int = 0,
    status_of: Callable[[Exception], int] = lambda error: 1,
) -> int:
    """Runs a command's work and returns its exit status: errors of input and of the machine become one line.

    The line goes to standard error.

    Args:
      work: returns an exit status; None means 0.
      verbosity: 1 prints the traceback too.
      status_of: the exit status after an error.
    """
    from absl import flags, logging

    flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for absl's flags.
    logging.set_verbosity(logging.INFO if verbosity else logging.WARNING)
    # Names of files need not be UTF-8, and a terminal need not know emoji: printing them is no error.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with one_line_warnings():
            return work() or 0
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        if verbosity:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return status_of(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run_on_all_processes(work: Callable[[], int | None], verbosity: int = 0) -> int:
    """`run` for a command that computes: under a launcher process 0 does the work and the others compute along.

    Every process returns the exit status of process 0; see `parallel/leader.py`.

    Raises:
      ValueError: the launcher's variables are incomplete.
    """

    def join() -> int:
        from tuna_jax.parallel import environment

        if environment.arguments(os.environ) is None:
            return work() or 0

        from tuna_jax.parallel import distributed, leader

        distributed.initialize()
        return leader.together(lambda: run(work, verbosity))

    return run(join, verbosity)


def message_of(error: Exception) -> str | None:
    """The one line that tells a user of an error of input or of the machine; None if it is an error of the program."""
    if isinstance(error, (ValueError, OSError, ImportError)):
        staging = sys.modules.get("tuna_jax.training.staging")
        text = str(error) or type(error).__name__
        return staging.with_addresses(text) if staging else text
    if isinstance(error, MemoryError):
        return f"out of memory: {error}".removesuffix(": ")
    if "RESOURCE_EXHAUSTED" in str(error):  # XLA's error is a plain RuntimeError of many lines.
        first = str(error).strip().split("\n", 1)[0][:300]
        return f"out of memory: {first}; take a smaller size, fewer frames or a smaller batch"
    return None


@contextlib.contextmanager
def one_line_warnings() -> Iterator[None]:
    """Warnings print as one line, without the code that raised them."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def finite(text: str) -> float:
    """A number; not NaN and not infinite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def seed(text: str) -> int:
    """A seed: a whole number from 0 to 2**64 - 1."""
    try:
        return seeds.check(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not a seed; give a whole number from 0 to 2**64 - 1"
        ) from None


def text(given: str) -> str:
    """Text in UTF-8; an argument in another encoding reaches Python with halves of surrogate pairs."""
    try:
        return check_text(given, ascii(given))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; write the argument in UTF-8") from None


def positive_ints(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas."""
    return [positive_int(part) for part in text.split(",")]


def image_size(text: str) -> tuple[int, int]:
    """'320x512' or '512' -> (height, width) in pixels."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 7 for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; give HEIGHTxWIDTH in pixels, such as 320x512, or one side"
        )
    return int(sides[0]), int(sides[-1])


def image_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Sizes separated by commas."""
    return tuple(image_size(part) for part in text.split(","))


def interval(text: str) -> tuple[float, float]:
    """'0.1,0.9' -> (0.1, 0.9)."""
    try:
        low, high = (finite(part) for part in text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an interval; give LOW,HIGH, such as 0.1,0.9"
        ) from None
    return low, high


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name for name in text.split(",") if name)


def mapping(text: str) -> dict[str, str]:
    """'image=photo,answer=a' -> a dict."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key and value for key, _, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form image=photo,answer=a")
    return {key: value for key, _, value in pairs}


def shard(text: str) -> tuple[int, int]:
    """'1/4' -> (1, 4): the second of four shards."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a shard; the shards of two are 0/2 and 1/2"
        )
    return int(number), int(count)


def model_path(text: str) -> str:
    """The path of a model, the address of one in a bucket, or the path of the one in the package with this name."""
    return text if "://" in text else str(shipped.model_path(text))
