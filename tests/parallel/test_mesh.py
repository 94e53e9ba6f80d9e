import jax
import pytest

from tuna_jax.parallel.mesh import AXES, MeshSettings, make_mesh, sizes


def test_free_axis_takes_what_is_left():
    assert sizes(MeshSettings(data=-1, fsdp=4, tensor=2), 32) == (4, 4, 1, 2)
    assert sizes(MeshSettings(data=2, fsdp=-1), 8) == (2, 4, 1, 1)


def test_fixed_sizes_must_multiply_to_the_devices():
    with pytest.raises(
        ValueError, match=r"data 2 x fsdp 2 x context 1 x tensor 1 wants 4 devices.*there are 8"
    ):
        sizes(MeshSettings(data=2, fsdp=2), 8)


def test_free_axis_must_come_out_whole():
    with pytest.raises(ValueError, match="6 is not a multiple of 4"):
        sizes(MeshSettings(fsdp=4), 6)


def test_two_free_axes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"mesh\.data and mesh\.fsdp are both -1"):
        MeshSettings(data=-1, fsdp=-1)


def test_size_zero_is_refused_by_name():
    with pytest.raises(ValueError, match=r"mesh\.tensor is 0"):
        MeshSettings(tensor=0)


def test_mesh_of_one_device():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert mesh.axis_names == AXES
    assert dict(mesh.shape) == dict.fromkeys(AXES, 1)
