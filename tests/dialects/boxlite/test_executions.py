"""Executions in a real sandbox, as clients up to 0.9.3 use them: cases 17 to 34 of the protocol's list, and more."""

import asyncio
import base64

import pytest

from stockade.dialects.boxlite.executions import executions_of
from tests.dialects.boxlite.executing import WITHIN_S, Client, Told, backend, client
from tests.engine.live_fakes import ONE

__all__ = ["backend", "client"]

pytestmark = pytest.mark.anyio


async def test_arguments_arrive_as_they_are(client: Client) -> None:
    """Case 17."""
    told = await client.run("echo", "a b", "$x", tty=False)
    assert told.stdout == "a b $x\n"
    assert told.exit["exit_code"] == 0
    assert told.exit["duration_ms"] >= 0
    assert "error" not in told.exit


async def test_both_streams_and_the_code_are_told_and_the_answer_ends_by_itself(client: Client) -> None:
    """Case 18."""
    told = await client.told(await client.sh("echo o; echo e >&2; exit 3"))
    assert (told.stdout, told.stderr) == ("o\n", "e\n")
    assert told.order == ["stdout", "stderr", "exit"]
    assert told.exit["exit_code"] == 3


async def test_the_output_can_be_read_after_the_end_and_again(client: Client) -> None:
    """Case 19."""
    id = await client.sh("seq 20000; echo done >&2")
    assert (await client.ended(id))["status"] == "completed"
    for _ in range(2):
        told = await client.told(id)
        assert told.stdout.split() == [str(n) for n in range(1, 20001)]
        assert told.stderr == "done\n"
        assert told.exit["exit_code"] == 0


async def test_a_process_waits_for_who_comes_to_read_more_than_is_kept(client: Client) -> None:
    """Nothing of it is lost, though nobody reads it for a while."""
    id = await client.sh("head -c 12000000 /dev/zero | tr '\\0' x")
    await asyncio.sleep(0.3)
    assert (await client.status(id))["status"] == "running"
    told = await client.told(id)
    assert len(told.stdout) == 12_000_000
    assert told.exit["exit_code"] == 0


async def test_characters_are_never_cut(client: Client) -> None:
    """Case 20."""
    assert (await client.told(await client.sh("printf '\\303'; sleep .4; printf '\\251'"))).stdout == "é"


async def test_what_is_no_text_is_replaced(client: Client) -> None:
    """Case 21; and a character that never gets its end."""
    assert (await client.told(await client.sh("printf 'a\\377b'"))).stdout == "a\ufffdb"
    assert (await client.told(await client.sh("printf 'a\\342\\202'"))).stdout == "a\ufffd"


async def test_events_are_written_as_clients_look_for_them(client: Client) -> None:
    """Case 22."""
    id = await client.sh("echo one; sleep 0.2; echo two")
    response = await client.http.get(f"{client.path}/executions/{id}/output")
    lines = response.text.split("\n")
    assert lines[:3] == ["event: stdout", 'data: {"data":"b25lCg=="}', ""]
    assert all(line == "" or line.startswith(("event: ", "data: ", ": ")) for line in lines)
    assert lines[-2:] == ["", ""]


async def test_input_is_written_in_order_and_ended(client: Client) -> None:
    """Cases 23 and 24."""
    id = await client.exec("cat")
    for part in (b"ab", b"c"):
        assert (await client.write(id, part)).status_code == 204
    assert (await client.write(id, b"", close=True)).status_code == 204
    told = await client.told(id)
    assert told.stdout == "abc"
    assert told.exit["exit_code"] == 0
    assert (await client.write(id, b"", close=True)).status_code == 204
    late = await client.write(id, b"late")
    assert late.status_code == 409
    assert late.json()["error"]["type"] == "InvalidStateError"


async def test_a_body_and_the_header_write_and_then_end(client: Client) -> None:
    id = await client.exec("cat")
    assert (await client.write(id, b"abc", close=True)).status_code == 204
    assert (await client.told(id)).stdout == "abc"


async def test_much_input_in_many_requests_arrives_whole(client: Client) -> None:
    """Case 25; all sent at once, in the order of their arrival."""
    id = await client.exec("wc", "-c")
    for _ in range(10):
        assert (await client.write(id, b"x" * 30_000)).status_code == 204
    assert (await client.write(id, b"", close=True)).status_code == 204
    assert (await client.told(id)).stdout.strip() == "300000"


