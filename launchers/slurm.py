#!/usr/bin/env python3
"""Runs a training command on nodes of a Slurm cluster, as a job that saves before preemption and is requeued.

Examples:

    # Four nodes with eight GPUs each, one process per node:
    python launchers/slurm.py --name=tuna-7b --nodes=4 --gpus_per_node=8 --time=24:00:00 --partition=gpu -- \\
        python -m tuna_jax.train --config=experiments/tuna/tuna_7b_stage1.py --workdir=/shared/runs/tuna-7b

    # Print only the batch script:
    python launchers/slurm.py --dry_run ...

Run it on a login node, from a clone on the shared file system, in the environment for training: the job uses its PATH.
The job receives SIGTERM two minutes before its time limit (Slurm may send it a minute earlier), saves, and requeues
itself; so it does on preemption, and after an error that came after a new checkpoint. Other errors end it.
The same command again prints the number of the job if there is one, and otherwise resumes the run.

Secrets: --secret HF_TOKEN passes the variable by name; only Slurm's job has its value, not the script or the log.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import launching
import supervisor


def main(arguments: Sequence[str]) -> int:
    """Parses the arguments, and submits or prints the script."""
    parser = launching.parser(__doc__)
    add = parser.add_argument
    add("--name", required=True, help="name of the job: lower-case letters, digits, dashes")
    add("--nodes", type=int, required=True, help="number of nodes")
    add("--gpus_per_node", type=int, default=0, help="GPUs per node (default: 0, no GPUs)")
    add(
        "--per",
        choices=("node", "gpu"),
        default="node",
        help="one process per node (default) or per GPU",
    )
    add(
        "--cpus_per_task",
        type=int,
        help="CPU cores per process (default: those of the job on a node, divided by its processes)",
    )
    add(
        "--exclusive",
        action="store_true",
        help="whole nodes, with all their CPU cores; without --cpus_per_task, many clusters give a process one core",
    )
    add("--time", help="time limit, D-HH:MM:SS (default: that of the partition)")
    add("--partition", help="partition (default: that of the cluster)")
    add("--account", help="account (default: that of the user)")
    add(
        "--warning",
        type=int,
        default=120,
        help="seconds for saving before the time limit (default: 120)",
    )
    add(
        "--directory",
        default=str(launching.ROOT),
        help="path of the clone on the nodes (default: this clone)",
    )
    add("--secret", action="append", default=[], metavar="NAME", help="see above; may be repeated")
    add("--compile_cache", help="folder of compiled programs (default: WORKDIR/compile_cache)")
    try:
        options, command = launching.parse(parser, arguments)
        launching.dns_name(options.name)
        text = script(options, command)
        if options.dry_run:
            print(text, end="")
            return 0
        if launching.workdir(command).startswith(
            "/"
        ):  # Slurm does not create the folder of its log.
            Path(launching.workdir(command)).mkdir(parents=True, exist_ok=True)
        return _submit(options.name, text)
    except launching.LaunchError as error:
        launching.fail(error)


def script(options: Any, command: Sequence[str]) -> str:
    """The batch script.

    Raises:
      LaunchError: an invalid count or name.
    """
    folder = launching.shared_workdir(command)
    if options.nodes < 1:
        raise launching.LaunchError(f"--nodes={options.nodes} must be at least 1")
    if options.per == "gpu" and options.gpus_per_node < 1:
        raise launching.LaunchError("--per=gpu requires --gpus_per_node")
    invalid = [name for name in options.secret if not name.isidentifier()]
    if invalid:
        raise launching.LaunchError("--secret requires the name of a variable, without its value")
    tasks = options.gpus_per_node if options.per == "gpu" else 1
    logs = folder if folder.startswith("/") else options.directory
    sbatch_options = {
        "job-name": options.name,
        "nodes": options.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": options.gpus_per_node or None,
        "cpus-per-task": options.cpus_per_task,
        "exclusive": "" if options.exclusive else None,
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
        sbatch_options="\n".join(
            f"#SBATCH --{key}={value}".rstrip("=")
            for key, value in sbatch_options.items()
            if value is not None
        ),
        directory=shlex.quote(options.directory),
        exports="\n".join(f"export {text}" for text in launching.assignments(variables)),
        coordinator=launching.COORDINATOR,
        processes=launching.PROCESSES,
        newest=supervisor.newest(folder),
        final="|".join(map(str, supervisor.FINAL)),
        tasks=tasks,
        each=shlex.quote(each),
        command=shlex.join(command),
    )


# The port depends on the job, since two jobs may share a node. The first step of a job is step 0, also after a requeue.
# srun does not take over sbatch's --cpus-per-task. The command is the task itself, without a shell around it: Slurm
# signals the tasks of a step, and some configurations their children too, which would be a second signal.
_SCRIPT = """\
#!/bin/bash
{sbatch_options}
#SBATCH --requeue

cd {directory}
{exports}
export {coordinator}="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 10000))"
export {processes}="$SLURM_NTASKS"
{newest}
before="$(newest)"

# Requested to stop (before the time is over, or preempted): hand it on, wait for the save, queue again.
again=
trap 'again="stopped"; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
srun --kill-on-bad-exit=1 --label --export=ALL \\
  --cpus-per-task="${{SLURM_CPUS_PER_TASK:-$((${{SLURM_CPUS_ON_NODE:-{tasks}}} / {tasks}))}}" \\
  bash -c {each} train {command} &
child=$!
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do
  code=0
  wait "$child" || code=$?
done
# Most clusters signal a preemption to the tasks only, which save and exit with 0.
if [ "$code" -eq 0 ] && scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; then
  again="preempted"
fi
case "$code" in
  0|{final}) ;;
  *)
    after="$(newest)"
    if [ "${{after:-0}}" -gt "${{before:-0}}" ]; then
      again="${{again:-exit code $code after progress from checkpoint ${{before:-none}} to $after}}"
    fi ;;
esac
if [ -n "$again" ]; then
  echo "queued again: $again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def _submit(name: str, text: str) -> int:
    """Submits the script with sbatch, unless a job with this name is queued or running."""
    listed = ["squeue", "--me", "--noheader", f"--name={name}", "--format=%i %T"]
    try:
        result = subprocess.run(listed, capture_output=True, text=True)
        if result.returncode:
            raise launching.LaunchError(f"squeue failed: {result.stderr.strip()}")
        if result.stdout.strip():
            print(f"{name} already exists: job {result.stdout.strip()}")
            return 0
        return subprocess.run(["sbatch"], input=text, text=True).returncode
    except FileNotFoundError as error:
        raise launching.LaunchError(
            f"{error.filename} does not exist; run this on a login node of a Slurm cluster"
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
