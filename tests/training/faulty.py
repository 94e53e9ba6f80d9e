"""Trains as `tuna_jax.train` does, with a fault in one process: `python faulty.py FAULT PROCESS TRAIN_ARGUMENTS...`.

Faults of data are raised where a file is opened, those of steps after the step `AT`.
"""

import errno
import os
import resource
import signal
import sys
import time

from tuna_jax import train
from tuna_jax.data.mixture import load_example
from tuna_jax.parallel import environment
from tuna_jax.training.preemption import StopRequest

AT = 3
ROWS_READ = 4  # Pictures, before a data fault begins: two steps.


def failing_reads(failures):
    """Makes reading raise EIO `failures` times, after `ROWS_READ` pictures."""
    read, calls = load_example.read_image, [0]

    def read_image(source, *arguments, **options):
        calls[0] += 1
        if ROWS_READ < calls[0] <= ROWS_READ + failures:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        return read(source, *arguments, **options)

    load_example.read_image = read_image


def after_step(action):
    """Calls `action` after step `AT`."""
    agreed = StopRequest.agreed

    def with_action(self, number):
        if number == AT:
            action()
        return agreed(self, number)

    StopRequest.agreed = with_action


def full_disk():
    """No file of this process can grow beyond a page."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


FAULTS = {
    "nothing": lambda: None,
    "transient_eio": lambda: failing_reads(2),
    "lasting_eio": lambda: failing_reads(10**9),
    "stall": lambda: after_step(lambda: time.sleep(3600)),
    "death": lambda: after_step(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "full_disk": lambda: after_step(full_disk),
}


if __name__ == "__main__":
    fault, process, *arguments = sys.argv[1:]
    if os.environ[environment.PROCESS] == process:
        FAULTS[fault]()
    sys.exit(train.main(arguments))