async def test_environment_and_directory_are_applied_over_the_boxs_own(client: Client) -> None:
    """Case 26."""
    told = await client.run("sh", "-c", 'echo "$A $OF $PWD"', env={"A": "1"}, working_dir="/usr")
    assert told.stdout == "1 the box /usr\n"
    assert (await client.run("pwd")).stdout == "/tmp\n"


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_time_limit_kills_whether_somebody_reads_or_not(client: Client, is_read: bool) -> None:
    """Case 27; with all that it started."""
    id = await client.sh("sleep 31.4 & sleep 30", timeout_seconds=0.5)
    told = await client.told(id) if is_read else None
    status = await client.ended(id)
    told = told or await client.told(id)
    assert told.exit["exit_code"] == 137
    assert told.exit["error"] == "timed out after 0.5 s"
    assert 500 <= told.exit["duration_ms"] < 25_000
    assert status["status"] == "timed_out"
    assert status["exit_code"] == 137
    assert status["error_message"] == "timed out after 0.5 s"
    assert (await client.run("pgrep", "-f", "sleep 31.4")).stdout == ""


async def test_a_time_limit_that_is_kept_is_not_told(client: Client) -> None:
    id = await client.sh("kill -9 $$", timeout_seconds=60)
    assert (await client.ended(id))["status"] == "killed"
    assert (await client.told(id)).exit == {"exit_code": 137, "duration_ms": (await client.status(id))["duration_ms"]}


async def test_a_signal_kills(client: Client) -> None:
    """Case 28; a finished one is no error."""
    id = await client.exec("sleep", "30")
    assert (await client.post(id, "signal", json={"signal": 9})).status_code == 204
    assert (await client.told(id)).exit["exit_code"] == 137
    assert (await client.status(id))["status"] == "killed"
    assert (await client.post(id, "signal", json={"signal": 9})).status_code == 204
    assert (await client.post(id, "signal", json={"signal": 65})).status_code == 400


