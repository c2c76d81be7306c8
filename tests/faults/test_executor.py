"""Clients of the executor protocol that leave, dawdle or overdo it, and servers that end: no command runs twice, and
nothing of one is left.
"""

import contextlib
import os
import random
import resource
import selectors
import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.app.serving import Server
from tests.app.traces import until
from tests.dialects.executor.serving import KEY, Event, Executor, platform, platform_sandbox
from tests.faults.sessions import LONG, MIB, descriptors, end_process, nothing_left, peak_memory, reset_peak, warden_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden has one user id and few limits")
READERS = 100
LINES = 3000
CONNECTIONS = 1000
LEAVERS = 400 if LONG else 60
GROWTH = 64 * MIB
SERVICE = """
import asyncio
async def serve(reader, writer):
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', 8200, backlog=1024)
    print('listens', flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


FORKS = """exec python3 -c '
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(300)
    except OSError:
        time.sleep(0.1)'"""


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    folder = tmp_path_factory.mktemp("executor") / "data"
    with nothing_left(folder) as note, platform(folder) as server:
        executor = platform_sandbox(server)
        yield executor
        note(server)
        executor.http.close()


def again(before: Executor, server: Server) -> Executor:
    """The same sandbox behind the next server."""
    return Executor(url=server.url, secret=before.secret, proxy_port=before.proxy_port, server=server)


def texts(events: list[Event]) -> list[str]:
    *logged, last = events
    assert last.name == "complete", last
    return [event.data["data"] for event in logged]


def test_processes_and_their_logs_outlive_a_server_that_is_killed(tmp_path: Path) -> None:
    """And a command that ran when it was has run once."""
    folder = tmp_path / "data"
    with nothing_left(folder) as note, contextlib.ExitStack() as stack:
        with contextlib.suppress(ProcessLookupError), platform(folder) as first:
            before = platform_sandbox(first)
            done = before.start("echo out; echo err >&2; exit 4")
            assert before.ended(done) == "failed"
            running = before.start("echo first; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo last")
            until(lambda: before.status(running) == "running")
            listed = before.processes()
            before.unbound().reply("/bind_port", {"port": "8123"})
            with ThreadPoolExecutor(1) as pool:
                lost = pool.submit(before.post, "/run", {"cmd": "echo once >> /tmp/count; sleep 6.5213"})
                until(lambda: before.runs("sleep 6.5213"))
                end_process(first.process.pid)
                with pytest.raises(httpx.TransportError):
                    lost.result(60)
            note(first)
        second = stack.enter_context(platform(folder))
        after = again(before, second)
        assert list(after.processes().values()) == list(listed.values())
        assert after.status(running) == "running"
        assert texts(after.logged(done)) == ["out", "err"]
        assert after.ask("GET", "/port_status").json() == {"success": True, "port": "8123"}
        after.run("touch /tmp/go")
        assert texts(after.logged(running)) == ["first", "last"]
        assert after.ended(running) == "completed"
        assert after.stdout("cat /tmp/count") == "once\n"
        note(second)


def test_a_server_that_is_told_to_stop_answers_those_who_wait(tmp_path: Path) -> None:
    """With 200, for whatever else they take would make them send the command again; and the command is ended."""
    folder = tmp_path / "data"
    with nothing_left(folder) as note, contextlib.ExitStack() as stack:
        with platform(folder, STOCKADE_SERVER_DRAIN_S="1") as first, ThreadPoolExecutor(2) as pool:
            before = platform_sandbox(first)
            waiting = pool.submit(before.post, "/run", {"cmd": "echo once >> /tmp/count; sleep 71.5"})
            streaming = pool.submit(before.streamed, "echo once >> /tmp/count; sleep 72.5")
            until(lambda: before.runs("sleep 71.5") and before.runs("sleep 72.5"))
            assert first.end(signal.SIGTERM) == 0
            answer = waiting.result(60)
            assert (answer.status_code, answer.json()["code"]) == (200, -1)
            assert "error" in answer.json()
            assert [event.data for event in streaming.result(60)] == [{"code": -1, "error": True}]
            note(first)
        second = stack.enter_context(platform(folder))
        after = again(before, second)
        until(lambda: not after.runs("sleep 7"))
        assert after.stdout("cat /tmp/count") == "once\nonce\n"
        note(second)


