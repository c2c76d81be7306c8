"""Webhooks: whoever asked for it is told once a job has ended, signed, and nobody is reached who must not be."""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stockade.config_jobs import WebhooksConfig
from stockade.engine.webhooks import secret_of
from stockade.model import Outcome
from stockade.model.jobs import Job, JobFailure, JobResult, JobState, Webhook
from stockade.settings import ConfigError
from stockade.worker import Observer, WebhookSender
from stockade.worker.webhooks import permission
from tests.worker.fake_store import FakeStore
from tests.worker.working import a_job, becomes

pytestmark = pytest.mark.anyio

LOOPBACK = WebhooksConfig(
    attempts=3, timeout_s=5.0, first_retry_s=0.01, longest_retry_s=0.02, permit_private=("127.0.0.0/8", "::1/128")
)
DONE = JobResult(
    outcome=Outcome.EXITED, exit_code=0, stdout=b"\xff" + b"x" * 100_000, stderr=b"e", duration_ns=5 * 10**8
)


@dataclass
class Receiver:
    """A web server that keeps what it is sent, and answers as it is told."""

    port: int = 0
    answers: list[bytes] = field(default_factory=list)
    """For the next requests; then 204."""
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    is_silent: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/done?x=1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            fields = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}
            self.bodies.append(await reader.readexactly(int(fields["content-length"])))
            self.heads.append(fields | {"": first})
            if self.is_silent:
                await reader.read()
            writer.write(self.answers.pop(0) if self.answers else b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()


@contextlib.asynccontextmanager
async def sending(store: FakeStore, config: WebhooksConfig = LOOPBACK, **options: Any) -> AsyncIterator[None]:
    sender, stop = WebhookSender(store, config, secret="whsec", **options), asyncio.Event()
    task = asyncio.create_task(sender.run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(60):
            await task


def an_ended_job(url: str, result: JobResult = DONE, **members: Any) -> Job:
    now = datetime.now(UTC)
    job = a_job("secret code", labels={"ci": "1"}, **members)
    webhook = Webhook(url=url, next_at=now)
    return replace(
        job, state=result.state, result=result, started_at=now, ended_at=now, attempts=1, fence=1, webhook=webhook
    )


def hook(store: FakeStore, job: Job) -> Webhook:
    found = store.jobs[job.id].webhook
    assert found is not None
    return found


@pytest.fixture
async def store(anyio_backend: str) -> FakeStore:
    return FakeStore()


async def test_the_receiver_is_told_once_with_a_signature_that_it_can_check(store: FakeStore) -> None:
    async with receiving() as receiver:
        job = an_ended_job(receiver.url)
        await store.add([job])
        async with sending(store):
            await becomes(lambda: hook(store, job).delivered_at)
    (head,), (body,) = receiver.heads, receiver.bodies
    assert head[""] == "POST /done?x=1 HTTP/1.1"
    assert head["host"] == f"127.0.0.1:{receiver.port}"
    assert (head["content-type"], head["stockade-job"], head["stockade-attempt"]) == ("application/json", job.id, "1")
    moment, _, digest = head["stockade-signature"].partition(",")
    text = moment.removeprefix("t=").encode() + b"." + body
    secret = secret_of("whsec", job.account_id).encode()
    assert digest == "v1=" + hmac.new(secret, text, hashlib.sha256).hexdigest()
    told = json.loads(body)
    assert (told["event"], told["id"], told["state"], told["labels"]) == ("job.ended", job.id, "succeeded", {"ci": "1"})
    assert (told["result"]["exitCode"], told["result"]["durationS"], told["result"]["outcome"]) == (0, 0.5, "exited")
    assert told["result"]["stdout"] == "\ufffd" + "x" * (64 * 1024 - 1)
    assert (told["result"]["stdoutTruncated"], told["result"]["stderrTruncated"]) == (True, False)
    assert "signal" not in told["result"]
    assert b"secret code" not in body
    assert (hook(store, job).attempts, hook(store, job).next_at, hook(store, job).error) == (1, None, "")


async def test_a_job_of_which_nothing_was_run_is_told_with_the_reason(store: FakeStore) -> None:
    async with receiving() as receiver:
        job = an_ended_job(receiver.url, JobResult(outcome=None, failure=JobFailure.REFUSED, message="no such thing"))
        await store.add([job])
        async with sending(store):
            await becomes(lambda: receiver.bodies)
    told = json.loads(receiver.bodies[0])
    assert told["state"] == JobState.FAILED
    assert (told["result"]["failure"], told["result"]["message"]) == ("refused", "no such thing")
    assert "outcome" not in told["result"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", "the receiver answered 500"),
        (
            b"HTTP/1.1 307 There\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            "the receiver answered 307: redirects are not followed",
        ),
        (b"nonsense\r\n\r\n", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
    ],
)
async def test_a_receiver_that_does_not_take_it_is_told_again_until_it_is_given_up(
    store: FakeStore, answer: bytes, reason: str
) -> None:
    async with receiving() as receiver:
        receiver.answers = [answer] * 3
        job = an_ended_job(receiver.url)
        await store.add([job])
        async with sending(store):
            await becomes(lambda: hook(store, job).attempts == 3)
    after = hook(store, job)
    assert len(receiver.bodies) == 3
    assert (after.next_at, after.delivered_at) == (None, None)
    assert after.error.startswith(reason)


async def test_a_receiver_that_comes_back_is_told_in_the_end(store: FakeStore) -> None:
    told: list[str] = []

    class Noting(Observer):
        def told(self, outcome: str) -> None:
            told.append(outcome)

    async with receiving() as receiver:
        receiver.answers = [b"HTTP/1.1 503 Later\r\ncontent-length: 0\r\n\r\n"] * 2
        job = an_ended_job(receiver.url)
        await store.add([job])
        async with sending(store, observer=Noting()):
            await becomes(lambda: hook(store, job).delivered_at)
    assert (hook(store, job).attempts, hook(store, job).error) == (3, "")
    assert told == ["failed", "failed", "delivered"]
    assert [head["stockade-attempt"] for head in receiver.heads] == ["1", "2", "3"]


async def test_the_first_wait_is_as_configured_and_the_next_is_later(store: FakeStore) -> None:
    async with receiving() as receiver:
        receiver.answers = [b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"] * 3
        job = an_ended_job(receiver.url)
        await store.add([job])
        before = datetime.now(UTC)
        async with sending(store, replace(LOOPBACK, first_retry_s=100.0, longest_retry_s=1000.0)):
            await becomes(lambda: hook(store, job).attempts == 1)
    next_at = hook(store, job).next_at
    assert next_at is not None
    assert before + timedelta(seconds=80) <= next_at <= datetime.now(UTC) + timedelta(seconds=120)


async def test_a_receiver_that_does_not_answer_holds_nobody_for_longer_than_its_time(store: FakeStore) -> None:
    async with receiving() as receiver:
        receiver.is_silent = True
        job = an_ended_job(receiver.url)
        await store.add([job])
        async with sending(store, replace(LOOPBACK, timeout_s=0.2, attempts=1)):
            await becomes(lambda: hook(store, job).attempts == 1)
    assert hook(store, job).error == "no answer within 0.2 s"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://2130706433:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
    ],
)
async def test_nothing_on_this_machine_is_reached(store: FakeStore, url: str) -> None:
    async with receiving() as receiver:
        job = an_ended_job(url.format(port=receiver.port))
        await store.add([job])
        async with sending(store, replace(LOOPBACK, permit_private=())):
            await becomes(lambda: hook(store, job).attempts)
    assert not receiver.bodies
    # Trying again would not help: it is given up at once, and says why.
    assert (hook(store, job).next_at, hook(store, job).error) == (None, "the address is not a public one")


async def test_a_name_is_refused_when_any_of_its_addresses_is_not_public(store: FakeStore) -> None:
    async def both(host: str, port: int) -> list[Any]:
        return [ipaddress.ip_address("93.184.215.14"), ipaddress.ip_address("10.0.0.1")]

    job = an_ended_job("https://example.com/")
    await store.add([job])
    async with sending(store, replace(LOOPBACK, permit_private=()), resolve=both):
        await becomes(lambda: hook(store, job).attempts)
    assert hook(store, job).error == "the address is not a public one"


async def test_the_connection_goes_to_the_address_that_was_looked_at(store: FakeStore) -> None:
    lookups = 0

    async def rebinding(host: str, port: int) -> list[Any]:
        nonlocal lookups
        lookups += 1
        assert host == "rebinding.example"
        return [ipaddress.ip_address("127.0.0.1")]

    async with receiving() as receiver:
        job = an_ended_job(f"http://rebinding.example:{receiver.port}/")
        await store.add([job])
        async with sending(store, resolve=rebinding):
            await becomes(lambda: hook(store, job).delivered_at)
    assert receiver.heads[0]["host"] == f"rebinding.example:{receiver.port}"
    assert lookups == 1


async def test_a_name_that_does_not_resolve_is_tried_again(store: FakeStore) -> None:
    async def nobody(host: str, port: int) -> list[Any]:
        raise OSError("no such name")

    job = an_ended_job("https://example.invalid/")
    await store.add([job])
    async with sending(store, resolve=nobody):
        await becomes(lambda: hook(store, job).attempts == 3)
    assert hook(store, job).error == "the name does not resolve"


async def test_a_store_that_is_away_for_a_while_ends_no_sender(store: FakeStore) -> None:
    store.is_away = True
    async with receiving() as receiver, sending(store):
        await becomes(lambda: store.calls["due_webhooks"] >= 2)
        store.is_away = False
        job = an_ended_job(receiver.url)
        await store.add([job])
        await becomes(lambda: hook(store, job).delivered_at)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("127.0.0.1", False),
        ("::1", False),
        ("fd00::1", True),
    ],
)
def test_what_is_not_public_needs_permission(address: str, allowed: bool) -> None:
    permitted: Callable[[Any], bool] = permission(("10.1.0.0/16", "fd00::/8"))
    assert permitted(ipaddress.ip_address(address)) is allowed


def test_a_permission_for_no_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="permit_private"):
        permission(("10.0.0.1/8",))