async def test_a_signal_can_be_handled(client: Client) -> None:
    """Case 29."""
    id = await client.sh("trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    async with client.http.stream("GET", f"{client.path}/executions/{id}/output") as response:
        async with asyncio.timeout(WITHIN_S):
            lines = response.aiter_lines()
            assert await anext(lines) == "event: stdout"
            assert (await client.post(id, "signal", json={"signal": 15})).status_code == 204
            rest = [line async for line in lines]
    assert base64.b64encode(b"caught\n").decode() in "".join(rest)
    assert '"exit_code":7' in rest[-2]


async def test_a_terminal_has_the_size_that_it_is_given(client: Client) -> None:
    """Case 30; also before anybody reads."""
    id = await client.sh("read go; stty size; echo err >&2", tty=True)
    assert (await client.post(id, "resize", json={"cols": 117, "rows": 43})).status_code == 204
    assert (await client.write(id, b"\n")).status_code == 204
    told = await client.told(id)
    assert "43 117\r\nerr\r\n" in told.stdout
    assert told.stderr == ""
    assert (await client.post(id, "resize", json={"cols": 80, "rows": 24})).status_code == 204
    assert (await client.post(id, "resize", json={"cols": 0, "rows": 24})).status_code == 400


async def test_a_program_that_is_not_there_ends_as_a_shell_would_say(client: Client) -> None:
    """Case 31."""
    told = await client.run("no-such-program")
    assert told.exit["exit_code"] == 127
    assert "no-such-program" in told.stderr
    told = await client.run("/etc/passwd")
    assert told.exit["exit_code"] == 126
    assert told.stderr


async def test_executions_at_once_are_not_mixed_up(client: Client) -> None:
    """Case 33."""
    ids = await asyncio.gather(*(client.sh(f"for i in 1 2 3; do echo {n}; sleep 0.05; done") for n in range(6)))
    assert len(set(ids)) == 6
    told = await asyncio.gather(*map(client.told, ids))
    assert [one.stdout for one in told] == [f"{n}\n" * 3 for n in range(6)]


async def test_the_status_says_how_it_stands(client: Client) -> None:
    """Case 34."""
    id = await client.exec("cat")
    running = await client.status(id)
    assert running["execution_id"] == id
    assert running["command"] == "cat"
    assert (running["status"], running["exit_code"], running["attached"]) == ("running", None, False)
    assert running["started_at"].endswith("Z")
    await client.write(id, b"", close=True)
    ended = await client.ended(id)
    assert (ended["status"], ended["exit_code"], ended["error_message"]) == ("completed", 0, None)
    listed = (await client.http.get(f"{client.path}/executions")).json()
    assert isinstance(listed, list)
    assert listed[-1] == ended


async def test_what_is_not_known_is_not_found(client: Client) -> None:
    for id in ("exec-0123456789abcdef", "x", "exec-%2e%2e"):
        for method, what in (("GET", ""), ("GET", "/output"), ("DELETE", ""), ("POST", "/input")):
            response = await client.http.request(method, f"{client.path}/executions/{id}{what}")
            assert response.status_code == 404, (method, what)
            assert response.json()["code"] == "not_found"
        for what, body in (("signal", {"signal": 9}), ("resize", {"cols": 80, "rows": 24})):
            assert (await client.post(id, what, json=body)).status_code == 404
    elsewhere = await client.http.post("/v1/boxes/none/exec", json={"command": "true"})
    assert elsewhere.status_code == 404


@pytest.mark.parametrize(
    "body",
    [{}, {"command": ""}, {"command": "a\0"}, {"command": "true", "timeout_seconds": 0}, {"command": 5},
     {"command": "true", "env": {"A=": "1"}}, {"command": "true", "user": "nobody at all"}],
)  # fmt: skip
async def test_what_cannot_be_started_is_refused(client: Client, body: dict[str, object]) -> None:
    response = await client.http.post(f"{client.path}/exec", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == 400


async def test_an_execution_that_is_dropped_is_killed_and_forgotten(client: Client) -> None:
    id = await client.exec("sleep", "30")
    assert (await client.http.delete(f"{client.path}/executions/{id}")).status_code == 204
    assert (await client.http.get(f"{client.path}/executions/{id}")).status_code == 404
    assert (await client.http.delete(f"{client.path}/executions/{id}")).status_code == 404


async def test_who_reads_what_is_dropped_reads_its_end(client: Client) -> None:
    id = await client.sh("echo begun; sleep 30")
    async with client.http.stream("GET", f"{client.path}/executions/{id}/output") as response:
        async with asyncio.timeout(WITHIN_S):
            lines = response.aiter_lines()
            await anext(lines)
            assert (await client.http.delete(f"{client.path}/executions/{id}")).status_code == 204
            assert '"exit_code":137' in [line async for line in lines][-2]


async def test_a_reader_who_leaves_leaves_the_process_alone(client: Client) -> None:
    id = await client.sh("echo begun; read go; echo gone on")
    async with client.http.stream("GET", f"{client.path}/executions/{id}/output") as response:
        await anext(response.aiter_lines())
    assert (await client.write(id, b"\n")).status_code == 204
    assert (await client.told(id)).stdout == "begun\ngone on\n"
    async with asyncio.timeout(WITHIN_S):
        while client.boxes.users:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_runs_is_counted(client: Client) -> None:
    """Case 51."""
    before = (await client.http.get(f"{client.path}/metrics")).json()
    id = await client.exec("cat")
    await client.write(id, b"12345", close=True)
    await client.told(id)
    after = (await client.http.get(f"{client.path}/metrics")).json()
    grown = {name: after[name] - before[name] for name in ("commands_executed_total", "exec_errors_total")}
    assert grown == {"commands_executed_total": 1, "exec_errors_total": 0}
    assert {after[f"bytes_{one}_total"] - before[f"bytes_{one}_total"] for one in ("sent", "received")} == {5}


async def test_a_box_that_does_not_run_is_started_and_what_ran_before_is_known(client: Client) -> None:
    """Case 32, and 24 across a stop."""
    id = await client.exec("sleep", "300")
    reading = asyncio.create_task(client.told(id))
    async with asyncio.timeout(WITHIN_S):
        while not client.boxes.users:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await client.stop()
    assert (await reading).exit["exit_code"] == 137
    assert (await client.write(id, b"", close=True)).status_code == 204
    assert client.box.state == "stopped", "to ask about an execution starts nothing"
    assert (await client.run("echo", "again")).stdout == "again\n"
    assert client.box.state == "running"
    assert (await client.write(id, b"", close=True)).status_code == 204
    assert (await client.status(id))["status"] == "killed"


async def test_the_end_of_input_is_taken_though_the_box_is_gone(client: Client) -> None:
    """Clients send it when they are done with the execution, which may be after they are done with its box."""
    response = await client.http.post("/v1/boxes", json={"image": "host"})
    path = f"/v1/boxes/{response.json()['box_id']}"
    id = (await client.http.post(f"{path}/exec", json={"command": "true"})).json()["execution_id"]
    assert (await client.http.delete(path, params={"force": "true"})).status_code == 204
    where, close = f"{path}/executions/{id}/input", {"X-Close-Stdin": "true"}
    assert (await client.http.post(where, headers=close)).status_code == 204
    assert (await client.http.post(where, headers=close, content=b"more")).status_code == 404
    assert (await client.http.post(where, content=b"more")).status_code == 404
    elsewhere = await client.http.post(f"{path}/executions/exec-0123456789abcdef/input", headers=close)
    assert elsewhere.status_code == 404


async def test_no_more_run_at_once_than_may(client: Client) -> None:
    executions = executions_of(client.services)
    sandbox = await client.boxes.sandbox(ONE, client.box)
    settings = client.services.settings
    before, most = settings.most_executions, executions.running_in(sandbox.id) + 1
    object.__setattr__(settings, "most_executions", most)
    try:
        id = await client.exec("cat")
        refused = await client.http.post(f"{client.path}/exec", json={"command": "true"})
    finally:
        object.__setattr__(settings, "most_executions", before)
    assert refused.status_code == 429
    assert refused.json()["code"] == "resource_exhausted"
    await client.write(id, b"", close=True)


def test_the_parser_of_this_suite_refuses_what_clients_ignore() -> None:
    with pytest.raises(AssertionError):
        Told().take('event:stdout\ndata:{"data":""}')
