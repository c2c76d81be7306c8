"""What a registry, or what it leads to, can do wrong: by a small one that does as it is told."""

import asyncio
import base64
import datetime
import ipaddress
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stockade.config_boxes import RegistriesConfig
from stockade.engine.image_manifests import Platform, sha256_of
from stockade.engine.image_references import Reference
from stockade.engine.image_sources import ImageUnavailable
from stockade.errors import Invalid
from stockade.model.registries import Login
from stockade.settings import ConfigError
from stockade.wire.fetch import IPAddress
from stockade.wire.registries import (
    ImageMissing,
    ImageRejected,
    Registries,
    RegistryNotAllowed,
    RegistrySource,
    session,
)
from stockade.wire.registries.hops import keep_location, new_client
from tests.engine.image_fakes import layer, made
from tests.registries import MANIFEST, by_digest, descriptor, for_platform

pytestmark = pytest.mark.anyio
IMAGE = made(layer({"etc/release": bytes(range(256)) * 1000}), pack="")
LAYER = IMAGE.blobs[0]
LAYER_PATH = f"/v2/app/blobs/{sha256_of(LAYER)}"
LOGIN = Login(username="robot", password="its password")
BASIC = "Basic " + base64.b64encode(b"robot:its password").decode()
PRIVATE = ("127.0.0.0/8",)


@dataclass(frozen=True, kw_only=True)
class Request:
    path: str
    """With its query."""
    headers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None
    """The connection breaks after so many bytes of the body."""
    is_endless: bool = False


Handler = Callable[[Request], Reply | None]
"""`None` for what the image itself says."""


def usual(request: Request) -> Reply:
    """What a registry with the image and without ranges answers."""
    path = request.path
    if path == "/v2/app/manifests/latest":
        return Reply(headers={"content-type": MANIFEST}, body=IMAGE.manifest)
    blob = by_digest(IMAGE).get(path.removeprefix("/v2/app/blobs/"))
    return Reply(status=404) if blob is None else Reply(body=blob)


