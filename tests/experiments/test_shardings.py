"""Parameters of the six stages are split as the golden files say; a change that nobody meant fails here."""

import json

import pytest

from tuna_jax.planning import golden_shardings

CASES = golden_shardings.stages()


def test_all_six_stages_have_files_and_no_file_is_left_over():
    assert len({file for file, _ in CASES}) == 6
    assert {golden_shardings.golden(*case) for case in CASES} == set(
        golden_shardings.FOLDER.glob("*.json")
    )


@pytest.mark.parametrize(
    ("file", "topology"), CASES, ids=lambda value: getattr(value, "stem", value)
)
def test_parameters_are_split_as_the_golden_file_says(file, topology):
    known = json.loads(golden_shardings.golden(file, topology).read_text())
    found = golden_shardings.describe(file, topology)
    assert found == known, (
        "meant? python -m tuna_jax.planning.golden_shardings writes the files anew"
    )


def test_a_golden_file_says_what_a_device_holds():
    """A sixteenth of all kernels and of the table of tokens, and every bias and norm whole."""
    file, topology = CASES[0]
    known = json.loads(golden_shardings.golden(file, topology).read_text())
    assert known["mesh"]["fsdp"] == 16
    table = known["parameters"]["language.embedding"]
    assert table == "float32[151669, 1536] as [-, fsdp]: [151669, 96]"
    assert known["parameters"]["language.layers.norm1.scale"].endswith("as []: [28, 1536]")
