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


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="it configures glibc, which only Linux has"
)
def test_freed_memory_is_reused_and_not_requested_again() -> None:
    def faults(how: str) -> int:
        call = [sys.executable, "-c", _FAULTS, how]
        process = subprocess.run(call, capture_output=True, text=True, check=True)
        return int(process.stdout)

    pages = 5 * (1 << 25) * 8 // (2 << 20)  # at least: pages may be as large as 2 MiB
    assert faults("keep") < pages <= faults("leave")
