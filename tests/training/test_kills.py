"""Repeated SIGKILL in the middle of saves: a run always resumes, and no committed checkpoint is lost.

The killed processes save small states without training. They are forked from a process that has imported everything and
started no threads: `python tests/training/test_kills.py FOLDER SEED`.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILLS = 20
UNFINISHED = 5  # At least this number of kills must leave an unfinished save.


def state(step):
    import jax.numpy as jnp

    return {"params": {"w": jnp.full((256, 64), step, jnp.float32), "b": jnp.int32(step)}}


def saver(folder, report):
    """Restores, then saves one step after the other until it is killed; writes a line per event to `report`."""
    import numpy as np

    from tuna_jax.training.checkpoints import Checkpoints

    saved = Checkpoints(folder, keep=2)
    restored = saved.restore(state(0))
    step = 0
    if restored is not None:
        step = restored.step
        assert restored.config == {"step": step}
        for leaf in restored.state["params"].values():
            np.testing.assert_array_equal(leaf, step)
    left = [path.name for path in Path(folder).iterdir() if not path.name.isdigit()]
    os.write(report, f"restored {step} {len(left)}\n".encode())
    while True:
        step += 1
        os.write(report, f"saving {step}\n".encode())
        saved.save(step, state(step), config={"step": step})
        saved.wait()
        os.write(report, f"committed {step}\n".encode())


def kill_one(folder, moment):
    """Forks a saver, lets it save twice, and kills it `moment` save durations later; returns its lines."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            saver(folder, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as lines:
        events, times = [], []
        for line in lines:
            events.append(line.split())
            times += [time.monotonic()] if events[-1][0] == "committed" else []
            if len(times) == 2:
                time.sleep(moment * (times[1] - times[0]))
                break
        os.kill(child, signal.SIGKILL)
        events += [line.split() for line in lines]
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it was not killed but failed: {events}"
    return events


def main(folder, seed):
    """Kills `KILLS` savers; prints how many left an unfinished save."""
    import tuna_jax.training.checkpoints  # noqa: F401  (imported before forking)

    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads cannot be forked safely"
    moments, committed, unfinished = random.Random(seed), 0, 0
    for _ in range(KILLS):
        events = kill_one(folder, moments.uniform(0.0, 1.2))
        (word, step, left), *following = events
        assert word == "restored" and int(left) == 0, "an unfinished save is removed"
        assert int(step) >= committed, f"step {committed} was committed and {step} came back"
        saved_steps = [int(line[1]) for line in following if line[0] == "committed"]
        committed = saved_steps[-1]
        unfinished += any("orbax" in path.name for path in Path(folder).iterdir())
    print(f"{KILLS} kills, {unfinished} left an unfinished save, last step {committed}")
    assert unfinished >= UNFINISHED


def test_killed_saves_lose_nothing(tmp_path):
    seed = random.randrange(10**6)
    print("seed", seed)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "OMP_NUM_THREADS": "1"}
    environment["OPENBLAS_NUM_THREADS"] = (
        "1"  # Its threads start with NumPy, and threads cannot be forked.
    )
    result = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "checkpoints"), str(seed)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, f"seed {seed}\n{result.stdout}{result.stderr[-4000:]}"
    assert result.stdout.startswith(f"{KILLS} kills")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
