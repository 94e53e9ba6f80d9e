"""Parameters of the six stages are sharded as in the golden files."""

import json

import pytest

from tuna_jax.planning import golden_shardings

CASES = golden_shardings.stages()


def test_golden_files_are_those_of_all_stages():
    assert len({file for file, _ in CASES}) == 10
    assert {golden_shardings.golden(*case) for case in CASES} == set(
        golden_shardings.FOLDER.glob("*.json")
    )


@pytest.mark.parametrize(
    ("file", "topology"), CASES, ids=lambda value: getattr(value, "stem", value)
)
def test_parameters_are_sharded_as_in_the_golden_file(file, topology):
    expected = json.loads(golden_shardings.golden(file, topology).read_text())
    assert golden_shardings.describe(file, topology) == expected, (
        "if this is intended: python -m tuna_jax.planning.golden_shardings"
    )


def test_a_golden_file_has_the_shapes_of_a_device():
    """A sixteenth of all kernels and of the token embedding, and whole biases and norms."""
    file, topology = CASES[0]
    golden = json.loads(golden_shardings.golden(file, topology).read_text())
    assert golden["mesh"]["fsdp"] == 16
    table = golden["parameters"]["language.embedding"]
    assert table == "float32[151669, 1536] as [-, fsdp]: [151669, 96]"
    assert golden["parameters"]["language.layers.norm1.scale"].endswith("as []: [28, 1536]")
