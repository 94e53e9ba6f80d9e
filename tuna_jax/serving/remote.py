"""Images and videos at addresses of other hosts: fetched from hosts that are allowed only, never from private ones.

A name is resolved once, where the connection is made: what was checked is what is connected to. A redirect is a new
address, and is held to the same rules.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import httpcore

from tuna_jax.serving import errors, schemas
from tuna_jax.serving.schemas import ChatRequest
from tuna_jax.utils.data_uri import is_data_uri

SECONDS = 20.0
"""For all addresses of a request."""
_REDIRECTS = 3
_LONGEST = 4096  # Characters of an address.
_PORTS = {"http": 80, "https": 443}
_TRANSLATED = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "2001::/32")]
"""IPv6 networks whose addresses stand for IPv4 addresses, which may be private."""
_HEADERS = {"Accept": "image/*, video/*", "Accept-Encoding": "identity", "User-Agent": "tuna_jax"}

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host and port."""


async def _resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system resolves it."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet: not private, loopback, link-local, multicast or reserved."""
    try:
        value = ipaddress.ip_address(address)  # With a zone (fe80::1%eth0) it is link-local, too.
    except ValueError:
        return False
    is_translated = isinstance(value, ipaddress.IPv6Address) and (
        value.ipv4_mapped is not None or any(value in network for network in _TRANSLATED)
    )
    return (
        not is_translated and value.is_global and not value.is_multicast and not value.is_reserved
    )


def host_of(text: str) -> tuple[str, int | None]:
    """(host, port) of an entry HOST or HOST:PORT of the allow-list; the port is None if it is that of the scheme.

    A host `*.example.com` stands for all hosts below it.

    Raises:
      ValueError: it is neither.
    """
    try:
        url = httpcore.URL(f"http://{text}/")
        host, port = _name(url.host.decode()), url.port
    except (ValueError, TypeError, UnicodeError):
        host, port = "", None
    written = f"{host}:{port}" if port is not None else host
    if not host or any(mark in text for mark in "/@?#\\ ") or written != text.lower().rstrip("."):
        raise ValueError(
            f"{text!r} is not a host; give HOST, HOST:PORT or *.HOST, such as images.example.com"
        )
    return host, port


