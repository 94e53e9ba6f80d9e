#!/usr/bin/env python3
"""Runs a training command on nodes of a Slurm cluster, as a job that saves before it is preempted and queues again.

Examples:

    # Four nodes with eight GPUs each, one process a node:
    python launchers/slurm.py --name=tuna-7b --nodes=4 --gpus_per_node=8 --time=24:00:00 --partition=gpu -- \\
        python -m tuna_jax.train --config=experiments/tuna/tuna_7b_stage1.py --workdir=/shared/runs/tuna-7b

    # The batch script alone:
    python launchers/slurm.py --dry_run ...

Run it on a login node, from a clone on the shared file system, in the environment that is to train: its PATH is
taken along. The job is asked to stop two minutes before its time is over, saves, and queues itself again; so it does
when it is preempted. The same command again tells the job's number while there is one, and else resumes the run.

Secrets: --secret HF_TOKEN takes the variable along by name; Slurm's job holds its value, no script and no log does.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import launching


def main(arguments: Sequence[str]) -> int:
    """Parses, and submits or prints."""
    parser = launching.parser(__doc__)
    add = parser.add_argument
    add("--name", required=True, help="of the job: lower-case letters, digits, dashes")
    add("--nodes", type=int, required=True, help="how many")
    add("--gpus_per_node", type=int, default=0, help="0 (default): the job asks for none")
    add(
        "--per",
        choices=("node", "gpu"),
        default="node",
        help="one process a node (default) or a GPU",
    )
    add("--cpus_per_task", type=int, help="CPU cores of a process (default: the cluster's)")
    add("--time", help="limit, D-HH:MM:SS (default: the partition's)")
    add("--partition", help="default: the cluster's")
    add("--account", help="default: the user's")
    add("--warning", type=int, default=120, help="seconds to save before the end (default: 120)")
    add("--directory", default=str(launching.ROOT), help="the clone, as the nodes see it")
    add("--secret", action="append", default=[], metavar="NAME", help="see above; repeatable")
    add("--compile_cache", help="compiled programs (default: WORKDIR/compile_cache)")
    try:
        options, command = launching.parse(parser, arguments)
        launching.dns_name(options.name)
        text = script(options, command)
        if options.dry_run:
            print(text, end="")
            return 0
        if launching.workdir(command).startswith("/"):  # Slurm makes no folder for its log.
            Path(launching.workdir(command)).mkdir(parents=True, exist_ok=True)
        return _submit(options.name, text)
    except launching.LaunchError as error:
        launching.fail(error)


def script(options: Any, command: Sequence[str]) -> str:
    """The batch script.

    Raises:
      LaunchError: counts or names that cannot be.
    """
    folder = launching.shared_workdir(command)
    if options.nodes < 1:
        raise launching.LaunchError(f"--nodes={options.nodes} is to be at least 1")
    if options.per == "gpu" and options.gpus_per_node < 1:
        raise launching.LaunchError("--per=gpu wants --gpus_per_node")
    wrong = [name for name in options.secret if not name.isidentifier()]
    if wrong:
        raise launching.LaunchError("--secret wants the name of a variable alone, not its value")
    tasks = options.gpus_per_node if options.per == "gpu" else 1
    logs = folder if folder.startswith("/") else options.directory
    asked = {
        "job-name": options.name,
        "nodes": options.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": options.gpus_per_node or None,
        "cpus-per-task": options.cpus_per_task,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "output": f"{logs}/slurm-%j.log",
        "open-mode": "append",
        "signal": f"B:TERM@{options.warning}",
        "export": ",".join(["PATH", "HOME", "USER", *sorted(options.secret)]),
    }
    variables = launching.environment(
        folder, options.compile_cache, None, launching.settings(options.env)
    )
    per_process = [f"export {launching.PROCESS}=$SLURM_PROCID"]
    if options.per == "gpu":
        per_process.append("export JAX_LOCAL_DEVICE_IDS=$SLURM_LOCALID")
    each = "; ".join([*per_process, 'exec "$@"'])
    return _SCRIPT.format(
        asked="\n".join(f"#SBATCH --{k}={v}" for k, v in asked.items() if v is not None),
        directory=shlex.quote(options.directory),
        exports="\n".join(f"export {text}" for text in launching.assignments(variables)),
        coordinator=launching.COORDINATOR,
        processes=launching.PROCESSES,
        each=shlex.quote(each),
        command=shlex.join(command),
    )


# Ports by job: two jobs may share a node. The first step of a job, also of one that was queued again, is its step 0.
_SCRIPT = """\
#!/bin/bash
{asked}
#SBATCH --requeue

cd {directory}
{exports}
export {coordinator}="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 10000))"
export {processes}="$SLURM_NTASKS"

# Asked to stop (before the time is over, or preempted): hand it on, wait for the save, queue again.
stopped=
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
srun --kill-on-bad-exit=1 --export=ALL bash -c {each} train {command} &
child=$!
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do
  code=0
  wait "$child" || code=$?
done
if [ -n "$stopped" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def _submit(name: str, text: str) -> int:
    """Hands the script to sbatch, unless a job of this name waits or runs."""
    listed = ["squeue", "--me", "--noheader", f"--name={name}", "--format=%i %T"]
    try:
        found = subprocess.run(listed, capture_output=True, text=True)
        if found.returncode:
            raise launching.LaunchError(f"squeue failed: {found.stderr.strip()}")
        if found.stdout.strip():
            print(f"{name} is there already: job {found.stdout.strip()}")
            return 0
        return subprocess.run(["sbatch"], input=text, text=True).returncode
    except FileNotFoundError as error:
        raise launching.LaunchError(
            f"there is no {error.filename} here; this is for a login node of a Slurm cluster"
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
