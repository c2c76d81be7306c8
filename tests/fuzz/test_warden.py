"""A real warden, and clients that say anything: it lives, serves others as before, and keeps nothing of theirs.

Each burst is made from a seed, which the failing test names. `STOCKADE_LONG_TESTS=1` runs many more.
"""

import contextlib
import errno
import json
import os
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stockade.warden import protocol
from tests.fuzz.messages import LONG, SANDBOX, Bag, bag, in_order, operations, spoil
from tests.warden.raw import Client, Warden, request, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the figures below are those of root's warden")
SEEDS = range(2000 if LONG else 24)
MESSAGES = 60
PATIENCE_S = 30.0
SPARE = 3 * 3
"""Descriptors of the cells that it may keep ready beyond those it has at rest: three each."""
_REFUSED_BY_KERNEL = (errno.EMSGSIZE, errno.EINVAL, errno.ETOOMANYREFS)


@pytest.fixture(scope="module")
def warden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warden]:
    folder = tmp_path_factory.mktemp("fuzzed")
    warden = Warden(folder, "--disks", str(folder / "disks"), "--disks-kind", "directory", "--cells", "2")
    assert warden.word == {"ok": True}
    yield warden
    warden.close()


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bag]:
    with bag(tmp_path_factory.mktemp("things")) as found:
        yield found


@pytest.fixture(scope="module")
def at_rest(warden: Warden) -> int:
    """How many descriptors it has once each kind of thing has been used and let go of."""
    with warden.client() as client:
        assert "ok" in client.run(request(1))[0]
        ask(client, {**in_order()["disk_make"], "disk": "once"})
        make(client)
    clear(warden)
    return warden.descriptors()


def short(message: dict[str, Any]) -> bytes:
    """As few bytes as say it: what is sent on in other words may be longer."""
    return json.dumps(message, separators=(",", ":")).replace("1000000000000000.0", "1e15").encode()


