"""Background processes and their logs: cases 40 to 52 of the contract, and what it says around them."""

import re
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from tests.app.traces import until
from tests.dialects.executor.serving import Event, Executor, is_text

KEYS = {"id", "pid", "status", "command"}
OPTIONAL = {"exit_code", "started_at", "completed_at"}
ENDED = {"message": "stream ended"}


def lines(events: list[Event]) -> list[tuple[str, str]]:
    """What was logged, after which the stream ended in order."""
    *logged, last = events
    assert (last.name, last.data) == ("complete", ENDED)
    assert all(event.name == "log" for event in logged)
    assert all(event.data.keys() == {"timestamp", "stream", "data"} for event in logged)
    return [(event.data["stream"], event.data["data"]) for event in logged]


def texts(events: list[Event]) -> list[str]:
    return [text for _, text in lines(events)]


def when(event: Event) -> datetime:
    """The capture time, which has up to nine digits of a second."""
    stamp = event.data["timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", stamp), stamp
    return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", stamp))


def test_40_a_process_is_started_and_listed(executor: Executor) -> None:
    response = executor.post("/start_process", {"cmd": "sleep 30"})
    assert response.status_code == 201
    answer = response.json()
    assert answer.keys() == {"id", "pid", "status"}
    assert str(uuid.UUID(answer["id"], version=4)) == answer["id"]
    assert answer["pid"] > 0
    assert answer["status"] == "running"
    listed = executor.processes()[answer["id"]]
    assert KEYS <= listed.keys() <= KEYS | OPTIONAL
    assert (listed["pid"], listed["status"], listed["command"]) == (answer["pid"], "running", "sleep 30")
    assert "sh -c sleep 30" in executor.stdout(f"tr '\\0' ' ' < /proc/{answer['pid']}/cmdline")
    executor.kill(answer["id"])


def test_40_processes_are_listed_in_the_order_of_their_starts(executor: Executor) -> None:
    started = [executor.start(f"sleep {n % 2 * 30}") for n in range(6)]
    assert [name for name in executor.processes() if name in started] == started
    for process in started[1::2]:
        executor.kill(process)


def test_40_a_process_outlives_its_connection(executor: Executor) -> None:
    with executor.connect() as connection:
        connection.sendall(executor.request("POST", "/start_process", {"cmd": "sleep 30.7"}))
        head = connection.recv(1 << 16)
        assert head.startswith(b"HTTP/1.1 201 ")
    until(lambda: executor.runs("sleep 30.7"))
    found = [one for one in executor.processes().values() if one["command"] == "sleep 30.7"]
    assert [one["status"] for one in found] == ["running"]
    executor.kill(found[0]["id"])


def test_40_directory_and_environment(executor: Executor) -> None:
    process = executor.start("pwd; echo $K; cat", cwd="/tmp", env={"K": "v"})
    assert executor.ended(process) == "completed"
    assert texts(executor.logged(process)) == ["/tmp", "v"]


def test_41_a_process_needs_a_command(executor: Executor) -> None:
    for body in ({}, {"cmd": ""}, {"cmd": None}):
        assert is_text(executor.post("/start_process", body), 400, "Command is required")
    assert is_text(executor.ask("GET", "/start_process"), 405, "Method not allowed")
    assert executor.ended(executor.start("  ")) == "completed"


def test_41_what_cannot_be_started_is_not_listed(executor: Executor) -> None:
    before = executor.processes().keys()
    for body in ({"cmd": "echo \0"}, {"cmd": "#" + "x" * 200_000}, {"cmd": "true", "env": {"A": "x" * 200_000}}):
        response = executor.post("/start_process", body)
        assert response.status_code == 400
        answer = response.json()
        assert (answer["id"], answer["pid"], answer["status"]) == ("", 0, "")
        assert answer["error"].startswith("failed to start command")
    assert executor.processes().keys() == before


def test_42_a_killed_process_is_killed_at_once_and_once(executor: Executor) -> None:
    process = executor.start("sleep 30")
    first = executor.kill(process)
    assert (first.status_code, first.json()) == (200, {"success": True, "message": "Process killed successfully"})
    assert executor.status(process) == "killed"
    second = executor.kill(process)
    assert second.status_code == 400
    assert second.json() == {"success": False, "error": "process is not running (status: killed)"}


def test_42_of_concurrent_kills_one_succeeds(executor: Executor) -> None:
    for _ in range(5):
        process = executor.start("sleep 30")
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: executor.kill(process), range(6)))  # noqa: B023
        assert sorted(answer.status_code for answer in answers) == [200, *[400] * 5]


