"""Saves that are killed again and again: `python killed_saves.py FOLDER SEED disk`.

The killed processes save small states without training. They are forked from a process that has imported everything and
started no threads. With `bucket` in place of `disk`, FOLDER is a mounted bucket, and its host dies with the process:
what was not closed is lost.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from bucket_mount import Mount, Options

KILLS = 20
UNFINISHED = 5  # At least this number of kills must leave an unfinished save.


def state(step):
    import jax.numpy as jnp

    return {"params": {"w": jnp.full((256, 64), step, jnp.float32), "b": jnp.int32(step)}}


def unfinished_saves(folder):
    """The folders of saves that are not finished."""
    marked = [path.parent for path in Path(folder).glob("*/pending.txt")]
    torn = [path for path in marked if not (path / "commit_success.txt").exists()]
    return torn + [path for path in Path(folder).iterdir() if not path.name.isdigit()]


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
    left = unfinished_saves(folder)
    os.write(report, f"restored {step} {len(left)}\n".encode())
    while True:
        step += 1
        os.write(report, f"saving {step}\n".encode())
        saved.save(step, state(step), config={"step": step})
        saved.wait()
        os.write(report, f"committed {step}\n".encode())


def kill_one(folder, moment, host_dies):
    """Forks a saver, lets it save twice, and kills it `moment` save durations later; returns its lines.

    `host_dies` is called before it is killed: killing a process closes its files.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            saver(folder, writing)
        except BaseException:
            traceback.print_exc()
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
        if host_dies:
            host_dies()
        os.kill(child, signal.SIGKILL)
        events += [line.split() for line in lines]
    _, status = os.waitpid(child, 0)
    # A process whose host is gone may notice it before it is killed.
    assert host_dies or os.WIFSIGNALED(status), f"it was not killed but failed: {events}"
    return events


def main(folder, seed, storage):
    """Kills `KILLS` savers; prints how many left an unfinished save."""
    import tuna_jax.training.checkpoints  # noqa: F401  (imported before forking)

    store = Path(folder)
    options = Options(stale=True, rename_folders=False)

    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads cannot be forked safely"
    moments, committed, unfinished = random.Random(seed), 0, 0
    for _ in range(KILLS):
        moment = moments.uniform(0.0, 1.2)
        if storage == "disk":
            events = kill_one(folder, moment, None)
        else:
            with Mount(store, store.with_name("mount"), options) as mount:
                # If only the process is killed, the kernel closes its files, and parts of them are stored.
                events = kill_one(mount.folder, moment, moments.choice([mount.kill, None]))
                assert not mount.refused()
        (word, step, left), *following = events
        assert word == "restored" and int(left) == 0, "an unfinished save is removed"
        assert int(step) >= committed, f"step {committed} was committed and {step} came back"
        saved_steps = [int(line[1]) for line in following if line[0] == "committed"]
        committed = saved_steps[-1]
        unfinished += bool(unfinished_saves(folder))
    print(f"{KILLS} kills, {unfinished} left an unfinished save, last step {committed}")
    assert unfinished >= UNFINISHED


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
