import dataclasses

import jax
import pytest

from tuna_jax.parallel.mesh import AXES, MeshSettings, make_mesh, sizes


def test_free_axis_takes_what_is_left():
    assert sizes(MeshSettings(data=-1, fsdp=4, tensor=2), 32) == (1, 4, 4, 1, 2)
    assert sizes(MeshSettings(data=2, fsdp=-1), 8) == (1, 2, 4, 1, 1)
    assert sizes(MeshSettings(slices=2, data=-1, fsdp=4), 32) == (2, 4, 4, 1, 1)


def test_fixed_sizes_must_multiply_to_the_devices():
    with pytest.raises(
        ValueError,
        match=r"slices 1 x data 2 x fsdp 2 x context 1 x tensor 1.*4 devices.*8",
    ):
        sizes(MeshSettings(data=2, fsdp=2), 8)


def test_free_axis_must_come_out_whole():
    with pytest.raises(ValueError, match="6 is not a multiple of 4"):
        sizes(MeshSettings(fsdp=4), 6)


def test_two_free_axes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"mesh\.data and mesh\.fsdp"):
        MeshSettings(data=-1, fsdp=-1)


def test_size_zero_is_refused_by_name():
    with pytest.raises(ValueError, match=r"mesh\.tensor is 0"):
        MeshSettings(tensor=0)


def test_mesh_of_one_device():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == dict.fromkeys(AXES, 1)


@dataclasses.dataclass(frozen=True)
class Device:
    """What the layout reads of a device."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0
    core_on_chip: int = 0

    @property
    def coords(self):
        """Two slices of 2 x 2 chips."""
        return (self.id // 2 % 2, self.id // 4, 0)


def test_a_slice_of_tpus_is_one_index_of_the_axis():
    """Their order in the list does not matter: no slice may be torn over another axis."""
    devices = [Device(number, number % 2) for number in range(8)]
    mesh = make_mesh(MeshSettings(slices=2, data=1, fsdp=4), devices)
    assert dict(mesh.shape) == {"slices": 2, "data": 1, "fsdp": 4, "context": 1, "tensor": 1}
    assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]


@dataclasses.dataclass(frozen=True)
class Cube(Device):
    """One of 4 x 4 x 4 chips."""

    device_kind: str = "TPU v5"

    @property
    def coords(self):
        return (self.id % 4, self.id // 4 % 4, self.id // 16)


@pytest.mark.parametrize("slices", [1, 2])
def test_a_mesh_need_not_be_a_product_of_the_slices_own_axes(slices):
    """32 is no product of 4, 4 and 4: one of the slice's axes is shared between two of the mesh."""
    devices = [Cube(number % 64, number // 64) for number in range(64 * slices)]
    mesh = make_mesh(MeshSettings(slices=slices, data=2, fsdp=32), devices)
    assert mesh.devices.shape == (slices, 2, 32, 1, 1)
    assert set(mesh.devices.flat) == set(devices)


@pytest.mark.parametrize("slices", [1, 4])
def test_slices_must_be_those_that_the_tpus_lie_in(slices):
    devices = [Device(number, number % 2) for number in range(8)]
    with pytest.raises(ValueError, match=rf"mesh\.slices is {slices} .* set mesh\.slices=2"):
        make_mesh(MeshSettings(slices=slices), devices)


def test_devices_without_slices_are_split_in_their_order():
    devices = [Device(number, number % 4, platform="cpu") for number in range(8)]
    mesh = make_mesh(MeshSettings(slices=2, data=2, tensor=2), devices)
    assert [[d.id for d in part.flat] for part in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]
