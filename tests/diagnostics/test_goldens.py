"""The references are this machine's numbers, and a model that computes something else fails."""

import numpy as np
import pytest

from tuna_jax.diagnostics import goldens
from tuna_jax.diagnostics.finding import FAIL, PASS
from tuna_jax.models import attention
from tuna_jax.utils import safetensors_files

REFERENCES = safetensors_files.read(goldens.FILE)[0]


@pytest.fixture(scope="module")
def values():
    return goldens.computed("float32")


def test_the_file_is_small_and_its_numbers_are_no_zeros(values):
    assert goldens.FILE.stat().st_size < 10_000
    assert values.keys() == REFERENCES.keys()
    assert all(np.abs(array).mean() > 1e-3 for array in REFERENCES.values())
    assert np.all(REFERENCES["gradients"][:, 0] > 0)  # Every parameter takes part.


def test_float32_on_cpu_is_well_within_the_bound(values):
    finding = goldens.compare("float32", values, REFERENCES)
    assert finding.result == PASS and max(finding.numbers["float32"].values()) < 2e-6


def test_a_wrong_kernel_fails(monkeypatch):
    dense = attention._dense
    monkeypatch.setattr(attention, "_dense", lambda *inputs: dense(*inputs) * 1.001)
    finding = goldens.compare("float32", goldens.computed("float32"), REFERENCES)
    assert finding.result == FAIL
    for name in ("velocity", "logits", "gradients"):
        assert finding.numbers["float32"][name] > 1e-5, name
    assert "WRONG" in finding.measured and "vae" not in finding.measured.partition("WRONG")[2]


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_every_output_counts_and_nan_fails(values, name):
    for change in (1 + 2e-5, np.nan):
        finding = goldens.compare("float32", values | {name: values[name] * change}, REFERENCES)
        assert finding.result == FAIL and name in finding.measured
    rough = values | {name: values[name] * 1.1}
    assert goldens.compare("bfloat16", rough, REFERENCES).result == FAIL