def ask(client: Client, message: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
    client.send(short(message), fds)
    answer, found = client.receive()
    for fd in found:
        os.close(fd)
    return answer


def make(client: Client) -> None:
    """Have the sandbox there to which the messages go, with a process that stays."""
    message = in_order()
    ask(client, message["remove"])
    assert "ok" in ask(client, message["create"])
    sleeping = {**message["exec"], "process": "main", "argv": ["/bin/sleep", "1000"], "gather": 0, "keep": True}
    assert "ok" in ask(client, sleeping)


def clear(warden: Warden) -> None:
    """Remove all that has been made."""
    with warden.client() as client:
        while page := ask(client, {"op": "inventory", "id": 1})["ok"]["sandboxes"]:
            for one in page:
                assert "ok" in ask(client, {"op": "remove", "id": 2, "sandbox": one["sandbox"]})
        for one in ask(client, {"op": "disk_list", "id": 3})["ok"]["disks"]:
            assert "ok" in ask(client, {"op": "disk_delete", "id": 4, "disk": one["disk"]})


class Babbler:
    """A client that sends what comes to its mind and may or may not listen."""

    def __init__(self, warden: Warden, things: Bag, seed: int) -> None:
        self.warden, self.things, self.rng = warden, things, random.Random(seed)
        self.answers: Counter[str] = Counter()
        self.client = warden.connect()
        self.listens = self.rng.random() < 0.85

    def babble(self, messages: int) -> None:
        valid = in_order()
        names = sorted(valid)
        for _ in range(messages):
            message = spoil(valid[self.rng.choice(names)], self.rng)
            data = json.dumps(message, ensure_ascii=self.rng.random() < 0.9).encode(errors="surrogatepass")
            if self.rng.random() < 0.05:
                data = self._break(data)
            self._say(data, self.things.some(self.rng))
        if self.listens:
            self._listen()
        self.client.close()

    def _break(self, data: bytes) -> bytes:
        at = self.rng.randrange(len(data))
        return self.rng.choice((data[:at], data[:at] + b"\xff\0" + data[at:], data + data, b"", data * 200))

    def _say(self, data: bytes, fds: tuple[int, ...]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                socket.send_fds(self.client.connection, [data], list(fds), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                if not self.listens:
                    self._come_back()
                    return
                self._listen()
            except OSError as error:
                if error.errno not in _REFUSED_BY_KERNEL:
                    self._come_back()  # it has hung up
                return
        raise AssertionError("the warden does not take what it is sent")

    def _come_back(self) -> None:
        self.client.close()
        self.client = self.warden.connect()

    def _listen(self) -> None:
        self.client.connection.settimeout(0.002)
        with contextlib.suppress(OSError, EOFError):
            while True:
                answer, fds = self.client.receive()
                for fd in fds:
                    os.close(fd)
                self.answers[answer.get("error", {}).get("kind", "ok")] += 1
                assert isinstance(answer["re"], int | None)


def test_every_operation_is_fuzzed() -> None:
    """A new one needs a message here."""
    assert set(in_order()) == operations()


def test_messages_that_are_in_order_are_taken(warden: Warden, at_rest: int) -> None:
    """Else the mutations of them would all end at the same door."""
    order = ["hello", "living", "inventory", "template", "exec", "open", "wait", "leave", "close_stdin", "signal"]
    order += ["process_ended", "resize", "processes", "inspect", "pause", "resume", "extend", "disk_make", "disk_info"]
    order += ["disk_copy", "disk_replace", "disk_resize", "disk_list", "disk_facts", "disk_seal", "disk_delete"]
    messages = in_order()
    with warden.client() as client:
        make(client)
        for name in order:
            message = messages[name]
            if name in ("open", "wait", "leave", "close_stdin", "process_ended"):
                assert "ok" in ask(client, {**messages["exec"], "process": name, "keep": True, "gather": 0})
                message = {**message, "process": name}
            until(lambda message=message: "ok" in ask(client, message))  # type: ignore[misc]
        client.start(messages["run"])
        assert "ok" in client.answer()[0]
    clear(warden)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_is_said_ends_the_warden(warden: Warden, things: Bag, at_rest: int, seed: int) -> None:
    with warden.client() as client:
        if ask(client, {**in_order()["inspect"], "sandbox": SANDBOX}).get("ok", {}).get("buried") is not False:
            make(client)
    babbler = Babbler(warden, things, seed)
    babbler.babble(MESSAGES)
    assert warden.process.poll() is None, f"seed {seed} has ended it"
    with warden.client() as client:
        answer, contents = client.run(request(1, "/bin/echo", "fine"))
        assert contents == [b"fine\n"], answer


def test_nothing_is_left_of_what_was_said(warden: Warden, at_rest: int) -> None:
    """After all of the above: no descriptor, no process, no sandbox."""
    clear(warden)
    until(lambda: not tenants(warden))
    until(lambda: warden.descriptors() <= at_rest + SPARE)


def tenants(warden: Warden) -> list[str]:
    """Programs that run in its sandboxes."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if entry.name.isdigit() and entry.stat().st_uid >= 0x7000_0000:
                name, ids = (
                    (entry / "comm").read_text().strip(),
                    (entry / "stat").read_text().rpartition(")")[2].split(),
                )
                parent = Path(f"/proc/{ids[1]}/stat").read_text().rpartition(")")[2].split()[1]
                found += [name] if name not in ("init", "stockade-mason") and int(parent) == warden.pid else []
    return found


def test_a_process_for_a_reader_that_is_none_is_never_started(warden: Warden) -> None:
    """It was, once; that nobody was there to read it then ended the warden."""
    with warden.client() as client:
        make(client)
        for spoilt in ({"reader": None}, {"reader": -1}, {"reader": 1, "patience_s": "x"}, {"reader": True}):
            answer = ask(client, {**in_order()["exec"], "process": "p9", **spoilt})
            assert answer["error"]["kind"] == "invalid"
        found = ask(client, {**in_order()["processes"], "after": 0})["ok"]["processes"]
        assert [one["name"] for one in found] == ["main"]
        assert client.is_alive()


@pytest.mark.parametrize("missing", range(0, 240, 16))
def test_facts_that_no_message_can_hold_are_refused(warden: Warden, missing: int) -> None:
    """A command line that just fitted into the order does not fit into what is told of the process."""
    with warden.client() as client:
        make(client)
        message = {
            **in_order()["exec"],
            "process": "p8",
            "keep": True,
            "gather": 0,
            "env": {},
            "argv": ["/bin/true", ""],
        }
        room = protocol.MOST_BYTES - len(short(message)) - missing
        message["argv"] = ["/bin/true", "x" * room]
        answer = ask(client, message)
        if "ok" in answer:
            told = ask(client, {**in_order()["process_ended"], "process": "p8"})
            assert told.get("error", {}).get("kind", "fault") == "fault"
            listed = ask(client, in_order()["processes"])
            assert "ok" in listed or listed["error"]["kind"] == "fault"
        assert client.is_alive()


def test_a_template_that_no_message_can_hold_harms_nobody(warden: Warden) -> None:
    """The order to make it is a few words longer than the request."""
    message = {**in_order()["template"], "announce": True}
    with warden.client() as client:
        for missing in range(0, 200, 8):
            room = protocol.MOST_BYTES - len(short({**message, "argv": ["/bin/true", ""]})) - missing
            ask(client, {**message, "argv": ["/bin/true", "x" * room]})
        assert client.is_alive()
        client.send({"op": "run", "id": 1})  # the loop has come round
        client.receive()
        until(lambda: not any(one["under_way"] for one in client.hello()["ok"]["warm"]))


@pytest.mark.parametrize(
    "more", ["\ud800", [1e15] * 25_000, "x" * 100_000], ids=["half", "longer when sent on", "long"]
)
def test_what_else_is_said_of_a_diversion_is_not_sent_on(warden: Warden, more: Any) -> None:
    """Once it was, and the egress process could not be told of any sandbox any more."""
    divert = {"port": 9, "token": "t", "hosts": [], "ports": [443], "more": more}
    message = in_order()["create"]
    with warden.client() as client:
        for policy, name in (({"divert": divert}, "diverted"), ({}, "outgoing")):
            answer = ask(client, {**message, "sandbox": name, "network": "outgoing", "policy": policy})
            assert "ok" in answer or answer["error"]["kind"] == "unsupported", answer
            assert "ok" in ask(client, {**in_order()["remove"], "sandbox": name})


@pytest.mark.parametrize("op", ["hello", "template", "living", "cancel"])
@pytest.mark.parametrize(
    "number", ["9" * 150_000, "\ud800", 10**400, [1e15] * 20_000, float("nan")], ids=lambda v: repr(v)[:8]
)
def test_an_answer_bears_a_number_or_none(warden: Warden, op: str, number: Any) -> None:
    with warden.client() as client:
        client.send(short({**in_order()[op], "id": number}))
        if op != "cancel":
            assert client.receive()[0]["re"] is None
        assert client.is_alive()


def test_who_floods_the_warden_is_served_in_turn(warden: Warden) -> None:
    """Messages without an answer cost their sender nothing; others are heard all the same."""
    flooders = [warden.connect() for _ in range(4)]
    data = json.dumps({"op": "cancel", "id": 5}).encode()
    for one in flooders:
        one.connection.setblocking(False)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            while True:
                for one in flooders:
                    with contextlib.suppress(BlockingIOError):
                        one.connection.send(data)
        os._exit(0)
    try:
        for _ in range(20):
            with warden.client() as client:
                assert client.is_alive()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        for one in flooders:
            one.close()


@pytest.mark.parametrize("op", ["ended", "process_ended", "wait", "open"])
def test_questions_without_an_answer_are_counted(warden: Warden, op: str) -> None:
    """The warden's memory is the host's: what waits in it for ever is bounded."""
    with warden.client() as client:
        make(client)
        message, kinds, last = in_order()[op], Counter[str](), 1200
        asked = 0
        while True:
            if asked <= last and not select.select([client.connection], [], [], 0)[0]:
                what = message if asked < last else {"op": "living"}
                client.send({**what, "id": asked, "reader": asked})
                asked += 1
                continue
            answer, fds = client.receive()
            for fd in fds:
                os.close(fd)
            if answer["re"] == last:
                break
            kinds[answer.get("error", {}).get("kind", "ok")] += 1
        assert kinds["unavailable"] >= 100, kinds
        ask(client, in_order()["remove"])


def test_connections_are_counted_for_each_user(warden: Warden, at_rest: int) -> None:
    """One user's cannot take all of the warden's descriptors. Who is there already is served."""
    with warden.client() as first:
        crowd: list[Client] = []
        while len(crowd) < 700:
            with contextlib.suppress(BlockingIOError):  # as many as may knock do
                crowd.append(warden.connect())
        assert first.is_alive()
        served = 0
        for one in crowd:
            with contextlib.suppress(EOFError, OSError):
                served += one.is_alive()
            one.close()
        assert 0 < served < 600

        def lets_in() -> bool:
            with warden.client() as client, contextlib.suppress(EOFError, OSError):
                return client.is_alive()
            return False

        until(lets_in)


def test_who_never_reads_is_waited_for_by_nobody(warden: Warden, at_rest: int) -> None:
    """Its answers are kept up to a number, then nothing of its is read; when it goes, all goes with it."""
    with warden.client() as deaf, warden.client() as other:
        deaf.connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for number in range(100_000):
                deaf.send({"op": "hello", "version": protocol.VERSION, "id": number})
        assert "ok" in other.run(request(1))[0]
    until(lambda: warden.descriptors() <= at_rest + SPARE)
