"""The listener that puts secrets in, against real servers on this host."""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stockade.engine.diversion_http import WHOLE_BYTES
from stockade.engine.diversions import Admission, Diversions
from stockade.errors import Invalid, Unavailable
from stockade.model import SecretRule
from tests.backends.living import eventually
from tests.engine.diverted import connected, trusting
from tests.engine.secret_hosts import Host, make_authority, make_certificate

pytestmark = pytest.mark.anyio
API = "api.example.test"
VALUE, PLACEHOLDER = 's3cr"et/+value', "<SECRET:svc>"
RULE = SecretRule(name="svc", value=VALUE, placeholder=PLACEHOLDER, hosts=(API, "*.below.example.test"))
KEY = "ab" * 32


@pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The server's loop, and the one that an embedded engine may find."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def authority(folder: Path) -> tuple[Path, Any]:
    return make_authority(folder)


@pytest.fixture(scope="module")
def host(folder: Path, authority: tuple[Path, Any]) -> Iterator[Host]:
    names = (API, "one.below.example.test", "other.example.test", "127.0.0.1")
    host = Host(certificate=make_certificate(folder, authority[1], *names))
    yield host
    host.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture
async def diversions(authority: tuple[Path, Any], tmp_path: Path) -> AsyncIterator[Diversions]:
    diversions = Diversions(key=KEY, port_file=tmp_path / "port", trusted=authority[0])
    async with diversions.running():
        yield diversions


@pytest.fixture
async def admission(diversions: Diversions) -> Admission:
    return diversions.admit("box-1", (RULE,))


@pytest.fixture
def tls(admission: Admission) -> ssl.SSLContext:
    return trusting(admission.certificate)