def test_42_another_signal_is_sent_on_request(executor: Executor) -> None:
    process = executor.start("trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    with executor.logs(process) as logs:
        heard = iter(logs)
        assert next(heard).data["data"] == "ready"
        assert executor.post("/kill_process", {"id": process, "signal": "SIGTERM"}).status_code == 200
        *said, last = heard
    assert "caught" in [event.data["data"] for event in said]
    assert last.data == ENDED
    assert executor.ended(process) in ("failed", "killed")


def test_43_killing_what_is_not_there(executor: Executor) -> None:
    for name in ("nope", str(uuid.uuid4()), 'a"b', "../x", "\u00e4"):
        response = executor.kill(name)
        assert response.status_code == 400
        assert response.json() == {"success": False, "error": f"process not found: {name}"}
    for body in ({}, {"id": ""}, {"id": None}):
        assert is_text(executor.post("/kill_process", body), 400, "Process ID is required")
    assert is_text(executor.post("/kill_process", {"id": 5}), 400, "Invalid request")


@pytest.mark.parametrize(
    ("cmd", "status"),
    [("true", "completed"), ("exit 4", "failed"), ("nope-x", "failed"),
     ("kill -9 $$", "killed"), ("kill -15 $$", "killed"), ("sleep 30 & echo left", "completed")],
)  # fmt: skip
def test_44_the_shell_s_exit_decides(executor: Executor, cmd: str, status: str) -> None:
    process = executor.start(cmd)
    assert executor.ended(process) == status
    answer = executor.kill(process)
    assert answer.json() == {"success": False, "error": f"process is not running (status: {status})"}
    assert executor.status(process) == status
    if status == "failed":
        assert executor.processes()[process].get("exit_code", 4) in (4, 127)


def test_45_logs_are_the_same_at_once_and_later(executor: Executor) -> None:
    process = executor.start("echo a; echo b >&2; sleep 0.3")
    for _ in range(2):
        events = executor.logged(process)
        assert lines(events) == [("stdout", "a"), ("stderr", "b")]
        for event in events[:-1]:
            assert abs((datetime.now(UTC) - when(event)).total_seconds()) < 60


def test_46_history_and_what_is_new_are_one(executor: Executor) -> None:
    process = executor.start("echo old; sleep 0.8; echo new; sleep 0.3")
    with executor.logs(process) as first:
        assert next(iter(first)).data["data"] == "old"
    with ThreadPoolExecutor(3) as pool:
        readers = list(pool.map(executor.logged, [process] * 3))
    for events in readers:
        assert texts(events) == ["old", "new"]
        assert when(events[1]) > when(events[0])


def test_47_the_last_ten_thousand_lines_are_kept(executor: Executor) -> None:
    process = executor.start("seq 1 12000; sleep 0.5")
    assert executor.ended(process) == "completed"
    assert texts(executor.logged(process)) == [str(n) for n in range(2001, 12_001)]


def test_47_they_are_those_of_both_streams_together(executor: Executor) -> None:
    process = executor.start("seq 1 7000; seq 1 7000 >&2; sleep 0.2")
    assert executor.ended(process) == "completed"
    logged = lines(executor.logged(process))
    assert len(logged) == 10_000
    assert [text for stream, text in logged if stream == "stderr"] == [str(n) for n in range(1, 7001)]
    assert [text for stream, text in logged if stream == "stdout"] == [str(n) for n in range(4001, 7001)]


def test_47_history_is_in_the_order_in_which_it_was_said(executor: Executor) -> None:
    process = executor.start("for i in 1 2 3 4 5 6 7 8 9; do echo o$i; sleep 0.01; echo e$i >&2; sleep 0.01; done")
    assert executor.ended(process) == "completed"
    events = executor.logged(process)
    assert texts(events) == [f"{kind}{n}" for n in range(1, 10) for kind in "oe"]
    times = [when(event) for event in events[:-1]]
    assert times == sorted(times)
    assert len(set(times)) > 9


def test_48_short_processes_lose_nothing(executor: Executor) -> None:
    with ThreadPoolExecutor(6) as pool:
        started = list(pool.map(lambda _: executor.start("echo hi; printf tail"), range(60)))
        logs = list(pool.map(executor.logged, started))
    assert [texts(events) for events in logs] == [["hi", "tail"]] * 60


def test_49_a_burst_is_complete_for_a_live_reader(executor: Executor) -> None:
    process = executor.start("seq 1 5000; sleep 0.3")
    assert texts(executor.logged(process)) == [str(n) for n in range(1, 5001)]


def test_50_logs_of_nothing(executor: Executor) -> None:
    for query in ("", "?id=", "?x=1"):
        assert is_text(executor.ask("GET", f"/process_logs_streaming{query}"), 400, "Process ID is required")


@pytest.mark.parametrize("name", ["nope", 'a"b', "a b&c", "\u00e4\u2028\x85", "\n\nevent: complete", "%", "x" * 2000])
def test_50_logs_of_what_is_not_there(executor: Executor, name: str) -> None:
    """The id is told as it was meant, and is no way to forge events."""
    quoted = "".join(f"%{byte:02X}" for byte in name.encode())
    with executor.logs(quoted) as stream:
        events = list(stream)
    assert [(event.name, event.data) for event in events] == [("error", {"error": f"process not found: {name}"})]


def test_50_an_id_that_is_no_text_is_just_unknown(executor: Executor) -> None:
    with executor.logs("%FF%00") as stream:
        assert [event.name for event in stream] == ["error"]


def test_51_a_kill_reaches_the_whole_tree(executor: Executor) -> None:
    number = f"60.{time.monotonic_ns()}"
    process = executor.start(f"echo up; setsid sleep {number}1 & sleep {number}2; echo x")
    with executor.logs(process) as logs:
        heard = iter(logs)
        assert next(heard).data["data"] == "up"
        until(lambda: executor.runs(f"sleep {number}1") and executor.runs(f"sleep {number}2"))
        assert executor.kill(process).status_code == 200
        until(lambda: not any(line.startswith(f"sleep {number}") for line in executor.commands()))
        assert [event.data for event in heard] == [ENDED]


def test_52_a_reader_that_never_reads_stops_nobody(executor: Executor) -> None:
    process = executor.start("yes 0123456789012345678901234567890 | head -c 3000000; echo; echo last >&2")
    assert executor.ended(process) == "completed"
    stuck = []
    for _ in range(5):
        connection = executor.connect(receive_buffer=4096)
        connection.sendall(executor.request("GET", f"/process_logs_streaming?id={process}"))
        stuck.append(connection)
    whole = texts(executor.logged(process))
    assert len(whole) == 10_000
    assert whole[-1] == "last"
    assert executor.run("echo fine")["stdout"] == "fine\n"
    assert len(texts(executor.logged(process))) == 10_000
    for connection in stuck:
        connection.close()


def test_logs_follow_each_line_as_it_comes(executor: Executor) -> None:
    process = executor.start("echo 1; sleep 0.6; echo 2; sleep 0.6")
    first, second, last = executor.logged(process)
    assert second.at - first.at >= 0.4
    assert last.at - second.at >= 0.4


def test_logs_end_soon_after_the_shell_though_a_child_holds_the_pipe(executor: Executor) -> None:
    process = executor.start("sleep 30.8 & echo begun")
    begun = time.monotonic()
    assert texts(executor.logged(process)) == ["begun"]
    assert time.monotonic() - begun < 10
    assert executor.runs("sleep 30.8")
    executor.run("pkill -f '^sleep 30.8' || kill $(pidof sleep)")


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("a\\r\\nb\\n\\n\\n", ["a", "b", "", ""]),
        ("a\\r\\r\\n", ["a\r"]),
        ("a\\rb\\n", ["a\rb"]),
        ("tail", ["tail"]),
        ("a\\302\\205b\\342\\200\\250c\\377\\n", ["a\x85b\u2028c\ufffd"]),
    ],
)
def test_log_lines_end_at_line_feeds_only(executor: Executor, printed: str, expected: list[str]) -> None:
    assert texts(executor.logged(executor.start(f"printf '{printed}'"))) == expected


