import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from tuna_jax.models import logical_sharding
from tuna_jax.parallel.activation_sharding import (
    ACTIVATIONS,
    GENERATION,
    Activations,
    Split,
    partition,
)
from tuna_jax.parallel.mesh import AXES, make_mesh

MESH = AbstractMesh((2, 2, 2, 2, 2), AXES)
BATCH = ("slices", "data", "fsdp")


def test_batch_sequence_and_heads_are_split():
    spec = partition((8, 24, 4, 16), ("batch", "sequence", "heads", None), MESH)
    assert spec == PartitionSpec(BATCH, ("context",), ("tensor",), None)
    assert partition((8, 24, 64), ("batch", "sequence", "width"), MESH)[2] is None
    assert partition((8, 24, 2, 16), ("batch", "keys", "kv_heads", None), MESH)[1] is None


def test_generation_keeps_sequences_whole_and_takes_any_number_of_rows():
    axes = ("batch", "sequence", "width")
    assert partition((8, 1, 64), axes, MESH, GENERATION) == PartitionSpec(BATCH, None, None)
    assert partition((3, 1, 64), axes, MESH, GENERATION) == PartitionSpec(None, None, None)


def test_an_axis_that_does_not_divide_is_whole_only_where_the_table_says_so():
    assert partition((8, 24, 3, 16), ("batch", "sequence", "heads", None), MESH)[2] is None
    with pytest.raises(
        ValueError, match=r"'sequence' .* has size 25.*divide by 2 \(mesh context 2\)"
    ):
        partition((8, 25, 4), ("batch", "sequence", "width"), MESH)
    with pytest.raises(ValueError, match="'batch' .* has size 6.*divide by 8"):
        partition((6, 24, 4), ("batch", "sequence", "width"), MESH)


def test_a_name_that_the_table_lacks_is_an_error():
    with pytest.raises(ValueError, match="'seqence'.*batch, .*sequence"):
        partition((8, 24), ("batch", "seqence"), MESH)


def test_a_wrong_number_of_names_is_an_error():
    with pytest.raises(ValueError, match=r"shape \(8, 24\) has 3 axis names"):
        partition((8, 24), ("batch", "sequence", "width"), MESH)


def test_two_axes_on_one_mesh_axis_are_named():
    table = {**ACTIVATIONS, "width": Split(("context",))}
    with pytest.raises(ValueError, match="'sequence' and 'width' on the mesh axis 'context'"):
        partition((8, 24, 64), ("batch", "sequence", "width"), MESH, table)


def test_parts_are_counted():
    where = Activations(MESH)
    assert [where.parts("batch", 8), where.parts("heads", 4), where.parts("heads", 3)] == [8, 2, 1]


def test_one_device_is_left_alone_but_wrong_names_are_not():
    where = Activations(make_mesh(devices=jax.devices()[:1]))
    x = jnp.ones((3, 5))
    with logical_sharding.use_sharding(where):
        assert logical_sharding.constrain(x, "batch", "width") is x
        assert logical_sharding.platform() == "cpu"
        with pytest.raises(ValueError, match="'wdith'"):
            logical_sharding.constrain(x, "batch", "wdith")
    assert logical_sharding.constrain(x, "batch", "wdith") is x, "nobody asks outside"