@dataclass
class FakeRegistry:
    """Answers each request as *answer* says, on a connection of its own."""

    answer: Handler
    port: int = 0
    seen: list[Request] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name}
            request = Request(path=head[0].split(" ")[1], headers=headers)
            self.seen.append(request)
            await self._reply(writer, self.answer(request) or usual(request))
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # whoever asked has gone
        finally:
            writer.close()

    async def _reply(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        lines = [f"HTTP/1.1 {reply.status} So", "connection: close"]
        if not reply.is_endless:
            lines.append(f"content-length: {len(reply.body)}")
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write("\r\n".join((*lines, "", "")).encode())
        writer.write(reply.body if reply.cut_at is None else reply.body[: reply.cut_at])
        while reply.is_endless:
            writer.write(bytes(1 << 16))
            await writer.drain()
        await writer.drain()
        if reply.cut_at is not None:
            writer.transport.abort()


class Known:
    def __init__(self, login: Login | None) -> None:
        self.login = login

    async def find(self, account_id: str, reference: Reference, /) -> Login | None:
        return self.login


@asynccontextmanager
async def asking(
    answer: Handler, *, login: Login | None = None, others: Sequence[FakeRegistry] = (), **more: object
) -> AsyncIterator[tuple[FakeRegistry, RegistrySource]]:
    """A registry that answers so, and its image `app`."""
    registry = FakeRegistry(answer)
    async with registry.running():
        insecure = tuple(one.host for one in (registry, *others))
        config = replace(RegistriesConfig(insecure=insecure, permit_private=PRIVATE), **more)  # type: ignore[arg-type]
        async with Registries(config, Known(login)) as registries:
            yield registry, await registries.source(f"{registry.host}/app", account_id="1")


async def fetched(source: RegistrySource) -> bytes:
    """The layer of the image."""
    described = await source.describe()
    return b"".join([part async for part in await source.open(described.layers[0])])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("stockade.wire.registries.source._BREAK_WAIT_S", 0.01)


def cutting(at: int, *, ranges: bool) -> Handler:
    """Breaks the layer's connection after so many bytes, again and again."""

    def answer(request: Request) -> Reply | None:
        if request.path != LAYER_PATH:
            return None
        begin = int(request.headers.get("range", "bytes=0-")[6:-1]) if ranges else 0
        rest = LAYER[begin:]
        told = {"content-range": f"bytes {begin}-{len(LAYER) - 1}/{len(LAYER)}"} if begin else {}
        return Reply(status=206 if begin else 200, headers=told, body=rest, cut_at=at if len(rest) > at else None)

    return answer


async def test_a_layer_that_breaks_off_is_taken_up_where_it_broke() -> None:
    step = len(LAYER) // 3 + 1
    async with asking(cutting(step, ranges=True)) as (registry, source):
        assert await fetched(source) == LAYER
    ranges = [one.headers.get("range") for one in registry.seen if one.path == LAYER_PATH]
    assert ranges == [None, f"bytes={step}-", f"bytes={2 * step}-"]


async def test_a_registry_without_ranges_sends_it_again() -> None:
    breaks = iter([len(LAYER) // 3, 2 * len(LAYER) // 3])

    def answer(request: Request) -> Reply | None:
        return Reply(body=LAYER, cut_at=next(breaks, None)) if request.path == LAYER_PATH else None

    async with asking(answer) as (_, source):
        assert await fetched(source) == LAYER


async def test_a_layer_that_never_comes_further_is_given_up() -> None:
    async with asking(cutting(0, ranges=True)) as (_, source):
        with pytest.raises(ImageUnavailable, match=f"broke off at 0 of {len(LAYER)} bytes") as caught:
            await fetched(source)
    assert caught.value.code == "image.pull_failed"


@pytest.mark.parametrize("told", ["", "bytes 0-9/10", "bytes 10-19/20"])
async def test_another_part_than_was_asked_for_is_refused(told: str) -> None:
    def answer(request: Request) -> Reply | None:
        if request.path != LAYER_PATH:
            return None
        if "range" in request.headers:
            return Reply(status=206, headers={"content-range": told}, body=LAYER[1000:])
        return Reply(body=LAYER, cut_at=1000)

    async with asking(answer) as (_, source):
        with pytest.raises(ImageRejected, match="something else came"):
            await fetched(source)


async def test_a_layer_of_another_digest_never_ends_well() -> None:
    other = bytes(reversed(LAYER))
    async with asking(lambda request: Reply(body=other) if request.path == LAYER_PATH else None) as (_, source):
        with pytest.raises(Invalid, match="something else") as caught:
            await fetched(source)
    assert caught.value.code == "image.pull_failed"


async def test_a_configuration_of_another_digest_is_refused() -> None:
    config = IMAGE.config.replace(b"linux", b"Linux")
    path = f"/v2/app/blobs/{sha256_of(IMAGE.config)}"
    async with asking(lambda request: Reply(body=config) if request.path == path else None) as (_, source):
        with pytest.raises(ImageRejected, match="something else"):
            await source.describe()


async def test_a_manifest_of_another_digest_is_refused() -> None:
    registry = FakeRegistry(lambda request: Reply(body=IMAGE.manifest + b" ") if "manifests" in request.path else None)
    async with registry.running():
        config = RegistriesConfig(insecure=(registry.host,), permit_private=PRIVATE)
        async with Registries(config) as registries:
            source = await registries.source(f"{registry.host}/app@{IMAGE.digest}")
            with pytest.raises(ImageRejected, match="something else"):
                await source.describe()


async def test_a_layer_without_end_is_cut_off_at_its_size() -> None:
    async with asking(lambda request: Reply(body=LAYER, is_endless=True) if request.path == LAYER_PATH else None) as (
        _,
        source,
    ):
        with pytest.raises(ImageRejected, match="longer than"):
            await fetched(source)


async def test_a_manifest_without_end_is_cut_off() -> None:
    async with asking(lambda request: Reply(is_endless=True) if "manifests" in request.path else None) as (_, source):
        with pytest.raises(ImageRejected, match="answers with more than"):
            await source.describe()


async def test_an_image_that_is_too_large_is_refused_before_it_is_fetched() -> None:
    async with asking(lambda _: None, most_image_bytes=len(LAYER) - 1) as (registry, source):
        with pytest.raises(ImageRejected, match=r"registries\.most_image_bytes"):
            await source.describe()
    assert len(registry.seen) == 1


async def test_a_registry_that_does_not_answer_in_time_is_unavailable() -> None:
    def hanging(request: Request) -> Reply:
        return Reply(headers={"content-length": "1000000"}, body=b"{")

    async with asking(hanging, pull_time_s=1.0) as (_, source):
        with pytest.raises(ImageUnavailable):
            await source.describe()


async def test_a_redirect_is_followed_without_the_credentials() -> None:
    store = FakeRegistry(lambda request: Reply(body=LAYER) if request.path == "/signed?by=us" else Reply(status=404))

    def answer(request: Request) -> Reply | None:
        if request.headers.get("authorization") != BASIC:
            return Reply(status=401, headers={"www-authenticate": 'Basic realm="all, of it"'})
        if request.path == LAYER_PATH:
            return Reply(status=307, headers={"location": f"http://{store.host}/signed?by=us"})
        return None

    async with store.running(), asking(answer, login=LOGIN, others=[store]) as (_, source):
        assert await fetched(source) == LAYER
        assert source.is_private
    assert [one.headers.get("authorization") for one in store.seen] == [None]


async def test_where_a_redirect_leads_is_not_shown_credentials_when_it_asks() -> None:
    thief = FakeRegistry(lambda request: Reply(status=401, headers={"www-authenticate": 'Basic realm="yours"'}))

    def answer(request: Request) -> Reply | None:
        to_thief = {"location": f"http://{thief.host}/blob"}
        return Reply(status=302, headers=to_thief) if request.path == LAYER_PATH else None

    async with thief.running(), asking(answer, login=LOGIN, others=[thief]) as (_, source):
        with pytest.raises(ImageUnavailable, match=r"answered 401 \(at 127"):
            await fetched(source)
    assert thief.seen
    assert {one.headers.get("authorization") for one in thief.seen} == {None}


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://127.0.0.1:1/", "without TLS"),
        ("http://169.254.169.254/latest/meta-data", "without TLS"),
        ("https://169.254.169.254/latest/meta-data", "not public"),
        ("https://10.0.0.1/", "not public"),
        ("https://[::1]/", "not public"),
        ("file:///etc/passwd", "only https and http"),
        ("https://robot:password@example.org/", "holds a user"),
        ("https://exa mple.org:port/", "no URL"),
        ("https://" + "a" * 20_000, "no URL|too long"),
        ("https://127.0.0.1:99999/", "no port"),
    ],
)
async def test_a_redirect_inwards_is_not_followed(location: str, why: str) -> None:
    def answer(request: Request) -> Reply | None:
        return Reply(status=302, headers={"location": location}) if request.path == LAYER_PATH else None

    async with asking(answer) as (_, source):
        with pytest.raises((RegistryNotAllowed, ImageRejected), match=why):
            await fetched(source)


async def test_a_public_registry_leads_into_no_network_that_is_permitted() -> None:
    """Permitted to registries: not to whoever has one somewhere else."""
    inside = FakeRegistry(usual)

    async def resolve(host: str, port: int) -> Sequence[IPAddress]:
        return [ipaddress.ip_address("192.0.9.1" if host == "registry.test" else "127.0.0.1")]

    class Public(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            assert request.url.host == "192.0.9.1"
            return httpx.Response(302, headers={"location": f"https://inside.test:{inside.port}/"})

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=Public(), event_hooks={"response": [keep_location]})

    config = RegistriesConfig(permit_private=PRIVATE)
    async with inside.running(), Registries(config, resolve=resolve, client=client) as registries:
        source = await registries.source("registry.test/app")
        with pytest.raises(RegistryNotAllowed, match=r"leads to inside\.test"):
            await source.describe()
    assert not inside.seen


async def test_redirects_without_end_are_refused() -> None:
    async with asking(lambda request: Reply(status=302, headers={"location": request.path + "x"})) as (
        registry,
        source,
    ):
        with pytest.raises(ImageRejected, match="redirects more than"):
            await source.describe()
    assert len(registry.seen) == 6


def with_tokens(service: FakeRegistry, *, lives: int = 300) -> Handler:
    """Asks for a token of *service*, which counts them."""

    def answer(request: Request) -> Reply | None:
        if request.headers.get("authorization") == f"Bearer token-{len(service.seen)}":
            return None
        realm = f'Bearer realm="http://{service.host}/token?a=b",service="it, \\"self\\"",scope="repository:all:*"'
        return Reply(status=401, headers={"www-authenticate": realm})

    def token(request: Request) -> Reply:
        body = {"token": f"token-{len(service.seen)}", "expires_in": lives}
        return Reply(body=json.dumps(body).encode())

    service.answer = token
    return answer


@pytest.mark.parametrize("login", [None, LOGIN])
async def test_a_token_is_got_from_elsewhere_for_this_repository_alone(login: Login | None) -> None:
    service = FakeRegistry(usual)
    async with service.running(), asking(with_tokens(service), login=login, others=[service]) as (_, source):
        assert await fetched(source) == LAYER
    (asked,) = service.seen
    parts = urlsplit(asked.path)
    assert parts.path == "/token"
    assert parse_qs(parts.query) == {"a": ["b"], "service": ['it, "self"'], "scope": ["repository:app:pull"]}
    assert asked.headers.get("authorization") == (BASIC if login else None)


async def test_a_token_that_ends_is_renewed() -> None:
    service = FakeRegistry(usual)
    async with service.running(), asking(with_tokens(service), others=[service]) as (registry, source):
        described = await source.describe()
        service.seen.append(service.seen[0])  # from now on the registry takes another one
        assert b"".join([part async for part in await source.open(described.layers[0])]) == LAYER
    assert len(service.seen) == 3
    assert Counter(one.path for one in registry.seen)[LAYER_PATH] == 2


async def test_a_token_service_that_is_not_public_is_not_asked() -> None:
    realm = {"www-authenticate": 'Bearer realm="https://169.254.169.254/token",service="x"'}
    async with asking(lambda _: Reply(status=401, headers=realm), login=LOGIN) as (_, source):
        with pytest.raises(RegistryNotAllowed, match="not public"):
            await source.describe()


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(body=b"{}"), "gave no token"),
        (Reply(body=b"[" * 100_000), "gave no token"),
        (Reply(body=b'{"token": "a\\r\\nb: c"}'), "gave no token"),
        (Reply(status=302, headers={"location": "https://10.0.0.1/"}), "not public"),
        (Reply(is_endless=True), "more than"),
        (Reply(status=403), "without credentials"),
    ],
)
async def test_a_token_service_that_makes_no_sense_ends_the_pull(reply: Reply, why: str) -> None:
    service = FakeRegistry(usual)
    async with service.running(), asking(with_tokens(service), others=[service]) as (_, source):
        service.answer = lambda _: reply
        with pytest.raises((RegistryNotAllowed, Invalid), match=why):
            await source.describe()