def test_a_sandbox_that_is_ended_answers_those_who_wait(executor: Executor) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    one = platform_sandbox(executor.server)
    sessions = one.ask("GET", "/v1/sessions?limit=1", headers=key).json()["sessions"]
    with ThreadPoolExecutor(3) as pool:
        process = one.start("echo up; sleep 76.5")
        waiting = pool.submit(one.post, "/run", {"cmd": "echo said; sleep 74.5"})
        streaming = pool.submit(one.streamed, "echo said; sleep 75.5")
        following = pool.submit(one.logged, process)
        until(lambda: one.runs("sleep 74.5") and one.runs("sleep 75.5") and one.runs("sleep 76.5"))
        assert one.ask("DELETE", f"/v1/sessions/{sessions[0]['id']}", headers=key).status_code == 200
        answer = waiting.result(60)
        assert (answer.status_code, answer.json()["code"]) == (200, -1)
        assert streaming.result(60)[-1].data == {"code": -1, "error": True}
        assert following.result(60)[-1].name in ("complete", "error")
    assert one.post("/run", {"cmd": "true"}).status_code == 410
    one.http.close()


def test_a_warden_that_dies_answers_those_who_wait(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with nothing_left(folder) as note, platform(folder) as server, ThreadPoolExecutor(2) as pool:
        one = platform_sandbox(server)
        note(server)
        waiting = pool.submit(one.post, "/run", {"cmd": "sleep 77.5"})
        streaming = pool.submit(one.streamed, "echo up; sleep 78.5")
        until(lambda: one.runs("sleep 77.5") and one.runs("sleep 78.5"))
        (warden,) = warden_of(folder)
        end_process(warden)
        answer = waiting.result(60)
        assert (answer.status_code, answer.json()["code"]) == (200, -1)
        assert streaming.result(60)[-1].data == {"code": -1, "error": True}
        until(lambda: one.post("/run", {"cmd": "true"}).status_code in (410, 503))
        fresh = platform_sandbox(server)
        assert fresh.stdout("echo fine") == "fine\n"
        note(server)
        for each in (one, fresh):
            each.http.close()


def test_clients_that_leave_at_any_moment_leave_nothing_running(executor: Executor) -> None:
    """By an orderly end, a reset, or within their request."""
    chance = random.Random(5)
    before = set(executor.processes())
    mark = "64.77"

    def leave(number: int) -> None:
        path = chance.choice(["/run", "/run_streaming"])
        cmd = chance.choice(
            ["sleep {0}", "sleep {0} & sleep {0}; echo x", "setsid sleep {0} & yes", "(sleep {0} &) ; sleep {0}"]
        )
        request = executor.request("POST", path, {"cmd": cmd.format(f"{mark}{number}")})
        with executor.connect() as connection:
            if chance.random() < 0.4:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if chance.random() < 0.15:
                request = request[: chance.randrange(len(request))]
            connection.sendall(request)
            time.sleep(chance.choice([0, 0.001, 0.003, 0.01, 0.05]) * chance.random())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(leave, range(LEAVERS)))
    until(lambda: not [line for line in executor.commands() if mark in line or line == "yes"])
    assert set(executor.processes()) == before
    until(lambda: int(executor.stdout("ls -d /proc/[0-9]* | wc -l")) < 10)


