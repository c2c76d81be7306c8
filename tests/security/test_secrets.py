"""What a hostile program may try to get at a secret that is put in for it: from where its connections arrive."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from stockade.engine.diversions import MOST_CONNECTIONS, Admission, Diversions
from stockade.model import SecretRule
from tests.engine.diverted import Answer, connected, trusting
from tests.engine.secret_hosts import Host, make_authority, make_certificate

pytestmark = pytest.mark.anyio
API, MINE = "api.example.test", "mine.example.test"
VALUE, PLACEHOLDER = "the-real-value", "<SECRET:svc>"
RULE = SecretRule(name="svc", value=VALUE, placeholder=PLACEHOLDER, hosts=(API,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def authority(folder: Path) -> tuple[Path, Any]:
    return make_authority(folder)


@pytest.fixture(scope="module")
def api(folder: Path, authority: tuple[Path, Any]) -> Iterator[Host]:
    """Whom the secret is meant for."""
    host = Host(certificate=make_certificate(folder, authority[1], API))
    yield host
    host.close()


@pytest.fixture(scope="module")
def mine(folder: Path, authority: tuple[Path, Any]) -> Iterator[Host]:
    """The tenant's own, with a certificate that everybody trusts."""
    host = Host(certificate=make_certificate(folder, authority[1], MINE))
    yield host
    host.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[Host]:
    """The tenant's own, without TLS."""
    host = Host()
    yield host
    host.close()


@pytest.fixture
async def diversions(authority: tuple[Path, Any]) -> AsyncIterator[Diversions]:
    diversions = Diversions(key="cd" * 32, trusted=authority[0])
    async with diversions.running():
        yield diversions


@pytest.fixture
async def admission(diversions: Diversions) -> Admission:
    return diversions.admit("box", (RULE,))


@pytest.fixture
def tls(admission: Admission) -> ssl.SSLContext:
    return trusting(admission.certificate)


def heard_value(*hosts: Host) -> bool:
    return any(VALUE in json.dumps(host.heard) for host in hosts)


def get(host: str, *lines: str, target: str = "/") -> str:
    return "\r\n".join([f"GET {target} HTTP/1.1", f"Host: {host}", f"X-Key: {PLACEHOLDER}", *lines, "", ""])


def is_refused(answer: Answer, status: int) -> bool:
    return answer.status == status and VALUE.encode() not in answer.body and PLACEHOLDER.encode() not in answer.body


async def test_who_has_no_token_gets_no_word(diversions: Diversions, admission: Admission, plain: Host) -> None:
    for token in ("", "0" * 64, admission.diversion.token[:-1], admission.diversion.token.upper()):
        async with connected(admission, plain.port, token=token) as connection:
            connection.writer.write(get(API).encode())
            assert await connection.rest() == b""
    for first in (
        b"\n",
        b"[]\n",
        b"{}\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * 100_000 + b"\n",
        b'{"token": 7}\n',
        b"\xff\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", admission.diversion.port)
        writer.write(first)
        try:
            async with asyncio.timeout(60):
                assert await reader.read() == b""
        except ConnectionError:
            pass
        writer.close()
    assert not heard_value(plain)


async def test_a_sandbox_gets_no_other_ones_secret(diversions: Diversions, admission: Admission, api: Host) -> None:
    """Neither by its placeholder, nor by being trusted by a sandbox that is another's."""
    rule = SecretRule(name="svc", value="another-value", placeholder="<OTHER>", hosts=(API,))
    other = diversions.admit("box-2", (rule,))
    async with connected(other, api.port, name=API, tls=trusting(other.certificate)) as connection:
        told = (await connection.ask(get(API, "X-Too: <OTHER>"))).told
        assert (told["headers"]["x-key"], told["headers"]["x-too"]) == (PLACEHOLDER, "another-value")
    with pytest.raises(ssl.SSLCertVerificationError):
        async with connected(other, api.port, name=API, tls=trusting(admission.certificate)):
            pass


async def test_the_host_must_be_the_name_that_was_connected_to(
    admission: Admission, api: Host, mine: Host, tls: ssl.SSLContext
) -> None:
    for host in (MINE, f"{API}.mine.example.test", f"{API}:1", "", f"{API},{MINE}", f"{MINE}@{API}", f"[{API}]"):
        async with connected(admission, api.port, name=API, tls=tls) as connection:
            answer = await connection.ask(get(host))
            assert is_refused(answer, 421) or is_refused(answer, 400), host
    assert not heard_value(mine)


async def test_an_address_of_the_tenants_gets_nothing_by_calling_it_the_host(
    admission: Admission, mine: Host, plain: Host, tls: ssl.SSLContext
) -> None:
    """TLS: its certificate is not the host's. Without: no answer of a name server led to the address."""
    async with connected(admission, mine.port, name=API, tls=tls, names=[]) as connection:
        assert is_refused(await connection.ask(get(API)), 502)
    async with connected(admission, plain.port, name=API, tls=tls, names=[]) as connection:
        assert is_refused(await connection.ask(get(API)), 502)
    for names in ([], [MINE], ["127.0.0.1"]):
        async with connected(admission, plain.port, names=names) as connection:
            assert is_refused(await connection.ask(get(API)), 421)
    assert not heard_value(mine, plain)


async def test_a_name_of_the_tenants_gets_nothing_although_it_leads_to_the_hosts_address(
    admission: Admission, api: Host, mine: Host, plain: Host, authority: tuple[Path, Any]
) -> None:
    real = ssl.create_default_context(cafile=str(authority[0]))
    async with connected(admission, mine.port, name=MINE, tls=real, names=[API, MINE]) as connection:
        assert (await connection.ask(get(MINE))).told["headers"]["x-key"] == PLACEHOLDER
        # The connection is the tenant's from end to end: what it says in it, it says to itself.
        assert (await connection.ask(get(API))).told["headers"]["x-key"] == PLACEHOLDER
    async with connected(admission, plain.port, names=[API, MINE]) as connection:
        assert (await connection.ask(get(MINE))).told["headers"]["x-key"] == PLACEHOLDER
    assert not heard_value(mine, plain)


