"""NaN in weights, latents or logits is an error that names it, at loading and before a result is written."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tuna_jax
from tuna_jax import convert, evaluate_vqa, generate
from tuna_jax.inference import run_requests
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.not_finite import NotFiniteError
from tuna_jax.inference.requests import Request
from tuna_jax.utils import nonfinite_values, text_files
from tuna_jax.utils.param_tree import flatten, unflatten

pytestmark = pytest.mark.usefixtures("any_words")
QUICK = {"steps": 1, "size": (32, 32), "guidance": 1.0}


def with_nan(tuna, name):
    """The model with one NaN in a parameter."""
    flat = {key: np.array(leaf) for key, leaf in flatten(tuna.params).items()}
    flat[name].flat[0] = np.nan
    return dataclasses.replace(tuna, params=jax.tree.map(jax.numpy.asarray, unflatten(flat)))


@pytest.fixture(scope="module")
def ill(tuna):
    return with_nan(tuna, "language.norm.scale")


@pytest.fixture(scope="module")
def ill_file(tiny_model, tmp_path_factory):
    """The converted model's file with one NaN, as a model of its own."""
    folder = tmp_path_factory.mktemp("ill") / "model"
    folder.mkdir()
    from safetensors import safe_open

    (file,) = tiny_model.glob("*.safetensors")
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors["language.norm.scale"][0] = np.nan
    save_file(tensors, folder / file.name, metadata=metadata)
    return folder


def test_an_image_that_is_not_finite_is_an_error(ill):
    with pytest.raises(NotFiniteError, match=r"no finite image for row 0 \('a dog'\)") as caught:
        ill.generate_image(["a dog", "a cat"], **QUICK)
    assert caught.value.rows == (0, 1) and len(caught.value.results) == 2


def test_a_vae_that_is_not_finite_is_an_error(tuna):
    vae = jax.tree.map(lambda leaf: leaf * np.nan, tuna.vae_params)
    with pytest.raises(NotFiniteError, match="no finite image"):
        dataclasses.replace(tuna, vae_params=vae).generate_image("a dog", **QUICK)


def test_an_answer_that_is_not_finite_is_an_error(ill):
    """It was `!!!!!`, the token of id 0."""
    with pytest.raises(NotFiniteError, match=r"no finite answer for row 0 \('why\?'\)"):
        ill.answer(None, "why?", max_new_tokens=2)
    with pytest.raises(NotFiniteError, match="no finite answer"):
        list(ill.stream_answer(None, "why?", max_new_tokens=2))


def test_requests_that_are_not_finite_are_counted_and_named(ill, tmp_path):
    failures = {}
    requests = [Request(text="a dog", where="p.jsonl:7")]
    more = {"log": print, "on_failure": failures.setdefault}
    assert run_requests.generate_images(ill, requests, tmp_path, **more, **QUICK) == []
    assert not list(tmp_path.glob("*.png"))
    assert str(failures[0]).startswith("p.jsonl:7: no finite result")
    path = run_requests.write_answers(ill, requests, tmp_path, **more, max_new_tokens=2)
    (line,) = map(json.loads, path.read_text().splitlines())
    assert "answer" not in line and line["error"].startswith("p.jsonl:7: no finite")
    with pytest.raises(NotFiniteError):
        ill.reply([Conversation.of([], "a")], max_new_tokens=2)


def test_weights_are_checked_when_they_are_loaded(ill_file):
    with pytest.raises(ValueError, match=r"NaN or infinite: language\.norm\.scale \(1 of 64\)"):
        tuna_jax.Tuna.load(ill_file, tokenizer="emoji")
    model = tuna_jax.Tuna.load(ill_file, tokenizer="emoji", check_weights=False)
    assert not np.isfinite(model.params["language"]["norm"]["scale"]).all()


def test_commands_name_them(ill_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = [f"--model={ill_file}", "--tokenizer=emoji"]
    ending = ["--prompt=a dog", "--steps=1", "--size=32", "--guidance=1"]
    assert generate.main([*model, *ending]) == 1
    assert "language.norm.scale" in capsys.readouterr().err
    assert generate.main([*model, "--no-check_weights", *ending]) == 1
    assert "request 0 ('a dog'): no finite result" in capsys.readouterr().err
    assert not (tmp_path / "pictures/prompt_0.png").exists()
    (tmp_path / "q.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    flags = [*model, "--no-check_weights", "--questions=q.jsonl", "--task=log_likelihood"]
    assert evaluate_vqa.main(flags) == 1
    captured = capsys.readouterr()
    assert "q.jsonl:1: no finite log-likelihood" in captured.err and "NaN\n" not in captured.out
    (line,) = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    assert line["error"].startswith("q.jsonl:1: ")


def test_inspect_and_conversion_name_them(ill_file, tmp_path, capsys):
    assert convert.main(["inspect", str(ill_file)]) == 1
    assert "NaN or infinity in 1 tensors: language.norm.scale (1 of 64)" in capsys.readouterr().out
    assert convert.main(["inspect", str(ill_file), "--no-check_weights"]) == 0
    out = tmp_path / "theirs.safetensors"
    with pytest.warns(UserWarning, match=r"language\.norm\.scale \(1 of 64\)"):
        assert convert.main(["to_torch", str(ill_file), str(out)]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            convert.main(
                ["to_torch", str(ill_file), f"{tmp_path}/b.safetensors", "--no-check_weights"]
            )
            == 0
        )
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tuna_config(ill_file)))
    arguments = ["from_torch", str(out), f"{tmp_path}/ours", "--config", str(config)]
    with pytest.warns(UserWarning, match=r"tuna\.model\.norm\.weight \(1 of 64\)"):
        assert convert.main(arguments) == 0  # To the bit.
    with pytest.raises(ValueError, match=r"language\.norm\.scale"):
        tuna_jax.Tuna.load(tmp_path / "ours", tokenizer="emoji")


def tuna_config(folder):
    from tuna_jax.conversion import checkpoint_source

    return checkpoint_source.open_parameters(folder)[0].to_dict()


@pytest.mark.parametrize("dtype", [dtype.name for dtype in nonfinite_values._BITS])
def test_values_that_are_not_finite_are_counted_in_any_dtype(dtype):
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    values = np.linspace(-8, 8, 1000, dtype=np.float32).astype(dtype).reshape(10, 100)
    assert nonfinite_values.count(values) == 0
    values[3, 4] = values[9, 9] = np.nan
    assert nonfinite_values.count(values) == 2 == nonfinite_values.count(values.T)
    assert nonfinite_values.count(np.arange(3)) == 0


def test_json_has_no_nan():
    values = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (1, "x")}}
    assert text_files.json_text(values) == '{"a": null, "b": [1.5, null], "c": {"d": [1, "x"]}}'
