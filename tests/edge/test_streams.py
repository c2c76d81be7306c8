"""Streams whose clients never read, or leave in the middle: nothing of them stays, and others are served meanwhile."""

import base64
import json
import os
import socket
from collections.abc import Callable

import pytest

from tests.edge.conftest import KEY, Edge, Living
from tests.edge.raw import Raw, request, until

ROUNDS = 12 if os.environ.get("STOCKADE_LONG_TESTS") else 4
BEARER = b"Authorization: Bearer " + KEY.encode()
SLACK = 6
"""Descriptors that come and go by themselves: connections to the database, to the warden, kept ones of ours."""


def executor(living: Living, path: str, **members: object) -> bytes:
    body = json.dumps(members).encode()
    secret = b"Authorization: Bearer " + living.secret.encode()
    fields = secret, b"Content-Type: application/json", b"Content-Length: %d" % len(body)
    return request(b"/koyeb-sandbox" + path.encode(), *fields, method=b"POST", body=body)


def websocket(target: str) -> bytes:
    key = base64.b64encode(os.urandom(16))
    return request(
        target.encode(),
        BEARER,
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + key,
    )


STREAMS: dict[str, Callable[[Living], bytes]] = {
    "a program's endless output": lambda found: executor(found, "/run_streaming", cmd="yes"),
    "a silent program's output": lambda found: executor(found, "/run_streaming", cmd="sleep 1000"),
    "a session's log": lambda found: request(f"/v1/sessions/{found.session_id}/logs?follow=true".encode(), BEARER),
    "a program's endless output by WebSocket": lambda found: websocket(f"/v1/sessions/{found.session_id}/exec?cmd=yes"),
    "a session's main process by WebSocket": lambda found: websocket(f"/v1/sessions/{found.session_id}/attach"),
    "a file without an end": lambda found: request(f"/v1/sessions/{found.session_id}/files?path=/usr".encode(), BEARER),
}


def in_session(edge: Edge, living: Living) -> int:
    """Processes that run in the session, as far as it can count them itself."""
    answer = edge.http.post(
        "/koyeb-sandbox/run",
        json={"cmd": "ls -d /proc/[0-9]* | wc -l"},
        headers={"authorization": f"Bearer {living.secret}"},
    )
    return int(answer.raise_for_status().json()["stdout"])


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("reads", [True, False], ids=["read a part", "never read"])
def test_a_client_that_leaves_a_stream_leaves_nothing_behind(
    edge: Edge, living: Living, name: str, *, reads: bool
) -> None:
    processes = in_session(edge, living)
    before = edge.descriptors()
    ones = [Raw(edge.url, receive_bytes=4096) for _ in range(ROUNDS)]
    for one in ones:
        one.send(STREAMS[name](living))
    for one in ones:
        if reads:
            assert one.socket.recv(4096).startswith(b"HTTP/1.1 ")
        else:
            until(lambda one=one: one.socket.recv(1, socket.MSG_PEEK), "the answer has begun")
    assert edge.answers()
    for number, one in enumerate(ones):
        if number % 2:
            one.reset()
        else:
            one.close()
    until(lambda: edge.descriptors() <= before + SLACK, f"descriptors are {before} again")
    until(lambda: in_session(edge, living) <= processes, f"processes are {processes} again")


def test_streams_of_events_that_nobody_reads_take_next_to_no_memory(edge: Edge, living: Living) -> None:
    before, descriptors = edge.resident_bytes(), edge.descriptors()
    ones = [Raw(edge.url, receive_bytes=4096) for _ in range(8)]
    for one in ones:
        one.send(executor(living, "/run_streaming", cmd="head -c 20000000 /dev/zero | tr '\\0' x"))
    for one in ones:
        until(lambda one=one: one.socket.recv(1, socket.MSG_PEEK), "the answer has begun")
    assert edge.answers()
    assert edge.resident_bytes() - before < 64 * 1024 * 1024
    for one in ones:
        one.reset()
    until(lambda: edge.descriptors() <= descriptors + SLACK, "all have left")


def test_a_request_whose_client_leaves_ends_with_what_it_runs(edge: Edge) -> None:
    """Before the answer has begun: the program is ended, not left to its time limit."""
    body = b'{"language":"python","code":"import time; time.sleep(9)"}'
    fields = b"Content-Type: application/json", b"Content-Length: %d" % len(body)
    ones = [Raw(edge.url) for _ in range(3)]
    for one in ones:
        one.send(request(b"/execute", *fields, method=b"POST", body=body))
    until(lambda: edge.http.get("/health").json()["running"] >= 1, "they run")
    for one in ones:
        one.reset()
    until(lambda: edge.http.get("/health").json()["running"] == 0, "nothing runs", 8)
