"""What the guard refuses before a request reaches an endpoint."""

import asyncio
import types

import pytest

from tuna_jax.serving.guard import Guard, Keys
from tuna_jax.serving.settings import Settings


def status(headers, path="/v1/models", **settings):
    """The status that a request gets from a guard in front of an application that answers 200."""
    metrics = types.SimpleNamespace(request=lambda *arguments: None)
    server = types.SimpleNamespace(settings=Settings(**settings), requests=0, metrics=metrics)
    sent = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": b"x" * 64}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b""}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Guard(app, server, Keys())(scope, receive, send))
    assert server.requests == 0
    return sent[0]["status"]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, 200),
        ("http://127.0.0.1:8000", 200),
        ("https://allowed.org", 200),
        ("https://elsewhere.org", 403),
        ("null", 403),
        ("http://127.0.0.1:9000", 403),
    ],
)
def test_pages_of_other_origins(origin, expected):
    headers = {"host": "127.0.0.1:8000"} | ({} if origin is None else {"origin": origin})
    assert status(headers, allow_origins=("https://allowed.org",)) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("elsewhere.org:8000", 403),
        ("localhost.elsewhere.org", 403),
        ("", 403),
    ],
)
def test_a_local_server_has_local_names_only(host, expected):
    # As of a page of elsewhere.org, a name that points to 127.0.0.1: its origin is that of the server.
    headers = {"host": host, "origin": f"http://{host}"}
    assert status(headers, only_local=True) == expected
    if host:
        assert status(headers) == 200


def test_bodies_are_limited_by_what_arrives_and_by_what_is_announced():
    headers = {"host": "localhost"}
    assert status(headers, max_bytes=64) == 200
    assert status(headers, max_bytes=63) == 413
    assert status(headers | {"content-length": "65"}, max_bytes=64) == 413