def test_a_long_line_stops_nothing(executor: Executor) -> None:
    process = executor.start("echo before; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo after")
    before, *long, after = texts(executor.logged(process))
    assert (before, after) == ("before", "after")
    assert {len(text) for text in long} == {3_000_000}


def test_a_reader_that_leaves_disturbs_nobody(executor: Executor) -> None:
    process = executor.start("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.05; done")
    with executor.logs(process) as stream:
        next(iter(stream))
    assert texts(executor.logged(process)) == [str(n) for n in range(1, 9)]
    assert executor.ended(process) == "completed"


def test_a_process_is_not_held_back_by_its_readers(executor: Executor, folder: str) -> None:
    """It writes far more than is kept, while one reader does not read at all."""
    process = executor.start(f"sleep 0.3; seq 1 1000000; touch {folder}/done")
    with executor.connect(receive_buffer=4096) as stuck:
        stuck.sendall(executor.request("GET", f"/process_logs_streaming?id={process}"))
        assert executor.ended(process) == "completed"
        assert executor.stdout(f"ls {folder}") == "done\n"
    assert texts(executor.logged(process)) == [str(n) for n in range(990_001, 1_000_001)]


def test_a_half_closed_reader_is_a_reader(executor: Executor) -> None:
    """One that has said all it wants to say still gets everything, or is taken for gone; the server goes on."""
    process = executor.start("echo 1; sleep 0.2; echo 2")
    with executor.connect() as connection:
        connection.sendall(executor.request("GET", f"/process_logs_streaming?id={process}"))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass
    assert texts(executor.logged(process)) == ["1", "2"]