def _name(host: str) -> str:
    """A host in the only way of writing it."""
    return host.lower().rstrip(".")


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only.

    Args:
      resolve: see `Resolve`.
      network: connects to an address.
    """

    def __init__(self, resolve: Resolve, network: httpcore.AsyncNetworkBackend):
        self._resolve, self._network = resolve, network

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> Any:
        """A connection to a host."""
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(is_public, addresses)):
            raise _NotPublicError
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, *args, **options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(addresses[-1], port, *args, **options)


_ANY_IO: Any = httpcore.AnyIOBackend()  # Its type differs from the protocol in names of parameters.


class _NotPublicError(Exception):
    """A host has an address that is not of the Internet."""


class Remote:
    """Fetches what requests refer to.

    Args:
      hosts: what is allowed, as `host_of` reads it; without any, nothing is fetched.
      max_bytes: of all files of a request.
      max_files: number of addresses of a request.
      seconds: for all of them.
      resolve, network: how names are resolved and connections made; tests give others.

    Raises:
      ValueError: an entry of `hosts` is not a host.
    """

    def __init__(
        self,
        hosts: Iterable[str] = (),
        *,
        max_bytes: int = 32 << 20,
        max_files: int = 4,
        seconds: float = SECONDS,
        resolve: Resolve = _resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
    ):
        self._hosts = [host_of(host) for host in hosts]
        self._max_bytes, self._max_files, self._seconds = max_bytes, max_files, seconds
        self._backend = _Backend(resolve, network or _ANY_IO)

    async def fetch(self, body: ChatRequest) -> dict[str, bytes]:
        """The files at the addresses in a conversation, by address; data URLs are not among them.

        Raises:
          ApiError: an address is not allowed, or cannot be fetched within the limits.
        """
        places: dict[str, str] = {}  # By address: the field that has it.
        for where, url in schemas.media_urls(body):
            if not is_data_uri(url):
                self._check(url, where)
                places.setdefault(url, where)
        if len(places) > self._max_files:
            message = f"{len(places)} addresses were given; the limit is {self._max_files}"
            raise errors.invalid("messages", message, "too_many_media")
        files: dict[str, bytes] = {}
        left, where = self._max_bytes, "messages"
        try:
            async with asyncio.timeout(self._seconds):
                for url, where in places.items():
                    files[url] = await self._fetch_one(url, where, left)
                    left -= len(files[url])
        except TimeoutError:
            raise _failed(where, f"it took longer than {self._seconds:g} seconds") from None
        return files

    def _check(self, url: str, where: str) -> httpcore.URL:
        """An address, if it may be fetched."""
        if not self._hosts:
            raise errors.invalid(
                where,
                "only data URLs are read, such as data:image/png;base64,...; this server fetches nothing",
                "unsupported_url",
            )
        try:
            if len(url) > _LONGEST or not url.isascii() or not url.isprintable() or " " in url:
                raise ValueError
            parsed = httpcore.URL(url)
            scheme, host = parsed.scheme.decode(), _name(parsed.host.decode())
        except (ValueError, TypeError):
            raise errors.invalid(where, "this is not an address", "invalid_url") from None
        if scheme not in _PORTS or not host or "@" in url.partition("://")[2].partition("/")[0]:
            message = "only addresses with http:// or https://, without a user, are fetched"
            raise errors.invalid(where, message, "unsupported_url")
        port = parsed.port or _PORTS[scheme]
        for allowed, allowed_port in self._hosts:
            below = allowed.startswith("*.") and host.endswith(allowed[1:])
            if (host == allowed or below) and port == (allowed_port or _PORTS[scheme]):
                name, target = host.encode(), parsed.target
                return httpcore.URL(scheme=scheme, host=name, port=parsed.port, target=target)
        message = f"files of {host[:100]}:{port} are not fetched; see --allow_remote_media"
        raise errors.invalid(where, message, "host_not_allowed")

    async def _fetch_one(self, url: str, where: str, limit: int) -> bytes:
        try:
            async with httpcore.AsyncConnectionPool(
                ssl_context=ssl.create_default_context(), network_backend=self._backend
            ) as pool:
                for _ in range(1 + _REDIRECTS):
                    parsed = self._check(url, where)
                    async with pool.stream("GET", parsed, headers=_headers(parsed)) as response:
                        named = {name.lower(): value for name, value in response.headers}
                        location = named.get(b"location", b"")
                        if response.status in (301, 302, 303, 307, 308) and location:
                            url = _joined(url, location)
                            continue
                        if response.status != 200:
                            raise _failed(where, f"its status is {response.status}")
                        return await _content(response, where, limit)
                raise _failed(where, f"it has more than {_REDIRECTS} redirects")
        except _NotPublicError:
            message = "the host has no public address"
            raise errors.invalid(where, message, "host_not_allowed") from None
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _failed(where, type(error).__name__) from None


def _headers(url: httpcore.URL) -> list[tuple[str, str]]:
    port = "" if url.port in (None, _PORTS[url.scheme.decode()]) else f":{url.port}"
    return [("Host", f"{url.host.decode()}{port}"), *_HEADERS.items()]


def _joined(url: str, location: bytes) -> str:
    """The address that a redirect points to."""
    return urllib.parse.urljoin(url, location.decode("latin-1"))


async def _content(response: httpcore.Response, where: str, limit: int) -> bytes:
    """The body of a response, up to the limit."""
    parts, size = [], 0
    async for part in response.aiter_stream():
        size += len(part)
        if size > limit:
            raise errors.invalid(
                where, f"the file is larger than {limit} bytes", "request_too_large"
            )
        parts.append(part)
    return b"".join(parts)


def _failed(where: str, reason: str) -> errors.ApiError:
    return errors.invalid(where, f"the file cannot be fetched: {reason}", "fetch_failed")
