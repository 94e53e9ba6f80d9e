"""Released checkpoints that lack layers, and layers that look untrained."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tuna_jax import convert
from tuna_jax.conversion import detect_format, missing_layers
from tuna_jax.conversion.checkpoint_source import open_parameters
from tuna_jax.models import tuna
from tuna_jax.parity import golden_set
from tuna_jax.utils.param_tree import unflatten

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module", params=["tuna_2", "tuna_r"])
def golden(request) -> golden_set.GoldenSet:
    return golden_set.load(GOLDENS / request.param)


@pytest.fixture(scope="module")
def foundation(golden, tmp_path_factory) -> Path:
    """The golden set's checkpoint without layer 1 of the language transformer and layer 0 of the flow head."""
    folder = tmp_path_factory.mktemp("foundation")
    state = load_file(golden.folder / "model.safetensors")
    gone = ("tuna.model.layers.1.", "diffusion_head_a.0.")
    save_file(
        {k: v for k, v in state.items() if not k.startswith(gone)}, folder / "part.safetensors"
    )
    return folder


def _convert(golden, foundation: Path, name: str, *more: str) -> int:
    sizes = str(golden.folder / "state_dict.json")
    source, output = f"{foundation}/part.safetensors", f"{foundation}/{name}"
    return convert.main(["from_torch", source, output, "--config", sizes, *more])


def test_missing_layers_are_refused_by_number(golden, foundation, capsys) -> None:
    assert _convert(golden, foundation, "refused") != 0
    error = capsys.readouterr().err
    for text in (
        "language: 1",
        "flow_head: 0",
        "--missing_layers=initialise",
        "language.layers[1]",
    ):
        assert text in error
    assert not (foundation / "refused").exists()


@pytest.mark.slow
def test_filled_layers_are_the_identity(golden, foundation, capsys) -> None:
    assert _convert(golden, foundation, "filled", "--missing_layers=initialise") == 0
    assert "flow_head.layers[0]" in capsys.readouterr().out
    assert convert.main(["inspect", f"{foundation}/filled"]) == 0
    inspected = capsys.readouterr().out
    for name in ("language.layers[1]", "flow_head.layers[0]"):
        assert f"{name} looks untrained: norms are one" in inspected
    assert "language.layers[0]" not in inspected
    config, state = open_parameters(foundation / "filled")
    params = unflatten({name: jnp.asarray(state.read(name)) for name in state.entries})
    kernel = params["language"]["layers"]["query"]["kernel"]
    assert 0.5 < float(kernel[1].std() * np.sqrt(kernel.shape[1])) < 1.5

    smaller = dataclasses.replace(
        config,
        language=dataclasses.replace(config.language, layers=1),
        flow_head=dataclasses.replace(config.flow_head, layers=1),
    )
    without = jax.tree.map(lambda x: x, params)
    for part, kept in (("language", 0), ("flow_head", 1)):
        layers = params[part]["layers"]
        without[part] = {
            **params[part],
            "layers": jax.tree.map(lambda x, k=kept: x[k : k + 1], layers),
        }
    tokens, spans = jnp.arange(12)[None], jnp.asarray([[[3, 5]]])
    latents = jax.random.normal(jax.random.key(0), (1, 1, 1, 2, 2, 768))
    t = jnp.full((1, 1), 0.3)
    filled = tuna.forward(config, params, tokens, spans, latents, t)
    expected = tuna.forward(smaller, without, tokens, spans, latents, t)
    np.testing.assert_allclose(filled.hidden, expected.hidden, atol=1e-6)
    np.testing.assert_allclose(filled.prediction, expected.prediction, atol=1e-5)


def test_inspect_lists_missing_layers_and_tells_the_family(golden, foundation, capsys) -> None:
    sizes = str(golden.folder / "state_dict.json")
    assert convert.main(["inspect", f"{foundation}/part.safetensors", "--config", sizes]) == 1
    text = capsys.readouterr().out
    assert ("Tuna-2" if golden.folder.name == "tuna_2" else "Tuna-R") in text
    assert "language: 1; flow_head: 0" in text


def test_a_layer_that_was_initialised_again_is_named(golden) -> None:
    state = load_file(golden.folder / "model.safetensors")
    random = np.random.default_rng(0)
    for key, value in state.items():
        if key.startswith("tuna.model.layers.1."):
            value[...] = (
                1
                if "norm" in key
                else 0
                if "bias" in key
                else 0.02 * random.normal(size=value.shape)
            )
    assert missing_layers.untrained(golden.config, _opened(golden, {})) == {}
    found = missing_layers.untrained(golden.config, _opened(golden, state))
    assert list(found) == ["language.layers[1]"]
    assert any("0.02" in sign for sign in found["language.layers[1]"])


def _opened(golden, state) -> detect_format.StateDict:
    if not state:
        return detect_format.open_weights(golden.folder / "model.safetensors")
    entries = {key: detect_format.Entry(x.shape, x.dtype, "memory") for key, x in state.items()}
    return detect_format.StateDict(entries, lambda key, index: state[key])


def test_other_missing_tensors_are_still_listed(golden, tmp_path, capsys) -> None:
    state = load_file(golden.folder / "model.safetensors")
    del state["tuna.model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "part.safetensors")
    sizes = str(golden.folder / "state_dict.json")
    arguments = ["from_torch", f"{tmp_path}/part.safetensors", f"{tmp_path}/out", "--config", sizes]
    assert convert.main([*arguments, "--missing_layers=initialise"]) != 0
    assert "missing: tuna.model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