def test_a_hundred_readers_of_one_log_get_all_of_it_though_one_never_reads(executor: Executor) -> None:
    until(lambda: executor.post("/run", {"cmd": "true"}).status_code == 200)
    (warden,) = warden_of(executor.server.data_dir)
    pids = (executor.server.process.pid, warden)
    process = executor.start(
        f"echo up; while [ ! -e /tmp/all ]; do sleep 0.05; done; seq 1 {LINES}; echo err >&2; sleep 0.2"
    )
    before = reset_peak(*pids)
    with executor.connect(receive_buffer=4096) as stuck, contextlib.ExitStack() as stack:
        asked = executor.request("GET", f"/process_logs_streaming?id={process}")
        stuck.sendall(asked)
        readers = [stack.enter_context(executor.connect()) for _ in range(READERS - 1)]
        for one in readers:
            one.sendall(asked)
        executor.run("touch /tmp/all")
        heard = all_heard(readers, b"stream ended")
        assert executor.ended(process) == "completed"
    for text in heard:
        assert text.count(b"event: log\n") == LINES + 2
        assert text.count(b"event: complete\n") == 1
    assert peak_memory(*pids) - before < GROWTH


def all_heard(connections: list[socket.socket], last: bytes, within_s: float = 60) -> list[bytes]:
    """What each says until the last word."""
    heard = {one: bytearray() for one in connections}
    left = set(connections)
    deadline = time.monotonic() + within_s
    with selectors.DefaultSelector() as selector:
        for one in connections:
            selector.register(one, selectors.EVENT_READ)
        while left:
            assert time.monotonic() < deadline, f"{len(left)} have not heard all"
            for key, _ in selector.select(1):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                piece = one.recv(1 << 18)
                heard[one] += piece
                if not piece or last in heard[one][-len(piece) - len(last) :]:
                    selector.unregister(one)
                    left.discard(one)
    return [bytes(heard[one]) for one in connections]


def test_a_streamed_command_waits_for_a_client_that_does_not_read(executor: Executor) -> None:
    """Nothing piles up anywhere; and when the client goes away, the command goes, too."""
    (warden,) = warden_of(executor.server.data_dir)
    pids = (executor.server.process.pid, warden)
    before = reset_peak(*pids)
    with executor.connect(receive_buffer=4096) as stuck:
        stuck.sendall(executor.request("POST", "/run_streaming", {"cmd": "yes | tee /tmp/said"}))
        until(lambda: executor.runs("yes"))
        said: list[int] = []

        def stands_still() -> bool:
            said.append(int(executor.stdout("stat -c %s /tmp/said")))
            return len(said) >= 20 and len(set(said[-20:])) == 1

        until(stands_still)
        assert executor.stdout("echo fine") == "fine\n"
    assert peak_memory(*pids) - before < GROWTH
    until(lambda: not executor.runs("yes"))


def test_what_is_kept_of_finished_processes_is_bounded(executor: Executor) -> None:
    """The list stays whole, the latest logs too, and the oldest end at once."""
    one = platform_sandbox(executor.server)
    (warden,) = warden_of(executor.server.data_dir)
    before = reset_peak(warden)
    started = []
    for number in range(30):
        started.append(one.start(f"head -c 4000000 /dev/zero | tr '\\0' x; echo; echo {number}"))
        assert one.ended(started[-1]) == "completed"
    assert list(one.processes()) == started
    assert texts(one.logged(started[-1]))[-1] == "29"
    assert texts(one.logged(started[0])) in ([], ["0"])
    assert peak_memory(warden) - before < 2 * GROWTH
    one.http.close()


def test_a_thousand_connections_go_through_the_proxy_at_once(executor: Executor) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    executor.reply("/write_file", {"path": "/tmp/service.py", "content": SERVICE})
    process = executor.start("ulimit -n $(ulimit -Hn); exec python3 /tmp/service.py")
    with executor.logs(process) as logs:
        assert next(iter(logs)).data["data"] == "listens"
    open_before = descriptors(executor.server.process.pid)
    executor.unbound().reply("/bind_port", {"port": "8200"})
    try:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(executor.proxied()) for _ in range(CONNECTIONS)]
            for number, one in enumerate(connections):
                one.sendall(b"%032d" % number)
            heard = [one.recv(64) for one in connections]
            assert heard == [b"%032d" % number for number in range(CONNECTIONS)]
            assert executor.run("echo fine")["stdout"] == "fine\n"
    finally:
        executor.unbound().kill(process)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: descriptors(executor.server.process.pid) <= open_before + 8)