async def test_a_registry_that_has_enough_is_asked_again_when_it_says() -> None:
    refusals = iter([Reply(status=429, headers={"retry-after": "0"}), Reply(status=503)])
    async with asking(lambda _: next(refusals, None)) as (registry, source):
        assert await fetched(source) == LAYER
    assert len(registry.seen) == 5


async def test_whoever_is_to_wait_for_long_is_told_so_at_once() -> None:
    said = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": "You have\nreached your limit"}]}).encode()
    refusal = Reply(status=429, headers={"retry-after": "3600"}, body=said)
    async with asking(lambda _: refusal) as (registry, source):
        with pytest.raises(
            ImageUnavailable, match="answered 429: TOOMANYREQUESTS You have reached your limit"
        ) as caught:
            await source.describe()
    assert caught.value.retry_after_s == 3600
    assert len(registry.seen) == 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "no JSON"),
        (b"[]", "no JSON object"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "schema version 2"),
        (b'{"schemaVersion": 2, "layers": [], "manifests": [], "config": {}}', "an index at the same time"),
        (b'{"schemaVersion": 2, "manifests": []}', "there are: none"),
        (b'{"schemaVersion": 2, "config": {"digest": "sha256:1", "size": 1}, "layers": []}', "no SHA-256 digest"),
        (b'{"schemaVersion": 2, "config": {"digest": "sha256:1", "size": -1}, "layers": []}', "no size"),
        (b'{"schemaVersion": 2, "config": {"digest": "sha256:1", "size": 1e99}, "layers": {}}', "no size"),
        (b"[" * 1_000_000, "no JSON"),
    ],
)
async def test_what_is_no_manifest_is_refused(body: bytes, why: str) -> None:
    async with asking(lambda _: Reply(body=body)) as (_, source):
        with pytest.raises(Invalid, match=why) as caught:
            await source.describe()
    assert caught.value.code == "image.pull_failed"


