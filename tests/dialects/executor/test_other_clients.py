"""What the JavaScript client and the command line client send, as they send it, and how they read answers."""

import http.client
import json
from typing import Any

from tests.dialects.executor.serving import PREFIX, Executor


def javascript_events(executor: Executor, path: str, body: object = None) -> list[tuple[str, Any]]:
    """As the JavaScript client reads a stream: it decodes each chunk of the network by itself, and looks for two line
    feeds.
    """
    connection = http.client.HTTPConnection(executor.host, timeout=30)
    headers = {"Authorization": f"Bearer {executor.secret}", "Content-Type": "application/json"}
    method = "GET" if body is None else "POST"
    connection.request(method, PREFIX + path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    assert response.status == 200
    text = ""
    while piece := response.read1(7):  # as unlucky as a network can be
        text += piece.decode()
    connection.close()
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    events = []
    for block in blocks:
        members = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((members["event"], json.loads(members["data"])))
    return events


def test_javascript_reads_streams_chunk_by_chunk(executor: Executor) -> None:
    events = javascript_events(executor, "/run_streaming", {"cmd": "printf '\\303\\244\\342\\202\\254\\n'; echo b >&2"})
    assert sorted(events, key=lambda event: event[1].get("stream", "~")) == [
        ("output", {"stream": "stderr", "data": "b"}),
        ("output", {"stream": "stdout", "data": "\u00e4\u20ac"}),
        ("complete", {"code": 0, "error": False}),
    ]
    process = executor.start("printf '\\342\\202\\254'")
    log, complete = javascript_events(executor, f"/process_logs_streaming?id={process}")
    assert (log[1]["data"], complete) == ("\u20ac", ("complete", {"message": "stream ended"}))


def test_javascript_makes_directories_recursively(executor: Executor, folder: str) -> None:
    assert executor.reply(f"{PREFIX}/make_dir", {"path": f"{folder}/a/b", "recursive": True}) == {"success": True}
    assert executor.reply(f"{PREFIX}/list_dir", {"path": f"{folder}/a"}) == {"entries": ["b"]}


def test_javascript_reads_members_without_looking_whether_they_are_there(executor: Executor, folder: str) -> None:
    executor.run(f": > {folder}/empty")
    assert executor.reply("/read_file", {"path": f"{folder}/empty"})["content"] == ""
    assert executor.reply("/list_dir", {"path": "/proc/self/map_files"}).keys() & {"entries", "error"}
    assert executor.ask("GET", f"{PREFIX}/health").status_code == 200
    for path, body in (("/run", {"cmd": "true"}), ("/read_file", {"path": "/no"}), ("/bind_port", {"port": "80"})):
        assert executor.post(path, body).headers["content-type"].startswith("application/json")
    executor.unbound()


def test_the_command_line_sends_a_time_limit(executor: Executor) -> None:
    assert executor.reply("/run", {"cmd": "echo hi", "timeout": 120})["stdout"] == "hi\n"
    assert executor.reply("/run", {"cmd": "echo hi", "timeout": 0})["stdout"] == "hi\n"


def test_the_command_line_unbinds_without_a_body(executor: Executor) -> None:
    executor.unbound().reply("/bind_port", {"port": "8080"})
    assert executor.ask("POST", f"{PREFIX}/unbind_port").json()["success"] is True
    assert executor.ask("GET", f"{PREFIX}/port_status").json() == {"success": True}


def test_the_command_line_follows_logs(executor: Executor) -> None:
    process = executor.start("echo a; sleep 0.2; echo b")
    with executor.logs(process, "&follow=true") as stream:
        assert [event.data.get("data") for event in stream] == ["a", "b", None]
    with executor.logs(process, "&follow=false") as stream:
        assert [event.data.get("data") for event in stream] == ["a", "b", None]


def test_the_command_line_shows_more_of_health(alone: Executor) -> None:
    health = alone.ask("GET", "/health").json()
    assert isinstance(health["version"], str)
    assert "uptime" in health


def test_the_drop_in_s_health_has_its_proxy_port(executor: Executor) -> None:
    health = executor.ask("GET", f"{PREFIX}/health").json()
    assert health.get("proxy_port", executor.proxy_port) in (executor.proxy_port, str(executor.proxy_port))
