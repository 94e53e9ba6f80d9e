"""What every request passes first: keys, the origin of web pages, the size of the body, and a net under all errors.

It also counts requests. Nothing of a request's content is logged.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
import traceback
import urllib.parse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tuna_jax.serving.errors import ApiError
from tuna_jax.utils.text_files import numbered_lines

if TYPE_CHECKING:
    from tuna_jax.serving.app import Server

_log = logging.getLogger("tuna_jax.serving")

KEYS_VARIABLE = "TUNA_JAX_API_KEYS"
LOCAL = ("127.0.0.1", "localhost", "::1")


class Keys:
    """API keys. Only their hashes are kept, and every comparison takes the same time.

    Args:
      keys: the keys; without any, everybody may send requests.
    """

    def __init__(self, keys: Iterable[str] = ()):
        self._hashes = [self._hash(key) for key in keys]

    @staticmethod
    def _hash(key: str) -> bytes:
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def accept(self, key: str) -> bool:
        """Whether a key is one of these."""
        given, accepted = self._hash(key), False
        for known in self._hashes:  # All of them, so that the time does not say which one.
            accepted |= hmac.compare_digest(given, known)
        return accepted


def read_keys(file: str | None, environment: dict[str, str] | None = None) -> Keys:
    """The keys in a file, one per line, and in the variable `KEYS_VARIABLE`, separated by commas.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has no key.
    """
    variables = os.environ if environment is None else environment
    keys = [key.strip() for key in variables.get(KEYS_VARIABLE, "").split(",")]
    if file is not None:
        of_file = [line.strip() for _, line in numbered_lines(file)]
        of_file = [key for key in of_file if key and not key.startswith("#")]
        if not of_file:
            raise ValueError(f"{file} has no API key; write one per line")
        keys += of_file
    return Keys(key for key in keys if key)


class Guard:
    """The outermost ASGI application."""

    def __init__(self, app: Any, server: Server, keys: Keys):
        self._app, self._server, self._keys = app, server, keys

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles a connection."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0
        limit, received = self._server.settings.max_bytes, 0

        async def limited_receive() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        async def watched_send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            self._check(scope)
            self._server.requests += 1
            try:
                await self._app(scope, limited_receive, watched_send)
            finally:
                self._server.requests -= 1
        except ApiError as error:
            if not status:
                await error.response()(scope, receive, watched_send)
        except Exception as error:
            # Its message may quote the request; where it was raised does not.
            where = "".join(traceback.format_tb(error.__traceback__)[-3:])
            _log.error("%s on %s\n%s", type(error).__name__, _route(scope), where)
            if not status:
                internal = ApiError(500, "the server failed on this request", None, "internal")
                await internal.response()(scope, receive, watched_send)
        finally:
            seconds = time.monotonic() - start
            self._server.metrics.request(_route(scope), status or 499, seconds)
            _log.info("%s %s %d %.3f s", scope["method"], _route(scope), status or 499, seconds)

    def _check(self, scope: Any) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self._check_host(headers)
        self._check_origin(headers)
        path = scope["path"]
        if self._keys and (path.startswith("/v1") or path == "/metrics"):
            scheme, _, key = headers.get(b"authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._keys.accept(key.strip()):
                message = "the API key is missing or wrong: send `Authorization: Bearer KEY`"
                wanted = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, message, None, "invalid_api_key", wanted)
        length = headers.get(b"content-length", "0")
        if (
            length.isdecimal()
            and len(length) < 19
            and int(length) > self._server.settings.max_bytes
        ):
            raise _too_large(self._server.settings.max_bytes)

    def _check_host(self, headers: dict[bytes, str]) -> None:
        host = urllib.parse.urlsplit(f"//{headers.get(b'host', '')}").hostname
        if self._server.settings.only_local and host not in LOCAL:
            message = (
                f"this server answers as {', '.join(LOCAL)}; --host=0.0.0.0 opens it to other names"
            )
            raise ApiError(403, message, None, "host_not_allowed")

    def _check_origin(self, headers: dict[bytes, str]) -> None:
        """A page of another site, open in a browser on this machine, may not use a server on its loopback address."""
        origin = headers.get(b"origin")
        if origin is None or origin in self._server.settings.allow_origins:
            return
        if urllib.parse.urlsplit(origin).netloc != headers.get(b"host"):
            raise ApiError(
                403,
                "requests from web pages of another origin are refused; --allow_origins lists those that are not",
                None,
                "origin_not_allowed",
            )


def _too_large(limit: int) -> ApiError:
    message = f"the request is larger than {limit} bytes"
    return ApiError(413, message, None, "request_too_large")


def _route(scope: Any) -> str:
    """The path with names for ids, so that there are few of them."""
    return getattr(scope.get("route"), "path", None) or "other"


def warn_of_open_server(host: str, keys: Keys) -> str | None:
    """A line if everybody who reaches this machine may use the server."""
    if host in LOCAL or keys:
        return None
    return f"listening on {host} without API keys: everybody who reaches this machine may use it"
