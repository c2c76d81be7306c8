"""Transport, secrets, errors and bodies: cases 1 to 5, 41, 53 to 55 of the contract, and what it says around them."""

import http.client
import json
import os
import socket
import time

import pytest

from tests.dialects.executor.serving import PREFIX, Executor, IdleConnection, is_text

POSTS = [
    "/run", "/run_streaming", "/write_file", "/read_file", "/delete_file", "/make_dir", "/delete_dir", "/list_dir",
    "/bind_port", "/unbind_port", "/start_process", "/kill_process",
]  # fmt: skip
GETS = ["/list_processes", "/process_logs_streaming"]
MIB = 1 << 20
PAUSE_S = 61.0 if os.environ.get("STOCKADE_LONG_TESTS") == "1" else 10.0


def head_of(executor: Executor, *lines: str) -> tuple[int, bytes]:
    """Status and body of `POST /run` with header lines exactly as given."""
    with executor.connect() as connection:
        first = ["POST /run HTTP/1.1", f"Host: {executor.host}", "Content-Length: 2", "Connection: close", *lines]
        connection.sendall("\r\n".join([*first, "", "{}"]).encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}], ids=["no secret", "wrong secret"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/health", f"{PREFIX}/health"])
def test_01_health_needs_no_secret(alone: Executor, headers: dict[str, str], method: str, path: str) -> None:
    response = alone.ask(method, path, headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/json")
    assert method == "HEAD" or response.json()["status"] == "ok"


def test_01_health_under_the_prefix_is_the_protocol_s_on_a_server_of_many(platform_executor: Executor) -> None:
    """Without the prefix, the path is the server's own: its status is one of those that clients take for healthy."""
    assert platform_executor.ask("GET", f"{PREFIX}/health", headers={}).json()["status"] == "ok"
    assert platform_executor.ask("GET", "/health", headers={}).json()["status"] in ("ok", "healthy", "ready")


def test_01_health_of_another_method_is_refused(alone: Executor) -> None:
    assert is_text(alone.post("/health"), 405, "Method not allowed")


@pytest.mark.parametrize("path", [*POSTS, *GETS])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PUT"])
def test_02_every_path_but_health_needs_the_secret(executor: Executor, path: str, method: str) -> None:
    """Before method, body and parameters are looked at."""
    response = executor.ask(method, path, headers={}, content=b"{bad")
    assert is_text(response, 401, "Unauthorized")
    assert "www-authenticate" not in response.headers
    assert response.headers["content-length"] == "13"


@pytest.mark.parametrize(
    "value",
    [
        "bearer {}",
        "BEARER {}",
        "Basic {}",
        "Bearer",
        "Bearer ",
        "Bearer  {}",
        "{}",
        "Bearer wrong",
        "Bearer {}x",
        "Bearer\t{}",
    ],
)
def test_03_the_secret_is_taken_in_one_form_only(executor: Executor, value: str) -> None:
    status, body = head_of(executor, f"Authorization: {value.format(executor.secret)}")
    assert (status, body) == (401, b"Unauthorized\n")


def test_03_space_after_the_secret_is_no_part_of_it(executor: Executor) -> None:
    assert head_of(executor, f"Authorization: Bearer {executor.secret} \t ")[0] == 200


def test_03_a_secret_of_any_length_is_just_wrong(executor: Executor) -> None:
    status, _ = head_of(executor, f"Authorization: Bearer {'x' * 20_000}")
    assert status in (401, 431)
    assert executor.run("true")["code"] == 0


@pytest.mark.parametrize(
    "path", ["/nope", "/run/", "/", "/list_processes/x", f"{PREFIX}/nope", f"{PREFIX}/run/", "/healthz"]
)
def test_04_an_unknown_path_is_told_in_the_protocol_s_words(alone: Executor, path: str) -> None:
    """Also to one who has no secret."""
    for headers in (alone.headers, {}):
        response = alone.ask("POST", path, headers=headers)
        assert (response.status_code, response.text) == (404, "404 page not found\n")
        assert response.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["/nope", "/run/", f"{PREFIX}/nope", f"{PREFIX}/run/"])
def test_04_an_unknown_path_is_unknown_on_a_server_of_many_too(platform_executor: Executor, path: str) -> None:
    assert platform_executor.post(path, {"cmd": "true"}).status_code == 404


@pytest.mark.parametrize("path", ["/run", "/run_streaming", "/start_process"])
@pytest.mark.parametrize(
    "body",
    [b"{bad", b"", b"[]", b'"x"', b"7", b"true", b'{"cmd":5}', b'{"cmd":"x","env":{"A":1}}', b'{"cmd":"x","env":[]}',
     b'{"cmd":"x","cwd":7}', b'{"cmd":["x"]}', b'{"cmd":"x"', b"[" * 100_000, b'{"cmd":' + b"9" * 10_000 + b"}"],
    ids=lambda body: body[:24].decode(),
)  # fmt: skip
def test_05_a_body_that_is_not_what_is_asked_for(executor: Executor, path: str, body: bytes) -> None:
    assert is_text(executor.ask("POST", path, content=body), 400, "Invalid request")


@pytest.mark.parametrize(
    ("body", "stdout"),
    [
        (b"null", ""),
        (b'{"cmd":null,"cwd":null,"env":null}', ""),
        (b'{"cmd":"echo a","more":{"x":[1]},"recursive":true}', "a\n"),
        (b'{"cmd":"echo a","cmd":"echo b"}', "b\n"),
        (b'{"cmd":"echo a"} and more {', "a\n"),
        (b' \n\t{"cmd":"echo a"}', "a\n"),
        (b'{"cmd":"printf %s \'a\xffb\'"}', "a\ufffdb"),
        (b'{"cmd":"printf %s \'a\\ud800b\'"}', "a\ufffdb"),
        (b'{"cmd":"printf %s \'\\ud83d\\ude00\'"}', "\U0001f600"),
        ('{"cmd":"printf %s \'\u00e4\u4e2d\'"}'.encode(), "\u00e4\u4e2d"),
        (b'{"cmd":"echo $K","env":{"K":"a\\udfffb"}}', "a\ufffdb\n"),
    ],
)
def test_05_bodies_are_read_leniently(executor: Executor, body: bytes, stdout: str) -> None:
    response = executor.ask("POST", "/run", content=body)
    assert (response.status_code, response.json()["stdout"]) == (200, stdout)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_05_a_body_is_json_whatever_its_type_says(executor: Executor, kind: str | None) -> None:
    headers = {**executor.headers, **({} if kind is None else {"Content-Type": kind})}
    response = executor.ask("POST", "/run", content=b'{"cmd":"echo a"}', headers=headers)
    assert response.json()["stdout"] == "a\n"


def test_05_a_body_may_come_in_chunks(executor: Executor) -> None:
    response = executor.ask("POST", "/run", content=iter([b'{"cmd":', b'"echo a"', b"}"]))
    assert response.json()["stdout"] == "a\n"


@pytest.mark.parametrize("path", POSTS)
def test_41_a_path_that_changes_something_wants_post(executor: Executor, path: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert is_text(executor.ask(method, path), 405, "Method not allowed")


@pytest.mark.parametrize("path", [*GETS, f"{GETS[1]}?id=x"])
def test_41_a_path_that_tells_something_wants_get(executor: Executor, path: str) -> None:
    assert is_text(executor.post(path), 405, "Method not allowed")
    assert executor.ask("HEAD", path).status_code == 405


def test_53_the_secret_is_not_in_the_environment_of_a_command(executor: Executor) -> None:
    inside = executor.stdout("env; cat /proc/*/environ 2>/dev/null || true")
    assert executor.secret not in inside
    assert "SANDBOX_SECRET" not in inside
    assert "PATH=" in inside


@pytest.mark.parametrize("path", [*POSTS, *GETS, "/stat_file", "/port_status"])
def test_54_every_path_is_there_under_the_prefix_too(executor: Executor, path: str) -> None:
    method = "GET" if path in (*GETS, "/port_status") else "POST"
    for options in ({"headers": {}}, {"content": b"[]"}, {}):
        plain, prefixed = (executor.ask(method, start + path, **options) for start in ("", PREFIX))
        assert (prefixed.status_code, prefixed.text) == (plain.status_code, plain.text)
        assert prefixed.status_code != 404


def test_54_commands_run_under_the_prefix_too(executor: Executor) -> None:
    assert executor.reply(f"{PREFIX}/run", {"cmd": "echo hi"})["stdout"] == "hi\n"
    with executor.stream("POST", f"{PREFIX}/run_streaming", {"cmd": "echo hi"}) as stream:
        assert [event.name for event in stream] == ["output", "complete"]


def test_a_large_body_is_taken(executor: Executor) -> None:
    body = b'{"cmd":"true","unknown":"' + b"x" * 50_000_000 + b'"}'
    assert executor.ask("POST", "/run", content=body).status_code == 200


def test_a_body_above_the_limit_is_refused(alone: Executor) -> None:
    piece = b"x" * MIB
    with alone.connect() as connection:
        lines = [f"Host: {alone.host}", f"Authorization: Bearer {alone.secret}", f"Content-Length: {129 * MIB}"]
        connection.sendall("\r\n".join(["POST /run HTTP/1.1", *lines, "", ""]).encode())
        for _ in range(64):  # so much is taken and thrown away, so that no reset overtakes the answer
            connection.sendall(piece)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


def test_answers_are_not_compressed(executor: Executor) -> None:
    headers = {**executor.headers, "Accept-Encoding": "gzip, deflate, br"}
    response = executor.ask("POST", "/run", json={"cmd": "seq 1 10000"}, headers=headers)
    assert "content-encoding" not in response.headers


def test_requests_follow_each_other_on_one_connection(executor: Executor) -> None:
    """Two that were sent at once are answered in their order."""
    with executor.connect() as connection:
        both = (executor.request("POST", "/run", {"cmd": f"echo answer-{n}"}) for n in (1, 2))
        connection.sendall(b"".join(both))
        heard = b""
        while b"answer-2" not in heard:
            piece = connection.recv(1 << 16)
            assert piece
            heard += piece
        assert heard.index(b"answer-1") < heard.index(b"answer-2")


def test_a_connection_that_is_cut_within_a_body_does_nothing(executor: Executor, folder: str) -> None:
    request = executor.request("POST", "/run", {"cmd": f"touch {folder}/made"})
    with executor.connect() as connection:
        connection.sendall(request[:-3])
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(30)
        answer = connection.recv(100)
    assert not answer.startswith(b"HTTP/1.1 200")
    assert executor.stdout(f"ls {folder}") == ""


def test_json_is_ascii_with_one_newline_at_its_end(executor: Executor) -> None:
    response = executor.post("/run", {"cmd": "printf '\\303\\244\\302\\205\\342\\200\\250'"})
    assert response.content.isascii()
    assert response.content.endswith(b"}\n")
    assert json.loads(response.content)["stdout"] == "\u00e4\x85\u2028"


def test_55_an_idle_connection_stays(idle: IdleConnection) -> None:
    time.sleep(max(0.0, idle.since + PAUSE_S - time.monotonic()))
    assert idle.ask() == b"HTTP/1.1 200 OK"
