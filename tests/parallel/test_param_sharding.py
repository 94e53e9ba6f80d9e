import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from tuna_jax import config
from tuna_jax.models import tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import AXES
from tuna_jax.parallel.param_sharding import LogicalAxes, Rule


def mesh(slices=1, data=1, fsdp=1, context=1, tensor=1):
    return AbstractMesh((slices, data, fsdp, context, tensor), AXES)


def shapes(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}


@pytest.mark.parametrize("preset", ["tiny", "emoji", "tuna_smol", "tuna_1p5b", "tuna_7b"])
def test_every_preset_has_a_sharding_for_every_parameter(preset):
    params = jax.eval_shape(lambda: tuna.init(config.preset(preset), jax.random.key(0)))
    tree = param_sharding.shardings(params, mesh(data=2, fsdp=2, tensor=2))
    assert jax.tree.structure(tree) == jax.tree.structure(params)
    specs = {
        param_sharding.dotted(path): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert specs["language.layers.query.kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert specs["language.layers.out.kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert specs["flow_head.layers.mlp.down.kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert specs["language.embedding"] == PartitionSpec(None, "fsdp")
    assert specs["language.norm.scale"] == PartitionSpec()


def test_dinov3_has_a_sharding_for_every_parameter():
    own = config.DINOv3Config(gated=True)
    sizes = dataclasses.replace(config.preset("tiny").representation, kind="dinov3", dinov3=own)
    model = dataclasses.replace(config.preset("tiny"), representation=sizes)
    tree = param_sharding.shardings(tuna.shapes(model), mesh(data=2, fsdp=2, tensor=2))
    encoder = tree["representation"]
    assert encoder["layers"]["gate"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert encoder["layers"]["down"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert encoder["registers"].spec == PartitionSpec(None, "fsdp")
    assert encoder["layers"]["layer_scale1"]["scale"].spec == encoder["cls"].spec == PartitionSpec()


def test_large_matrices_of_the_7b_are_split_over_all_of_a_pod():
    """A rule that quietly replicates would fit no chip: all but a thousandth of the parameters must be split."""
    params = jax.eval_shape(lambda: tuna.init(config.preset("tuna_7b"), jax.random.key(0)))
    where = mesh(fsdp=64, tensor=2)
    tree = param_sharding.shardings(params, where)
    whole = sum(leaf.size for leaf in jax.tree.leaves(params))
    parts = jax.tree.map(lambda leaf, s: leaf.size // _count(s.spec, where), params, tree)
    assert sum(jax.tree.leaves(parts)) < whole / 40


def _count(spec, where):
    count = 1
    for axes in spec:
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            count *= where.shape[axis]
    return count


def test_unmatched_parameter_is_named():
    with pytest.raises(
        ValueError, match=r"no sharding rule matches the parameter stranger \(3, 4\)"
    ):
        param_sharding.shardings(
            shapes(stranger=(3, 4)), mesh(), rules=[Rule("known", None, optional=True)]
        )


def test_rule_that_matches_nothing_is_named():
    table = [Rule("a", ("width",)), Rule("no_such", ("width",))]
    with pytest.raises(ValueError, match="'no_such' matches no parameter"):
        param_sharding.shardings(shapes(a=(4,)), mesh(), rules=table)


def test_a_rule_hidden_by_an_earlier_one_is_named():
    with pytest.raises(ValueError, match=re.escape("'a' matches no parameter")):
        param_sharding.shardings(
            shapes(a=(4,)), mesh(), rules=[Rule(".*", None), Rule("a", ("width",))]
        )


def test_first_rule_wins():
    table = [Rule("a", ("width", "small")), Rule("[ab]", ("small", "width"))]
    tree = param_sharding.shardings(shapes(a=(4, 4), b=(4, 4)), mesh(fsdp=2), rules=table)
    assert tree["a"].spec == PartitionSpec("fsdp", None)
    assert tree["b"].spec == PartitionSpec(None, "fsdp")


def test_collision_names_parameter_axes_and_mesh_axis():
    with pytest.raises(ValueError, match="w: .*'width' and 'mlp'.*'fsdp'"):
        param_sharding.shardings(
            shapes(w=(4, 4)),
            mesh(fsdp=2),
            axes=LogicalAxes(mlp="fsdp"),
            rules=[Rule("w", ("width", "mlp"))],
        )


def test_axis_that_does_not_divide_is_named_with_what_does():
    with pytest.raises(
        ValueError, match=r"w: its axis 'width' of size 1152 does not divide by 256.*192"
    ):
        param_sharding.shardings(shapes(w=(1152,)), mesh(fsdp=256), rules=[Rule("w", ("width",))])


def test_rank_mismatch_is_named():
    with pytest.raises(ValueError, match=r"names 1 axes .* but w has shape \(4, 4\)"):
        param_sharding.shardings(shapes(w=(4, 4)), mesh(), rules=[Rule("w", ("width",))])


def test_unknown_logical_axis_is_named():
    with pytest.raises(ValueError, match="unknown logical axis 'wdith'"):
        param_sharding.shardings(shapes(w=(4,)), mesh(), rules=[Rule("w", ("wdith",))])


def test_batch_that_cannot_be_split_is_refused():
    param_sharding.check_batch(24, mesh(data=2, fsdp=4))
    with pytest.raises(ValueError, match="a batch of 20 does not divide by 8"):
        param_sharding.check_batch(20, mesh(data=2, fsdp=4))
    with pytest.raises(ValueError, match="a batch of 12 does not divide by 8"):
        param_sharding.check_batch(12, mesh(slices=2, data=2, fsdp=2))


def test_optimizer_state_follows_its_parameters():
    where = mesh(fsdp=2)
    params = shapes(a=(4, 4))
    found = param_sharding.shardings(params, where, rules=[Rule("a", ("width", "small"))])
    state = {"moments": ({"mu": params}, jax.ShapeDtypeStruct((), jnp.int32)), "count": params["a"]}
    tree = param_sharding.follow(found, state, where)
    assert tree["moments"][0]["mu"]["a"].spec == PartitionSpec("fsdp", None)
    assert tree["moments"][1].spec == PartitionSpec()
    assert tree["count"].spec == PartitionSpec()
