"""The lines of shell around a training command on a host, and what its exit codes mean to those who restart runs.

docs/pods.md has the table of exit codes, by launcher. 85 and 143 come from the script here: the program itself exits
with 0 when it has saved on SIGTERM.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

# What argparse and `tuna-jax train` exit with after an error of flags, configuration or data, and what a shell exits
# with if it cannot start the program.
FINAL = (2, 126, 127)
# What the watchdog of a run ends with (tuna_jax/training/watchdog.py): it stood still.
STALLED = 75
# Failed after a new checkpoint (ERESTART of errno.h).
PROGRESS = 85
# Stopped by SIGTERM (128 + 15), after a save.
STOPPED = 143

# Runs the command in its arguments. On SIGTERM it forwards the signal and exits with 143, although the program saves
# and exits with 0, so that a restarter can distinguish a stopped run from a finished one.
_RUN = """\
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
"""

# A launcher that counts restarts need not count one that follows a new checkpoint.
_MAP = f"""\
case "$code" in
  0|{"|".join(map(str, FINAL))}) ;;
  *)
    after="$(newest)"
    if [ "${{after:-0}}" -gt "${{before:-0}}" ]; then
      echo "exit code $code after progress from checkpoint ${{before:-none}} to $after: exiting with {PROGRESS}"
      code={PROGRESS}
    fi ;;
esac
"""


def newest(folder: str, python: str = "python") -> str:
    """A shell function `newest` that prints the step of the newest checkpoint under `folder`, or nothing.

    Args:
      folder: that of the run; a bucket's address is read by etils, which the program reads it with too.
      python: an interpreter with etils, for a bucket's address.
    """
    checkpoints = shlex.quote(f"{folder}/checkpoints")
    names = f"ls {checkpoints} 2>/dev/null"
    if "://" in folder:
        listing = "import sys; from etils import epath; [print(p.name) for p in epath.Path(sys.argv[1]).iterdir()]"
        names = f"{shlex.quote(python)} -c {shlex.quote(listing)} {checkpoints} 2>/dev/null"
    return f"newest() {{ {names} | grep -x '[0-9][0-9]*' | sort -n | tail -n 1; }}"


def supervised(command: Sequence[str], before: Sequence[str] = (), progress: str = "") -> str:
    """A script for sh that runs a training command and exits with 143 if it was stopped before its end.

    Args:
      command: the training command.
      before: preceding lines, such as variables and folders.
      progress: folder of the run; then failed and stopped runs exit with 85 if they have made a new checkpoint.
    """
    first, last = [*before], [_RUN + 'exit "$code"\n']
    if progress:
        first += [newest(progress, command[0]), 'before="$(newest)"']
        last = [_RUN + _MAP + 'exit "$code"\n']
    return "\n".join([*first, f"set -- {shlex.join(command)}", *last])


def one_line(script: str) -> str:
    """The same script without line breaks, for programs that put a command into a line of a manifest.

    It holds for scripts of this module whose command has no line breaks.
    """
    result, between = "", ""
    for line in script.splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        result += between + text
        open_ended = text.endswith((" do", " then", " &", ";;", " in", "*)"))
        between = " " if open_ended and not text.startswith("set --") else "; "
    return result