@pytest.mark.parametrize(
    "request_",
    [
        get(API, f"Host: {MINE}"),
        get(API, target=f"https://{MINE}/"),
        get(API, target=f"//{MINE}/").replace("GET //", "GET http://"),
        get(API, "Content-Length: 5", "Transfer-Encoding: chunked") + "0\r\n\r\nGET / HTTP/1.1\r\n",
        get(API, "Content-Length: 5", "Content-Length: 6") + "hello",
        get(API, "Content-Length: +5") + "hello",
        get(API, "Transfer-Encoding: identity, chunked") + "0\r\n\r\n",
        get(API, "X-One : 1"),
        get(API, "X\x00: 1"),
        get(API).replace("GET / HTTP/1.1", "GET / x HTTP/1.1"),
        get(API).replace("GET / HTTP/1.1", f"CONNECT {MINE}:443 HTTP/1.1"),
        get(API).replace("HTTP/1.1", "HTTP/2.0"),
        get(API).replace(f"Host: {API}\r\n", ""),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        get(API, f"X-Long: {'x' * 100_000}"),
    ],
    ids=lambda request: request[:200].replace("\r\n", "|"),
)
async def test_a_request_that_could_be_read_otherwise_goes_nowhere(
    admission: Admission, api: Host, tls: ssl.SSLContext, request_: str
) -> None:
    before = len(api.heard)
    async with connected(admission, api.port, name=API, tls=tls) as connection:
        answer = await connection.ask(request_)
        assert answer.status in {400, 405, 421, 431, 501}
        assert VALUE.encode() not in answer.body
        assert await connection.rest() == b""
    assert len(api.heard) == before


async def test_chunks_that_lie_break_the_connection_off(admission: Admission, api: Host, tls: ssl.SSLContext) -> None:
    before = len(api.heard)
    async with connected(admission, api.port, name=API, tls=tls) as connection:
        request = get(API, "Transfer-Encoding: chunked").replace("GET", "POST") + "5;x\r\nhelloXX\r\n0\r\n\r\n"
        connection.writer.write(request.encode())
        await connection.rest()
    assert len(api.heard) == before


async def test_a_second_request_behind_the_first_is_looked_at_like_the_first(
    admission: Admission, api: Host, mine: Host, tls: ssl.SSLContext
) -> None:
    before = len(api.heard)
    async with connected(admission, api.port, name=API, tls=tls) as connection:
        assert (await connection.ask(get(API) + get(MINE))).told["headers"]["x-key"] == VALUE
        assert is_refused(await connection.answer(), 421)
    assert len(api.heard) == before + 1


async def test_hop_by_hop_headers_hide_nothing(admission: Admission, api: Host, tls: ssl.SSLContext) -> None:
    lines = (
        "Connection: keep-alive, X-Mine",
        "X-Mine: 1",
        "Keep-Alive: 1",
        "TE: trailers",
        "Upgrade: h2c",
        "Trailer: x",
    )
    async with connected(admission, api.port, name=API, tls=tls) as connection:
        told = (await connection.ask(get(API, *lines))).told
    assert not {"x-mine", "keep-alive", "te", "upgrade", "trailer", "connection"} & set(told["headers"])


async def test_a_value_that_no_header_can_hold_is_shown_to_nobody(diversions: Diversions, api: Host) -> None:
    rule = SecretRule(name="svc", value=f"{VALUE}\r\nX-Smuggled: 1", placeholder=PLACEHOLDER, hosts=(API,))
    admission = diversions.admit("box", (rule,))
    before = len(api.heard)
    async with connected(admission, api.port, name=API, tls=trusting(admission.certificate)) as connection:
        assert is_refused(await connection.ask(get(API)), 502)
    assert len(api.heard) == before


async def test_no_failure_tells_a_value_to_the_log(
    diversions: Diversions, admission: Admission, mine: Host, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"a fault that quotes {VALUE}")

    monkeypatch.setattr("stockade.engine.diversion_http.Conversation._admitted", fail)
    with structlog.testing.capture_logs() as logs:
        async with connected(admission, mine.port, name=API, tls=tls) as connection:
            connection.writer.write(get(API).encode())
            assert await connection.rest() == b""
    assert logs == [{"event": "diversion.failed", "kind": "RuntimeError", "log_level": "error"}]


async def test_an_address_that_a_name_led_to_once_is_called_once(admission: Admission, plain: Host) -> None:
    """Without TLS nothing would tell that somebody else has it by now."""
    async with connected(admission, plain.port, names=[API]) as connection:
        assert (await connection.ask(get(API, target="/last"))).told["headers"]["x-key"] == VALUE
        connection.writer.write(get(API).encode())
        assert await connection.rest() == b""


async def test_one_sandbox_does_not_take_the_listener_from_the_others(
    diversions: Diversions, admission: Admission, api: Host, plain: Host
) -> None:
    async with AsyncExitStack() as held:
        for _ in range(MOST_CONNECTIONS):
            connection = await held.enter_async_context(connected(admission, plain.port))
            assert (await connection.ask(get(MINE))).status == 200
        async with connected(admission, plain.port) as connection:
            connection.writer.write(get(MINE).encode())
            assert await connection.rest() == b""
        other = diversions.admit("box-2", (RULE,))
        async with connected(other, api.port, name=API, tls=trusting(other.certificate)) as connection:
            assert (await connection.ask(get(API))).told["headers"]["x-key"] == VALUE
