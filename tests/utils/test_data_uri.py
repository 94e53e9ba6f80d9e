"""Data URIs as the field writes them."""

import base64
import urllib.parse

import pytest

from tuna_jax.utils.data_uri import decode_data_uri, is_data_uri

CONTENT = bytes(range(256)) * 3


def test_every_spelling_is_read() -> None:
    plain = base64.b64encode(CONTENT).decode()
    spellings = [
        f"data:image/png;base64,{plain}",
        f"DATA:image/png;charset=utf-8;BASE64,{plain.rstrip('=')}",
        f"data:;base64,{base64.urlsafe_b64encode(CONTENT).decode()}",
        "data:image/png;base64," + "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76)),
        f"data:image/png;base64,{urllib.parse.quote(plain, safe='')}",
        f"data:,{urllib.parse.quote_from_bytes(CONTENT)}",
    ]
    for spelling in spellings:
        assert is_data_uri(spelling)
        assert decode_data_uri(spelling) == CONTENT
    assert not is_data_uri("data/a.png")


@pytest.mark.parametrize("text", ["data:image/png;base64", "data:;base64,a", "data:;base64,é%%%"])
def test_a_broken_one_is_named_without_its_content(text) -> None:
    with pytest.raises(ValueError, match="data URI") as raised:
        decode_data_uri(text)
    assert len(str(raised.value)) < 200