def test_a_disk_that_is_full_is_told_and_the_sandbox_works_on(executor: Executor) -> None:
    one = platform_sandbox(executor.server, resources={"storageMB": 8, "memoryMB": 512, "timeoutMs": 120_000})
    answer = one.reply("/write_file", {"path": "/tmp/big", "content": "x" * (32 * MIB)})
    assert answer["success"] is False
    assert "no space left on device" in answer["error"] or "too large" in answer["error"]
    assert one.reply("/delete_file", {"path": "/tmp/big"})["success"] in (True, False)
    assert one.reply("/write_file", {"path": "/tmp/small", "content": "x"}) == {"success": True}
    assert one.stdout("cat /tmp/small") == "x"
    one.http.close()


def test_a_sandbox_that_is_full_of_processes_refuses_more(executor: Executor) -> None:
    """Clearly, and nothing was run; the server and other sandboxes do not notice, and a kill makes room again."""
    one = platform_sandbox(executor.server)
    process = one.start(FORKS)
    until(lambda: has_no_room(one.post("/run", {"cmd": "true"})))
    for path in ("/run", "/run_streaming", "/start_process"):
        answer = one.post(path, {"cmd": "true"})
        assert answer.status_code in (200, 201) or has_no_room(answer), (path, answer.status_code, answer.text)
    assert one.post("/read_file", {"path": "/x"}).status_code in (200, 429, 503)
    assert executor.stdout("echo fine") == "fine\n"
    assert one.ask("GET", "/list_processes").status_code == 200
    assert one.kill(process).status_code == 200
    assert one.stdout("/bin/true & wait; echo fine") == "fine\n"
    one.http.close()


def test_a_fork_bomb_stays_in_its_sandbox(executor: Executor) -> None:
    one = platform_sandbox(executor.server)
    process = one.start("b() { b | b & }; while :; do b; done")
    for _ in range(10):
        assert executor.stdout("echo fine") == "fine\n"
    assert one.kill(process).status_code in (200, 400)
    until(lambda: one.post("/run", {"cmd": "/bin/true & wait"}).text == one.post("/run", {"cmd": "true"}).text)
    one.http.close()


def has_no_room(answer: httpx.Response) -> bool:
    """Whether it is refused for want of processes; that may pass, so to try again is right."""
    return answer.status_code in (429, 503) and "no room for another process" in answer.text


def test_a_stream_of_events_waits_for_its_reader_and_an_answer_does_not(tmp_path: Path) -> None:
    """However long: the protocol has no deadlines. What lies in memory or on the disk is dropped, though."""
    with platform(tmp_path / "data", STOCKADE_SERVER_BODY_TIMEOUT_S="1") as server:
        executor = platform_sandbox(server)
        cmd = f"yes {'x' * 98} | head -n 300000"
        with executor.connect(receive_buffer=65536) as stream, executor.connect(receive_buffer=65536) as answer:
            stream.sendall(executor.request("POST", "/run_streaming", {"cmd": cmd}))
            answer.sendall(executor.request("POST", "/run", {"cmd": cmd}))
            patience_is_over = time.monotonic() + 3
            until(lambda: time.monotonic() > patience_is_over)
            events = _received(stream)
            assert (events.count(b"event: output"), events.count(b"event: complete")) == (300_000, 1)
            assert b'"code":' not in _received(answer), "it was waited for"


def _received(connection: socket.socket) -> bytes:
    """What comes until an answer or the connection ends."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while not received.endswith(b"0\r\n\r\n") and (piece := connection.recv(1 << 20)):
            received += piece
    return bytes(received)
