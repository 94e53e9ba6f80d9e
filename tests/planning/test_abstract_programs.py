"""Programs as shapes: their memory on a device and their FLOPs; nothing is compiled here."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from tuna_jax.hardware import flops
from tuna_jax.parallel import param_sharding
from tuna_jax.planning import abstract_programs
from tuna_jax.planning import stage as experiment

TINY = Path(__file__).parent / "tiny_stage.py"


@pytest.fixture(scope="module")
def stage():
    return experiment.read("tiny_stage", runpy.run_path(str(TINY))["get_config"]().to_dict())


@pytest.fixture(scope="module")
def mesh(stage):
    return abstract_programs.mesh_of(stage.with_mesh(data=1, fsdp=1), jax.devices()[:1])


def test_streams_become_steps_with_their_shares(stage, mesh):
    programs = list(abstract_programs.all_of(stage, mesh, rows=2, kinds=["train"]))
    assert [(each.kind, each.stream, each.share) for each in programs] == [
        ("train", "describe", 0.25),
        ("train", "draw", 0.75),
    ]
    draw = programs[1]
    assert (draw.rows, draw.tokens, draw.pictures) == (2, 128, 2)
    parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(draw.arguments[0].params))
    assert draw.parts["parameters"] == draw.parts["average"] == parameters
    assert draw.parts["optimizer"] == pytest.approx(2 * parameters, rel=1e-3)
    assert draw.parts["frozen_vae"] == 0  # its latents were precomputed
    assert draw.plain is None  # no rematerialisation


def test_the_plain_step_counts_what_is_not_recomputed(stage, mesh):
    (step,) = abstract_programs.all_of(stage.with_model(remat="full"), mesh, 2, streams=["draw"])
    assert step.plain is not None
    plain = step.plain()

    def count(planned):
        return flops.count(planned.jitted.trace(*planned.arguments).jaxpr)

    assert count(plain) < count(step) < 4 / 3 * count(plain)


def test_the_sampler_takes_the_size_of_the_experiment(stage, mesh):
    sampler, decoder = abstract_programs.all_of(stage, mesh, kinds=["sample", "decode"])
    assert sampler.tokens == abstract_programs.PROMPT + 1 + 4 * 4
    out = jax.eval_shape(sampler.jitted, *sampler.arguments)
    assert out.shape == (1, 1, 4, 4, 8)
    assert jax.eval_shape(decoder.jitted, *decoder.arguments).shape == (1, 1, 64, 64, 3)
    vae = decoder.arguments[0]
    size = sum(leaf.size for leaf in jax.tree.leaves((vae["decoder"], vae["latent_in"])))
    assert decoder.parts["parameters"] == 4 * size


def test_the_sampler_takes_rows_and_a_dtype(stage, mesh):
    sampler = abstract_programs.sampler(stage, mesh, rows=24, dtype="bfloat16")
    whole = abstract_programs.sampler(stage, mesh)
    assert (sampler.pictures, whole.pictures) == (24, param_sharding.batch_parts(mesh))
    assert sampler.parts["parameters"] == whole.parts["parameters"] / 2
    out = jax.eval_shape(sampler.jitted, *sampler.arguments)
    assert out.shape[0] == 24


def test_another_kind_of_experiment_is_refused():
    with pytest.raises(ValueError, match="kind 'vae'"):
        experiment.read("emoji_vae", {"kind": "vae"})


def test_slices_must_be_contiguous():
    def devices(*indices):
        return [SimpleNamespace(slice_index=index) for index in indices]

    assert abstract_programs.slice_by_slice(devices(0, 0, 1, 1))
    assert not abstract_programs.slice_by_slice(devices(0, 1, 0, 1))
