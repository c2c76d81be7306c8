"""Fetching what callers name: only where the operator and the address allow it."""

import asyncio
import gzip
import ipaddress
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from starlette.responses import RedirectResponse, Response, StreamingResponse

from stockade.wire.fetch import Fetcher, FetchError, IPAddress, is_public

LOOPBACK = ipaddress.ip_address("127.0.0.1")


def fetcher(**members: Any) -> Fetcher:
    """One that may reach the test's own server."""
    return Fetcher(
        **{
            "hosts": ("*",),
            "max_bytes": 1000,
            "timeout_s": 5.0,
            "permitted": lambda address: address == LOOPBACK,
            **members,
        }
    )


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "127.8.8.8",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "fc00::1",
        "fe80::1",
        "ff02::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
    ],
)
def test_addresses_that_lead_inwards_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00::1"])
def test_the_internets_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.anyio
async def test_text_is_fetched(upstream: Any) -> None:
    url = upstream.says("/x", lambda: Response(b"caf\xc3\xa9 \xff"))
    assert await fetcher().text(url) == "café \N{REPLACEMENT CHARACTER}"


@pytest.mark.anyio
async def test_the_connection_goes_to_the_address_that_was_checked(upstream: Any) -> None:
    """The name resolves once; a second answer that leads elsewhere is never asked for. `Host` stays the name."""
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> Sequence[IPAddress]:
        asked.append(host)
        return [LOOPBACK]

    upstream.says("/x", lambda: Response("ok"))
    text = await fetcher(resolve=resolve).text(f"http://rebind.example:{upstream.port}/x")
    assert text == "ok"
    assert asked == ["rebind.example"]
    assert upstream.requests[0].headers["host"] == f"rebind.example:{upstream.port}"


@pytest.mark.anyio
async def test_a_name_with_one_inward_address_is_refused(upstream: Any) -> None:
    async def resolve(_host: str, _port: int) -> Sequence[IPAddress]:
        return [LOOPBACK, ipaddress.ip_address("10.0.0.1")]

    with pytest.raises(FetchError, match="not a public one"):
        await fetcher(resolve=resolve).text(f"http://two.example:{upstream.port}/x")
    assert upstream.requests == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/x",
        "http://localhost:{port}/x",
        "http://[::1]:{port}/x",
        "http://[::ffff:127.0.0.1]:{port}/x",
        "http://2130706433:{port}/x",
        "http://0x7f.1:{port}/x",
        "http://0:{port}/x",
        "http://169.254.169.254/latest/meta-data/",
    ],
)
async def test_no_spelling_of_an_inward_address_is_connected_to(upstream: Any, url: str) -> None:
    with pytest.raises(FetchError):
        await fetcher(permitted=is_public).text(url.format(port=upstream.port))
    assert upstream.requests == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "only http and https"),
        ("ftp://example.org/x", "only http and https"),
        ("example.org/x", "only http and https"),
        ("http://user:secret@example.org/", "no user"),
        ("http:///x", "must name a host"),
        ("http://exa mple.org/", "not a URL|does not fetch"),
        ("http://other.example/", "does not fetch from other.example"),
        ("http://notexample.org/", "does not fetch from"),
        ("http://example.org.evil.test/", "does not fetch from"),
    ],
)
async def test_urls_outside_the_list_are_refused(url: str, reason: str) -> None:
    with pytest.raises(FetchError, match=reason):
        await fetcher(hosts=("example.org", "*.example.org")).text(url)


@pytest.mark.anyio
async def test_nothing_is_fetched_where_no_host_is_listed(upstream: Any) -> None:
    with pytest.raises(FetchError, match="does not fetch"):
        await fetcher(hosts=()).text(upstream.url)


@pytest.mark.anyio
async def test_a_redirect_is_followed_within_the_list(upstream: Any) -> None:
    upstream.says("/end", lambda: Response("arrived"))
    url = upstream.says("/start", lambda: RedirectResponse("/end"))
    assert await fetcher().text(url) == "arrived"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "target", ["http://10.0.0.1/", "http://[::1]/", "file:///etc/passwd", "//169.254.169.254/", "http://[bad/"]
)
async def test_a_redirect_inwards_is_refused(upstream: Any, target: str) -> None:
    url = upstream.says("/start", lambda: RedirectResponse(target))
    with pytest.raises(FetchError, match=r"not a public one|only http|not a URL|does not resolve"):
        await fetcher().text(url)


@pytest.mark.anyio
async def test_redirects_end(upstream: Any) -> None:
    url = upstream.says("/loop", lambda: RedirectResponse("/loop"))
    with pytest.raises(FetchError, match="redirects"):
        await fetcher().text(url)
    assert len(upstream.requests) == 5


@pytest.mark.anyio
@pytest.mark.parametrize("status", [404, 500, 304])
async def test_only_a_success_is_an_input(upstream: Any, status: int) -> None:
    url = upstream.says("/x", lambda: Response(status_code=status))
    with pytest.raises(FetchError, match=str(status)):
        await fetcher().text(url)


@pytest.mark.anyio
async def test_an_answer_that_announces_no_length_is_cut_off(upstream: Any) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 4096

    url = upstream.says("/x", lambda: StreamingResponse(chunks()))
    with pytest.raises(FetchError, match="larger than 1000 bytes"):
        await fetcher().text(url)


@pytest.mark.anyio
async def test_a_compressed_answer_is_refused(upstream: Any) -> None:
    bomb = gzip.compress(b"x" * 1_000_000)
    url = upstream.says("/x", lambda: Response(bomb, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(FetchError, match=r"compressed|larger"):
        await fetcher().text(url)


@pytest.mark.anyio
async def test_a_silent_server_is_given_up(upstream: Any) -> None:
    async def silence() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    url = upstream.says("/x", lambda: StreamingResponse(silence()))
    with pytest.raises(FetchError, match="no answer within"):
        await fetcher(timeout_s=0.3).text(url)


@pytest.mark.anyio
async def test_a_closed_port_is_told() -> None:
    with pytest.raises(FetchError, match="ConnectError"):
        await fetcher().text("http://127.0.0.1:1/x")
