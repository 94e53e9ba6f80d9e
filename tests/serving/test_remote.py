"""Images at addresses of other hosts: what may be fetched, and that nothing else is.

Names resolve to addresses of the Internet, and connections to these go to a server on this machine: so the checks of
names and addresses are those of a real server.
"""

import asyncio
import http.server
import threading
import time

import httpcore
import pytest

from tests.serving.conftest import png
from tuna_jax.serving import remote
from tuna_jax.serving.errors import ApiError
from tuna_jax.serving.remote import Remote, host_of, is_public
from tuna_jax.serving.schemas import ChatRequest, parse

PUBLIC = "93.184.215.14"
PICTURE = png()


class _Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.headers["Host"], self.path))
        if self.path == "/slow":
            time.sleep(1.5)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        self.wfile.write(PICTURE)
        if self.path == "/large":
            self.wfile.write(bytes(1 << 20))

    def log_message(self, format, *args):
        pass


@pytest.fixture
def pages():
    """A server with pictures, and the requests that it has seen."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


class _ToPages(httpcore.AnyIOBackend):
    """Connects to `pages` in place of an address of the Internet, and to nothing else."""

    def __init__(self, pages):
        self.port, self.addresses = pages.server_address[1], []

    async def connect_tcp(self, host, port, *args, **options):
        self.addresses.append((host, port))
        assert host == PUBLIC
        return await super().connect_tcp("127.0.0.1", self.port, *args, **options)


NAMES = {
    "images.example.com": [[PUBLIC]],
    "a.cdn.example.com": [[PUBLIC]],
    "metadata.example.com": [["169.254.169.254"]],
    "half.example.com": [[PUBLIC, "10.0.0.1"]],
    # Another answer for each question.
    "rebinding.example.com": [[PUBLIC], ["127.0.0.1"]],
    "nowhere.example.com": [[]],
}
ALLOWED = [
    *("images.example.com", "*.cdn.example.com", "metadata.example.com", "half.example.com"),
    *("rebinding.example.com", "nowhere.example.com", "127.0.0.1", "images.example.com:8080"),
]


@pytest.fixture
def fetch(pages):
    """Fetches addresses; an attribute has what was resolved."""
    backend = _ToPages(pages)

    async def resolve(host, port):
        answers = NAMES.get(host, [[host]])
        resolved.append(host)
        return answers[min(resolved.count(host), len(answers)) - 1]

    resolved = []

    def fetch(*urls, hosts=ALLOWED, **options):
        fetcher = Remote(hosts, resolve=resolve, network=backend, **options)
        return asyncio.run(fetcher.fetch(_body(*urls)))

    fetch.resolved, fetch.connected = resolved, backend.addresses
    return fetch


def _body(*urls):
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return parse(ChatRequest, {"messages": [{"role": "user", "content": content}]})


def test_files_of_allowed_hosts_are_fetched_once(fetch, pages):
    data = "data:image/png;base64,AAAA"
    urls = ["http://images.example.com/a.png?size=2", "http://a.cdn.example.com/b.png"]
    files = fetch(*urls, data, urls[0], "http://IMAGES.example.com.:8080/c")
    assert files == dict.fromkeys([*urls, "http://IMAGES.example.com.:8080/c"], PICTURE)
    assert [path for _, path in pages.seen] == ["/a.png?size=2", "/b.png", "/c"]
    assert pages.seen[0][0] == "images.example.com"
    assert fetch.connected[0] == (PUBLIC, 80) and fetch.connected[2] == (PUBLIC, 8080)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://other.example.com/a", "host_not_allowed"),
        ("http://cdn.example.com/a", "host_not_allowed"),
        ("http://images.example.com.evil.com/a", "host_not_allowed"),
        ("http://images.example.com:22/a", "host_not_allowed"),
        ("https://images.example.com:80/a", "host_not_allowed"),
        ("http://metadata.example.com/latest", "host_not_allowed"),
        ("http://half.example.com/a", "host_not_allowed"),
        ("http://127.0.0.1/a", "host_not_allowed"),
        ("http://2130706433/a", "host_not_allowed"),
        ("http://[::1]/a", "host_not_allowed"),
        ("http://nowhere.example.com/a", "host_not_allowed"),
        ("http://images.example.com@evil.com/a", "unsupported_url"),
        ("http://user:key@images.example.com/a", "unsupported_url"),
        ("file:///etc/passwd", "unsupported_url"),
        ("ftp://images.example.com/a", "unsupported_url"),
        ("http://images.example.com\\@evil.com/a", "unsupported_url"),
        ("http://images.example.com /a", "invalid_url"),
        ("http://images.example.com/a\r\nHost: evil", "invalid_url"),
        ("http://images.example.com:99999999/a", "invalid_url"),
        ("http://images.example.com:port/a", "invalid_url"),
        ("http:///a", "unsupported_url"),
        ("nothing", "unsupported_url"),
        ("http://images.example.com/" + "a" * 5000, "invalid_url"),
    ],
)
def test_other_addresses_are_refused_before_a_connection(fetch, pages, url, code):
    with pytest.raises(ApiError) as raised:
        fetch(url)
    assert (raised.value.status, raised.value.code) == (400, code)
    assert raised.value.param == "messages[0].content[0].image_url.url"
    assert fetch.connected == [] and pages.seen == []


def test_without_a_list_nothing_is_resolved(fetch):
    with pytest.raises(ApiError) as raised:
        fetch("http://images.example.com/a", hosts=[])
    assert raised.value.code == "unsupported_url" and fetch.resolved == []


def test_a_name_is_resolved_once_per_connection(fetch):
    """The address that was checked is the one that is connected to, whatever the name says the next time."""
    assert fetch("http://rebinding.example.com/a")
    assert fetch.resolved == ["rebinding.example.com"]
    with pytest.raises(ApiError):
        fetch("http://rebinding.example.com/a")


def test_redirects_keep_to_the_rules(fetch, pages):
    start = "http://images.example.com/to/"
    assert fetch(start + "http://a.cdn.example.com/b") == {
        start + "http://a.cdn.example.com/b": PICTURE
    }
    assert fetch(start + "/relative")
    for target in ("http://127.0.0.1/a", "http://metadata.example.com/", "http://evil.com/"):
        with pytest.raises(ApiError, match="host|fetched"):
            fetch(start + target)
    with pytest.raises(ApiError, match="file:|http"):
        fetch(start + "file:///etc/passwd")
    with pytest.raises(ApiError, match="redirects"):
        fetch(start + "/to/" * 5 + "a")
    assert {host for host, _ in pages.seen} == {"images.example.com", "a.cdn.example.com"}


def test_sizes_times_and_numbers_are_limited(fetch):
    base = "http://images.example.com"
    with pytest.raises(ApiError) as raised:
        fetch(f"{base}/large", max_bytes=100_000)
    assert raised.value.code == "request_too_large"
    limit = int(1.5 * len(PICTURE))
    assert fetch(f"{base}/1", max_bytes=limit)
    with pytest.raises(ApiError) as raised:
        fetch(f"{base}/1", f"{base}/2", max_bytes=limit)  # Of all together.
    assert raised.value.code == "request_too_large"
    begin = time.monotonic()
    with pytest.raises(ApiError, match="0.3 seconds"):
        fetch(f"{base}/slow", seconds=0.3)
    assert time.monotonic() - begin < 1.4
    with pytest.raises(ApiError) as raised:
        fetch(*(f"{base}/{number}" for number in range(3)), max_files=2)
    assert raised.value.code == "too_many_media"
    with pytest.raises(ApiError, match="404"):
        fetch(f"{base}/missing")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *((PUBLIC, True), ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True), ("10.1.2.3", False)),
        *(("127.0.0.1", False), ("0.0.0.0", False), ("169.254.169.254", False)),
        *(("192.168.0.1", False), ("100.64.0.1", False), ("224.0.0.1", False), ("::1", False)),
        *(("fe80::1%eth0", False), ("fd00::1", False), ("::ffff:127.0.0.1", False)),
        *(("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("240.0.0.1", False)),
        *(("255.255.255.255", False), ("images.example.com", False), ("", False)),
    ],
)
def test_public_addresses(address, expected):
    assert is_public(address) is expected


def test_entries_of_the_list():
    assert host_of("Images.Example.com") == ("images.example.com", None)
    assert host_of("*.example.com") == ("*.example.com", None)
    assert host_of("example.com:8443") == ("example.com", 8443)
    for entry in ("", "http://example.com", "example.com/a", "a@b.com", "a b", "a:b", "a:80:90"):
        with pytest.raises(ValueError, match="not a host"):
            host_of(entry)


def test_the_system_resolves(monkeypatch):
    assert asyncio.run(remote._resolve("127.0.0.1", 80)) == ["127.0.0.1"]
