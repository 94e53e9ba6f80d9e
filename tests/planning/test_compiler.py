"""What the compiler says when a program does not fit; its wordings are read."""

import pytest

from tuna_jax.planning.compiler import out_of_memory

OLD = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 170.00G of 15.75G hbm.
Exceeded hbm capacity by 154.25G.

Total hbm usage >= 170.26G:
    reserved        263.00M
"""
NEW = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Exceeded hbm capacity by 15.65G.

Total hbm usage >= 31.40G:
    reserved        263.00M
    program          31.15G
"""
TEMPORARIES = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for \
HLO temporaries (25.50G) exceeds available HBM (15.75G). HLO module: jit_loss.
"""
GIB = 2**30


def test_all_wordings_are_read():
    assert out_of_memory(TEMPORARIES) == pytest.approx((25.5 * GIB, 15.75 * GIB))
    assert out_of_memory(OLD) == pytest.approx((170 * GIB, 15.75 * GIB))
    used, capacity = out_of_memory(NEW)
    assert (used, capacity) == pytest.approx((31.4 * GIB, 15.75 * GIB))


def test_smaller_units_are_read():
    assert out_of_memory("Ran out of memory in memory space hbm. Used 900.5M of 512.0K hbm.") == (
        900.5 * 2**20,
        512 * 1024,
    )


@pytest.mark.parametrize(
    "message",
    [
        "INVALID_ARGUMENT: Mosaic failed to compile TPU kernel",
        "Ran out of memory in memory space vmem. Used 20.00M of 16.00M vmem.",
    ],
)
def test_another_error_is_no_lack_of_device_memory(message):
    assert out_of_memory(message) is None
