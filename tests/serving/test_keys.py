"""API keys, and a model that computes NaN: an error, and not a black picture."""

import dataclasses

import httpx
import jax
import jax.numpy as jnp
import openai
import pytest

from tests.serving.conftest import SETTINGS, start
from tuna_jax.serving.guard import Keys, read_keys

pytestmark = pytest.mark.usefixtures("any_words")
QUESTION = {"messages": [{"role": "user", "content": "what is this?"}], "max_tokens": 6}
SMALL = dataclasses.replace(
    SETTINGS, tasks=("chat", "image"), text_slots=1, image_slots=1, max_images=1
)


def test_keys_and_a_model_that_computes_nan(tuna, tmp_path):
    (tmp_path / "keys").write_text("# people\nfirst\nsecond\n")
    keys = read_keys(str(tmp_path / "keys"), {"TUNA_JAX_API_KEYS": "third, "})
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), tuna.params)
    poisoned = dataclasses.replace(tuna, params=params)
    with start(poisoned, SMALL, keys) as running:
        assert httpx.get(f"{running.url}/health").status_code == 200
        for header in (None, "Bearer wrong", "Bearer", "Basic first", "Bearer first2"):
            headers = {} if header is None else {"Authorization": header}
            for path in ("v1/models", "metrics", "v1/nothing"):
                response = httpx.get(f"{running.url}/{path}", headers=headers)
                assert response.status_code == 401, header
        for key in ("first", "second", "third"):
            client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
            assert client.models.list().data
        with pytest.raises(openai.InternalServerError) as raised:
            client.chat.completions.create(model="tuna", **QUESTION)
        assert raised.value.code == "not_finite"
        extra = {"num_inference_steps": 2}
        with pytest.raises(openai.InternalServerError) as raised:
            client.images.generate(prompt="a", extra_body=extra)
        assert raised.value.code == "not_finite"
        with pytest.raises(openai.APIError, match="NaN"):
            list(client.chat.completions.create(model="tuna", stream=True, **QUESTION))
        with pytest.raises(openai.BadRequestError):
            client.videos.create(prompt="a")


def test_keys_are_compared_whole(tmp_path):
    keys = Keys(["abc"])
    assert keys.accept("abc") and not any(map(keys.accept, ("", "ab", "abcd", "ABC")))
    assert not Keys() and keys
    with pytest.raises(FileNotFoundError):
        read_keys(str(tmp_path / "none"), {})
    (tmp_path / "empty").write_text("\n# nobody\n")
    with pytest.raises(ValueError, match="empty"):
        read_keys(str(tmp_path / "empty"), {})
