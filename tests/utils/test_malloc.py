import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import numpy as np
from tuna_jax.utils import malloc
if sys.argv[1] == "keep":
    assert malloc.keep()
def touch():
    np.ones(1 << 25)
touch(); touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it tells glibc, which Linux has")
def test_what_was_freed_is_used_again_and_not_asked_of_the_system() -> None:
    def faults(how: str) -> int:
        call = [sys.executable, "-c", _FAULTS, how]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        return int(done.stdout)

    pages = 5 * (1 << 25) * 8 // (2 << 20)  # the least: 2 MiB each
    assert faults("keep") < pages <= faults("leave")