def request(method: str = "GET", target: str = "/", host: str = API, body: str | bytes = "", **headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    data = body.encode() if isinstance(body, str) else body
    if data:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join([*lines, "", ""]).encode() + data


async def test_a_secret_is_put_in_where_its_placeholder_stands(
    admission: Admission, host: Host, tls: ssl.SSLContext
) -> None:
    async with connected(admission, host.port, tls=tls) as connection:
        told = (await connection.ask(request(Authorization=f"Bearer {PLACEHOLDER}", X_Two="none"))).told
        assert told["headers"]["authorization"] == f"Bearer {VALUE}"
        assert told["headers"]["x-two"] == "none"
        assert told["headers"]["host"] == API
        # The same connection carries the next request, and none of it is left over.
        told = (await connection.ask(request(target="/a?key=%3cSECRET%3Asvc%3E&b=1"))).told
        assert told["target"] == "/a?key=s3cr%22et%2F%2Bvalue&b=1"
        basic = base64.b64encode(f"me:{PLACEHOLDER}".encode()).decode()
        told = (await connection.ask(request(Authorization=f"Basic {basic}"))).told
        assert base64.b64decode(told["headers"]["authorization"].split()[1]).decode() == f"me:{VALUE}"


@pytest.mark.parametrize(
    ("kind", "body", "sent"),
    [
        ("application/json", json.dumps({"key": PLACEHOLDER}), json.dumps({"key": VALUE})),
        ("application/json", '{"key": "\\u003cSECRET:svc\\u003E"}', json.dumps({"key": VALUE})),
        ("application/x-www-form-urlencoded", "a=1&key=%3CSECRET%3Asvc%3E", "a=1&key=s3cr%22et%2F%2Bvalue"),
        ("text/plain; charset=utf-8", f"-{PLACEHOLDER}{PLACEHOLDER}-", f"-{VALUE}{VALUE}-"),
        ("application/octet-stream", f"-{PLACEHOLDER}-", f"-{PLACEHOLDER}-"),
    ],
)
async def test_a_body_of_text_is_sent_with_the_value_and_its_new_length(
    admission: Admission, host: Host, tls: ssl.SSLContext, kind: str, body: str, sent: str
) -> None:
    async with connected(admission, host.port, tls=tls) as connection:
        told = (await connection.ask(request("POST", body=body, Content_Type=kind))).told
        assert told["body"] == sent
        assert told["headers"]["content-length"] == str(len(sent))


async def test_a_body_that_is_long_or_comes_in_chunks_goes_on_in_chunks(
    admission: Admission, host: Host, tls: ssl.SSLContext
) -> None:
    filling = "x" * WHOLE_BYTES
    async with connected(admission, host.port, tls=tls) as connection:
        long = request("POST", body=f"{filling}{PLACEHOLDER}{filling}", Content_Type="text/plain")
        told = (await connection.ask(long)).told
        assert told["body"] == f"{filling}{VALUE}{filling}"
        assert "content-length" not in told["headers"]
        head = request("POST", Content_Type="text/plain", Transfer_Encoding="chunked")
        pieces = [f"-{PLACEHOLDER[:4]}", PLACEHOLDER[4:9], f"{PLACEHOLDER[9:]}-"]
        chunks = "".join(f"{len(piece):x}\r\n{piece}\r\n" for piece in pieces) + "0\r\n\r\n"
        assert (await connection.ask(head + chunks.encode())).told["body"] == f"-{VALUE}-"
        encoded = request("POST", body=filling * 2, Content_Type="text/plain", Content_Encoding="x")
        assert (await connection.ask(encoded)).told["headers"]["content-length"] == str(2 * len(filling))


async def test_a_client_that_waits_to_be_told_to_go_on_is(
    admission: Admission, host: Host, tls: ssl.SSLContext
) -> None:
    async with connected(admission, host.port, tls=tls) as connection:
        whole = request("POST", body=PLACEHOLDER, Content_Type="text/plain", Expect="100-continue")
        head, _, body = whole.partition(b"\r\n\r\n")
        assert (await connection.ask(head + b"\r\n\r\n")).status == 100
        assert (await connection.ask(body)).told["body"] == VALUE


async def test_a_host_may_answer_before_it_has_heard_all(admission: Admission, host: Host, tls: ssl.SSLContext) -> None:
    async with connected(admission, host.port, tls=tls) as connection:
        head = request("POST", "/early", Content_Type="text/plain", Transfer_Encoding="chunked")
        answer = await connection.ask(head + b"5\r\nhello\r\n")
        assert (answer.status, answer.body, answer.headers["connection"]) == (413, b"too much", "close")


async def test_only_http_1_is_spoken_and_no_other_way_is_told_of(
    admission: Admission, host: Host, tls: ssl.SSLContext
) -> None:
    async with connected(admission, host.port, tls=tls) as connection:
        assert connection.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert "alt-svc" not in (await connection.ask(request())).headers


async def test_another_protocol_is_carried_after_the_header(
    admission: Admission, host: Host, tls: ssl.SSLContext
) -> None:
    async with connected(admission, host.port, tls=tls) as connection:
        upgrade = request(target="/switch", Upgrade="websocket", Connection="Upgrade", X_Key=PLACEHOLDER)
        answer = await connection.ask(upgrade + b"early ")
        assert (answer.status, answer.headers["upgrade"]) == (101, "websocket")
        connection.writer.write(PLACEHOLDER.encode())
        async with asyncio.timeout(60):
            assert await connection.reader.readexactly(6 + len(PLACEHOLDER)) == b"early " + PLACEHOLDER.encode()
        assert host.heard[-1]["headers"]["x-key"] == VALUE


async def test_a_name_without_a_secret_is_passed_on_untouched(
    admission: Admission, host: Host, tls: ssl.SSLContext, authority: tuple[Path, Any]
) -> None:
    """End to end: the certificate is the host's own, and its placeholder stays."""
    with pytest.raises(ssl.SSLCertVerificationError):
        async with connected(admission, host.port, tls=tls, name="other.example.test"):
            pass
    real = ssl.create_default_context(cafile=str(authority[0]))
    async with connected(admission, host.port, tls=real, name="other.example.test") as connection:
        told = (await connection.ask(request(host="other.example.test", X_Key=PLACEHOLDER))).told
        assert told["headers"]["x-key"] == PLACEHOLDER


async def test_names_below_one_are_meant_too(admission: Admission, host: Host, tls: ssl.SSLContext) -> None:
    name = "one.below.example.test"
    async with connected(admission, host.port, tls=tls, name=name) as connection:
        assert (await connection.ask(request(host=name, X_Key=PLACEHOLDER))).told["headers"]["x-key"] == VALUE


async def test_an_address_can_have_a_secret(diversions: Diversions, host: Host, plain: Host) -> None:
    """Programs ask for no name then: there is none in TLS."""
    admission = diversions.admit("box-2", (replace(RULE, hosts=("127.0.0.1",)),))
    tls = trusting(admission.certificate)
    async with connected(admission, host.port, tls=tls, name="127.0.0.1") as connection:
        assert (await connection.ask(request(host="127.0.0.1", X_Key=PLACEHOLDER))).told["headers"]["x-key"] == VALUE
    async with connected(admission, plain.port, names=[]) as connection:
        assert (await connection.ask(request(host="127.0.0.1", X_Key=PLACEHOLDER))).told["headers"]["x-key"] == VALUE


async def test_plain_http_carries_a_secret_too(admission: Admission, plain: Host) -> None:
    async with connected(admission, plain.port) as connection:
        told = (await connection.ask(request(host=f"{API}:{plain.port}", X_Key=PLACEHOLDER))).told
        assert told["headers"]["x-key"] == VALUE
        told = (await connection.ask(request(host="other.example.test", X_Key=PLACEHOLDER))).told
        assert told["headers"]["x-key"] == PLACEHOLDER


async def test_what_is_no_http_is_passed_on(diversions: Diversions, admission: Admission) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        writer.write_eof()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1")
    async with server, connected(admission, server.sockets[0].getsockname()[1]) as connection:
        connection.writer.write(b"ehlo")
        assert await connection.rest() == b"ehlo"


async def test_a_secret_for_every_host_is_put_in_for_each(diversions: Diversions, host: Host, plain: Host) -> None:
    rule = SecretRule(name="ANY", value="v", placeholder="<ANY>")
    admission = diversions.admit("box-2", (RULE, rule))
    assert admission.diversion.hosts == ()
    assert (admission.env["ANY"], admission.env["svc"]) == ("<ANY>", PLACEHOLDER)
    tls = trusting(admission.certificate)
    async with connected(admission, host.port, tls=tls, name="other.example.test") as connection:
        told = (await connection.ask(request(host="other.example.test", X_A="<ANY>", X_B=PLACEHOLDER))).told
        assert (told["headers"]["x-a"], told["headers"]["x-b"]) == ("v", PLACEHOLDER)
    async with connected(admission, plain.port, names=[]) as connection:
        told = (await connection.ask(request(host="127.0.0.1", X_A="<ANY>"))).told
        assert told["headers"]["x-a"] == "v"


async def test_a_host_that_cannot_be_had_is_an_answer_that_says_why(
    admission: Admission, host: Host, plain: Host, tls: ssl.SSLContext
) -> None:
    async def refused(port: int, target: str = "/") -> tuple[int, str]:
        async with connected(admission, port, tls=tls) as connection:
            answer = await connection.ask(request(target=target, X_Key=PLACEHOLDER))
            assert VALUE.encode() not in answer.body
            return answer.status, answer.body.decode()

    assert await refused(1) == (502, "The host cannot be reached: Connection refused.\n")
    assert await refused(plain.port) == (502, "The host cannot be reached: it speaks no TLS of today.\n")
    assert await refused(host.port, "/hang-up") == (502, "The host hung up without an answer.\n")


async def test_a_connection_that_the_host_closes_between_requests_is_made_anew(
    admission: Admission, host: Host, tls: ssl.SSLContext
) -> None:
    async def asked_twice() -> bool:
        async with connected(admission, host.port, tls=tls) as connection:
            assert (await connection.ask(request(target="/last"))).status == 200
            await asyncio.sleep(0.01)
            try:
                return (await connection.ask(request())).status == 200
            except (asyncio.IncompleteReadError, ConnectionError):
                return False  # asked before it was known that the host hangs up: what a program sees without us, too

    await eventually(asked_twice)
    async with connected(admission, host.port, tls=tls) as connection:
        assert (await connection.ask(request())).status == 200
        # One that it breaks off with a request under way is broken off for the program, too.
        connection.writer.write(request(target="/hang-up"))
        assert await connection.rest() == b""


async def test_a_server_that_starts_again_is_believed(authority: tuple[Path, Any], host: Host, tmp_path: Path) -> None:
    """The sandbox has the port, the token and the certificate of before."""
    async with Diversions(key=KEY, port_file=tmp_path / "port").running():
        pass
    before = Diversions(key=KEY, port_file=tmp_path / "port", trusted=authority[0])
    async with before.running():
        admission = before.admit("box-1", (RULE,))
    after = Diversions(key=KEY, port_file=tmp_path / "port", trusted=authority[0])
    async with after.running():
        assert after.admit("box-1", (RULE,)).diversion == admission.diversion
        assert after.admit("box-2", (RULE,)).diversion.token != admission.diversion.token
        async with connected(admission, host.port, tls=trusting(admission.certificate)) as connection:
            assert (await connection.ask(request(X_Key=PLACEHOLDER))).told["headers"]["x-key"] == VALUE


async def test_a_sandbox_that_is_forgotten_is_served_no_more(
    diversions: Diversions, admission: Admission, plain: Host
) -> None:
    async with connected(admission, plain.port) as connection:
        assert (await connection.ask(request())).status == 200
        diversions.forget("box-1")
        assert await connection.rest() == b""
    async with connected(admission, plain.port) as connection:
        connection.writer.write(request())
        assert await connection.rest() == b""
    diversions.forget("box-1")


@pytest.mark.parametrize(
    "members",
    [
        {"value": ""},
        {"value": "\ud800"},
        {"placeholder": ""},
        {"placeholder": "two words"},
        {"placeholder": f"<{VALUE}>"},
        {"hosts": ("https://api.example.test",)},
        {"hosts": ("*",)},
        {"hosts": tuple(f"h{n}.example.test" for n in range(257))},
    ],
    ids=str,
)
async def test_a_rule_that_cannot_be_meant_is_refused_without_its_value(
    diversions: Diversions, members: dict[str, Any]
) -> None:
    rule = SecretRule(**{**vars(RULE), **members})
    with pytest.raises(Invalid) as caught:
        diversions.admit("box-1", (rule,))
    assert VALUE not in str(caught.value)


async def test_nothing_is_opened_before_the_first_secret(tmp_path: Path) -> None:
    diversions = Diversions(key=KEY, port_file=tmp_path / "port")
    with pytest.raises(Unavailable):
        diversions.admit("box-1", (RULE,))
    async with diversions.running():
        assert not (tmp_path / "port").exists()
        admission = diversions.admit("box-1", (RULE,))
        assert (tmp_path / "port").read_text() == f"{admission.diversion.port}\n"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", admission.diversion.port)
