"""The chips' figures, and the names of topologies."""

import pytest

from tuna_jax.hardware.chips import CHIPS, chip_of
from tuna_jax.planning.topology import chip_count


def test_the_published_figures():
    chip = chip_of("v5p:4x4x4")
    assert (chip.peak, chip.memory, chip.bandwidth, chip.network) == (
        459e12,
        95 * 2**30,
        2765e9,
        6e11,
    )
    assert CHIPS["tpu7x"].devices == 2
    assert all(chip.usable <= chip.memory for chip in CHIPS.values())


def test_a_host_shares_its_network_card():
    assert chip_of("v5e:4x4").dcn == 25e9 / 4


@pytest.mark.parametrize(("name", "chips"), [("v5e:4x4", 16), ("v5p:2x4x4", 32)])
def test_chips_of_a_topology(name, chips):
    assert chip_count(name) == chips


@pytest.mark.parametrize(
    ("name", "words"), [("v9:4x4", "v9"), ("v5e:16", "KIND:AxB or KIND:AxBxC")]
)
def test_a_wrong_topology_is_named(name, words):
    with pytest.raises(ValueError, match=f"--topology={name}.*{words}"):
        chip_count(name)