async def test_an_image_for_another_machine_is_refused_although_nothing_but_its_configuration_says_so() -> None:
    other = for_platform(IMAGE, Platform(architecture="pdp11"))
    replies = {
        "/v2/app/manifests/latest": other.manifest,
        **{f"/v2/app/blobs/{name}": b for name, b in by_digest(other).items()},
    }
    async with asking(lambda request: Reply(body=replies[request.path])) as (_, source):
        with pytest.raises(Invalid, match="for linux/pdp11"):
            await source.describe()


async def test_an_index_that_leads_to_itself_is_refused() -> None:
    def answer(request: Request) -> Reply:
        entry = descriptor(b"x", "application/vnd.oci.image.index.v1+json")
        return Reply(body=json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())

    async with asking(answer) as (_, source):
        with pytest.raises(ImageRejected, match="something else"):
            await source.describe()


async def test_content_that_is_encoded_is_refused() -> None:
    async with asking(lambda _: Reply(headers={"content-encoding": "gzip"}, body=b"x")) as (_, source):
        with pytest.raises(ImageRejected, match="content encoding"):
            await source.describe()


def authority(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """What a server shows that is called *name*, and what its clients trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    shown, secret = folder / f"{name}.pem", folder / f"{name}.key"
    shown.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown, secret)
    return context, shown


async def _loopback(host: str, port: int) -> Sequence[IPAddress]:
    return [ipaddress.ip_address("127.0.0.1")]


async def test_a_registry_must_show_a_certificate_of_its_name(tmp_path: Path) -> None:
    shown, trusted = authority(tmp_path, "registry.test")

    def client() -> httpx.AsyncClient:
        made = new_client()
        trust = ssl.create_default_context(cafile=str(trusted))
        made._transport = httpx.AsyncHTTPTransport(verify=trust, limits=httpx.Limits(max_keepalive_connections=0))
        return made

    registry = FakeRegistry(lambda _: None)
    config = RegistriesConfig(permit_private=PRIVATE)
    async with registry.running(shown), Registries(config, resolve=_loopback, client=client) as registries:
        source = await registries.source(f"registry.test:{registry.port}/app")
        assert await fetched(source) == LAYER
        assert registry.seen[0].headers["host"] == f"registry.test:{registry.port}"
        other = await registries.source(f"other.test:{registry.port}/app")
        with pytest.raises(ImageUnavailable, match=r"(?i)hostname mismatch"):
            await other.describe()
        assert len(registry.seen) == 3  # nothing was asked of who is somebody else
    async with registry.running(shown), Registries(config, resolve=_loopback) as registries:
        source = await registries.source(f"registry.test:{registry.port}/app")
        with pytest.raises(ImageUnavailable, match=r"(?i)self-signed"):
            await source.describe()


async def test_where_one_address_does_not_answer_the_next_is_tried() -> None:
    async def two(host: str, port: int) -> Sequence[IPAddress]:
        return [ipaddress.ip_address(one) for one in ("127.0.0.2", "127.0.0.1")]

    registry = FakeRegistry(usual)
    async with registry.running():
        host = f"registry.test:{registry.port}"
        config = RegistriesConfig(insecure=(host,), permit_private=PRIVATE)
        async with Registries(config, resolve=two) as registries:
            assert await fetched(await registries.source(f"{host}/app")) == LAYER


async def test_the_hub_is_asked_at_its_own_address() -> None:
    asked: list[httpx.Request] = []

    class Hub(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return httpx.Response(404, stream=httpx.ByteStream(b""))

    async def resolve(host: str, port: int) -> Sequence[IPAddress]:
        assert (host, port) == ("registry-1.docker.io", 443)
        return [ipaddress.ip_address("192.0.9.1")]

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=Hub())

    async with Registries(RegistriesConfig(), resolve=resolve, client=client) as registries:
        source = await registries.source("alpine")
        with pytest.raises(ImageMissing):
            await source.describe()
    assert str(asked[0].url) == "https://192.0.9.1/v2/library/alpine/manifests/latest"
    assert asked[0].headers["host"] == "registry-1.docker.io"
    assert asked[0].extensions["sni_hostname"] == "registry-1.docker.io"


@pytest.mark.parametrize("reference", ["localhost:99999/app", "xn--a.example/app", "a.example:0/app"])
async def test_a_registry_that_cannot_be_is_told_so(reference: str) -> None:
    async def nowhere(host: str, port: int) -> Sequence[IPAddress]:
        raise OSError("no such name")

    async with Registries(RegistriesConfig(), resolve=nowhere) as registries:
        with pytest.raises((ImageRejected, ImageUnavailable), match=r"no port|does not resolve"):
            await (await registries.source(reference)).describe()


@pytest.mark.parametrize("name", ["registry", "ghcr.io/team", "", "a b"])
def test_what_may_be_named_must_be_registries(name: str) -> None:
    with pytest.raises(ConfigError, match=r"registries\.allowed"):
        Registries(RegistriesConfig(allowed=(name,)))
    with pytest.raises(ConfigError, match=r"registries\.permit_private"):
        Registries(RegistriesConfig(permit_private=(f"{name}x",)))
