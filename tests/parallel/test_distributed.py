"""A single process; tests/training/test_processes.py runs two of them."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tuna_jax.parallel import distributed
from tuna_jax.parallel.environment import arguments
from tuna_jax.parallel.mesh import AXES


def named(**values):
    return {f"TUNA_JAX_{name.upper()}": value for name, value in values.items()}


def test_a_process_gets_its_number_from_the_launcher():
    result = arguments(named(coordinator="host:1", processes="4", process="3"))
    assert result == {"coordinator_address": "host:1", "num_processes": 4, "process_id": 3}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        named(coordinator="host:1", processes="1", process="0"),
        {"SLURM_NTASKS": "8"},  # A shell of salloc is one process, whatever was allocated.
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ],
)
def test_a_single_process_initialises_nothing(environment):
    assert arguments(environment) is None
    distributed.initialize(environment)
    assert jax.process_count() == 1


@pytest.mark.parametrize(
    "environment",
    [
        named(coordinator="auto"),
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"TPU_WORKER_HOSTNAMES": "host-0,host-1"},
        {"MEGASCALE_NUM_SLICES": "2"},
    ],
)
def test_a_cluster_that_jax_detects_needs_no_arguments(environment):
    assert arguments(environment) == {}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (named(process="0"), "TUNA_JAX_COORDINATOR and TUNA_JAX_PROCESSES is not"),
        (named(coordinator="host:1", processes="2"), "TUNA_JAX_PROCESS is not"),
        (named(coordinator="h:1", processes="two", process="0"), "TUNA_JAX_PROCESSES=two"),
        (named(coordinator="h:1", processes="2", process="2"), "from 0 to 1"),
    ],
)
def test_contradictions_are_named(environment, message):
    with pytest.raises(ValueError, match=message):
        distributed.initialize(environment)


def test_a_single_process_communicates_with_nobody():
    tree = {"w": jax.numpy.arange(3)}
    np.testing.assert_array_equal(distributed.to_host(tree["w"]), [0, 1, 2])
    assert distributed.from_first([3, 5]) == [3, 5]
    assert distributed.all_agree(True) and not distributed.all_agree(False)
    assert not distributed.stop_together(1)
    distributed.wait_for_all()


class Device:
    """The attributes of a device that a mesh without real devices needs."""

    def __init__(self, number, process_index):
        self.id, self.process_index, self.platform = number, process_index, "cpu"


@pytest.mark.parametrize(
    ("shape", "each", "parts"),
    [((8, 1, 1, 1), 4, [0, 1]), ((1, 8, 1, 1), 4, [0, 1]), ((2, 1, 2, 2), 4, [0, 1])]
    + [((1, 2, 2, 2), 4, [0, 1]), ((1, 1, 1, 8), 4, [0, 0]), ((1, 1, 8, 1), 4, [0, 0])]
    + [((1, 2, 4, 1), 2, [0, 0, 1, 1]), ((1, 4, 2, 1), 1, [0, 0, 1, 1, 2, 2, 3, 3])]
    + [((1, 4, 2, 1), 3, None), ((1, 4, 2, 1), 5, None)],
)
def test_processes_with_the_same_rows_read_the_same_part(shape, each, parts, monkeypatch):
    """Simulated processes of `each` devices."""
    devices = np.array([Device(n, n // each) for n in range(8)], dtype=object)
    devices = devices.reshape((1,) * (len(AXES) - len(shape)) + shape)
    processes = -(-8 // each)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    mesh = Mesh(devices, AXES)
    if parts is None:
        with pytest.raises(ValueError, match=r"mesh\.data x mesh\.fsdp"):
            distributed.batch_part(mesh)
        return
    for process, part in enumerate(parts):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert distributed.batch_part(mesh) == (part, max(parts) + 1)
