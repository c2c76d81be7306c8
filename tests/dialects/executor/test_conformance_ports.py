"""The bound port and the TCP proxy: cases 34 to 39 of the contract, and what it says around them."""

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.dialects.executor.serving import Executor, is_text

ECHO = r"""
import socket, sys, threading
def serve(one):
    with one:
        if mode == 'late':  # answers after the end of input
            data = b''
            while piece := one.recv(65536): data += piece
            one.sendall(b'got ' + data)
        else:
            while piece := one.recv(65536): one.sendall(piece)
host, port, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
listener = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((host, port))
listener.listen(1024)
print('listens', flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@contextlib.contextmanager
def service(executor: Executor, port: int, mode: str = "echo", host: str = "127.0.0.1") -> Iterator[str]:
    """A process of the sandbox that listens there."""
    assert executor.reply("/write_file", {"path": "/tmp/service.py", "content": ECHO}) == {"success": True}
    process = executor.start(f"exec python3 /tmp/service.py {host} {port} {mode}")
    with executor.logs(process) as logs:
        assert next(iter(logs)).data.get("data") == "listens", executor.logged(process)
    try:
        yield process
    finally:
        executor.kill(process)


def bind(executor: Executor, port: int) -> None:
    answer = executor.unbound().reply("/bind_port", {"port": str(port)})
    assert answer == {"success": True, "message": "Port binding configured", "port": str(port)}


def is_closed(connection: socket.socket, within_s: float = 20.0) -> bool:
    """Whether it ends, in order or by a reset, and says nothing before."""
    connection.settimeout(within_s)
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def echoes(connection: socket.socket, data: bytes = b"ping") -> bool:
    connection.sendall(data)
    heard = b""
    while len(heard) < len(data) and (piece := connection.recv(1 << 16)):
        heard += piece
    return heard == data


def test_34_one_port_is_bound_at_a_time(executor: Executor) -> None:
    bind(executor, 8080)
    for port in ("8080", "9090"):
        second = executor.post("/bind_port", {"port": port})
        assert second.status_code == 409
        assert second.json() == {"success": False, "error": "Port already bound", "current_port": "8080"}
    for _ in range(2):
        assert executor.reply("/unbind_port") == {"success": True, "message": "Port binding removed"}


def test_34_of_two_that_bind_at_once_one_does(executor: Executor) -> None:
    executor.unbound()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: executor.post("/bind_port", {"port": str(9000 + n)}), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 7]
    won = next(answer.json()["port"] for answer in answers if answer.status_code == 200)
    assert {answer.json()["current_port"] for answer in answers if answer.status_code == 409} == {won}
    assert executor.ask("GET", "/port_status").json() == {"success": True, "port": won}
    assert executor.unbound().ask("GET", "/port_status").json() == {"success": True}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"port":"80"}', b"{bad", b"[]", b'{"port":9}'])
def test_34_the_body_of_unbind_is_ignored(executor: Executor, body: bytes) -> None:
    bind(executor, 8080)
    assert executor.ask("POST", "/unbind_port", content=body).status_code == 200
    assert executor.ask("GET", "/port_status").json() == {"success": True}


def test_35_the_port_is_text(executor: Executor) -> None:
    executor.unbound()
    for body in ({}, {"port": ""}, {"port": None}):
        assert is_text(executor.post("/bind_port", body), 400, "Port is required")
    for wrong in (8080, ["80"], True):
        assert is_text(executor.post("/bind_port", {"port": wrong}), 400, "Invalid request")


@pytest.mark.parametrize(
    "port", ["abc", "0", "65536", "-1", "80 ", " 80", "8e3", "0x50", "1_000", "+80", "\u0661", "9" * 5000]
)
def test_35_the_port_is_a_decimal_number_of_a_port(executor: Executor, port: str) -> None:
    response = executor.unbound().post("/bind_port", {"port": port})
    assert response.status_code == 400
    assert response.text.startswith("Invalid port")
    assert executor.ask("GET", "/port_status").json() == {"success": True}


def test_36_without_a_bound_port_a_connection_is_accepted_and_closed(executor: Executor) -> None:
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        with executor.unbound().proxied() as connection:
            if data:
                connection.sendall(data)
            assert is_closed(connection)


def test_37_a_connection_is_led_to_what_was_bound_when_it_came(executor: Executor) -> None:
    with service(executor, 8101):
        bind(executor, 8101)
        with executor.proxied() as first:
            assert echoes(first)
            executor.unbound()
            with executor.proxied() as second:
                assert is_closed(second)
            assert echoes(first)
            with service(executor, 8102, "late"):
                bind(executor, 8102)
                assert echoes(first)
                with executor.proxied() as third:
                    third.sendall(b"new")
                    third.shutdown(socket.SHUT_WR)
                    assert third.recv(100) == b"got new"
            assert echoes(first)
        executor.unbound()


def test_38_the_service_may_come_after_the_port_was_bound(executor: Executor) -> None:
    bind(executor, 8103)
    with executor.proxied() as connection:
        begun = time.monotonic()
        assert is_closed(connection)
        assert time.monotonic() - begun < 1.5
    with service(executor, 8103), executor.proxied() as connection:
        assert echoes(connection)
    executor.unbound()


def test_38_a_service_that_dies_closes_its_connections(executor: Executor) -> None:
    with service(executor, 8104) as process:
        bind(executor, 8104)
        with executor.proxied() as connection:
            assert echoes(connection)
            assert executor.kill(process).status_code == 200
            assert is_closed(connection)
        with executor.proxied() as connection:
            assert is_closed(connection)
    with service(executor, 8104), executor.proxied() as connection:
        assert echoes(connection)
    executor.unbound()


def test_39_a_reply_after_the_end_of_input_arrives(executor: Executor) -> None:
    with service(executor, 8105, "late"):
        bind(executor, 8105)
        with executor.proxied() as connection:
            connection.sendall(b"all")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b"got all"
            assert connection.recv(100) == b""
        executor.unbound()


def test_the_service_may_listen_on_ipv6(executor: Executor) -> None:
    if executor.run("python3 -c \"import socket; socket.socket(socket.AF_INET6).bind(('::1', 0))\"")["code"]:
        pytest.skip("the sandbox has no ::1")
    with service(executor, 8106, host="::1"):
        bind(executor, 8106)
        with executor.proxied() as connection:
            assert echoes(connection)
        executor.unbound()


def test_a_reader_that_never_reads_holds_nobody_else_back(executor: Executor) -> None:
    with service(executor, 8107), contextlib.ExitStack() as stack:
        bind(executor, 8107)
        stuck = stack.enter_context(executor.proxied(receive_buffer=4096))
        stuck.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:  # until nothing more goes in, which says that what comes back is held, not collected
                stuck.sendall(b"x" * 65536)
        others = [stack.enter_context(executor.proxied()) for _ in range(20)]
        assert all(echoes(one, b"y" * 100_000) for one in others)
        executor.unbound()


def test_a_connection_may_stay_silent(executor: Executor) -> None:
    """Nothing is closed before one side ends."""
    with service(executor, 8108):
        bind(executor, 8108)
        with executor.proxied() as connection:
            connection.settimeout(1.0)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(20)
            assert echoes(connection)
        executor.unbound()


def test_a_port_of_the_host_itself_is_not_reached(executor: Executor) -> None:
    """Bound is a port of the sandbox, also where only the host has a listener."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bind(executor, listener.getsockname()[1])
        with executor.proxied() as connection:
            assert is_closed(connection)
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
        executor.unbound()
