"""The layout of a model for inference: the one with the least communication that fits."""

import jax
import pytest

from tuna_jax.config import preset
from tuna_jax.inference import layouts

GIB = 2**30
V5E, V6E = int(15.75 * GIB), int(31.25 * GIB)


@pytest.mark.parametrize(
    ("model", "devices", "memory", "name", "tensor", "fsdp"),
    [
        ("emoji", 8, 2 * GIB, "replicated", 1, 1),
        ("tuna_1p5b", 64, V5E, "replicated", 1, 1),
        ("tuna_7b", 64, V6E, "replicated", 1, 1),
        ("tuna_7b", 64, V5E, "tensor parallel", 2, 1),
        ("tuna_7b", 8, 4 * GIB, "FSDP", 1, 8),
    ],
)
def test_the_least_split_layout_that_fits(model, devices, memory, name, tensor, fsdp):
    layout = layouts.choose(preset(model), devices, memory)
    assert (layout.name, layout.mesh.tensor, layout.mesh.fsdp) == (name, tensor, fsdp)
    assert layout.mesh.data * layout.mesh.tensor * layout.mesh.fsdp == devices
    assert layout.bytes_per_device <= layouts.SHARE * memory


def test_each_kind_has_a_first_layout_that_fits():
    config = preset("tuna_7b")
    found = layouts.first_of_each_kind(config, 64, V6E)
    assert [each.name for each in found] == ["replicated", "tensor parallel", "FSDP"]
    assert found[0] == layouts.choose(config, 64, V6E)
    sizes = [each.bytes_per_device for each in found]
    assert sizes[0] > sizes[1] > sizes[2] and found[2].mesh.fsdp == 64
    assert [each.name for each in layouts.first_of_each_kind(config, 64, 4 * GIB)] == ["FSDP"]


def test_the_stored_dtype_is_kept_where_it_leaves_room():
    config = preset("tuna_1p5b")
    assert layouts.choose(config, 4, 80 * GIB).dtype == ""
    assert layouts.choose(config, 4, V5E).dtype == "bfloat16"
    halves = [
        layouts.choose(config, 4, 80 * GIB, dtype).bytes_per_device for dtype in ("", "bfloat16")
    ]
    assert halves[0] == 2 * halves[1]


def test_a_model_that_does_not_fit_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"GiB on each of 4 devices.*more devices"):
        layouts.choose(preset("tuna_7b"), 4, 2 * GIB)


def test_devices_of_this_machine_have_memory():
    assert layouts.memory_of(jax.devices()[0]) > GIB
    assert layouts.for_devices(preset("tiny")).name == "replicated"
