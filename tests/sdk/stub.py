"""A small server of the protocol for tests of its clients: sessions are processes of this machine, files a directory.

It is written apart from the real server, from the protocol's own text, so that both are held against that.
"""

import asyncio
import contextlib
import fcntl
import io
import os
import pty
import struct
import tarfile
import termios
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

KEY = "sk_" + "0123456789abcdef" * 4
SECRET = "made-by-the-server-0123456789"
"""Of every session's executor that has none of its own."""
CREATED = "2026-02-03T04:05:06Z"
START_S = 60.0


@dataclass(kw_only=True)
class Stub:
    """What tests look at and change."""

    root: Path
    """Where the sessions' files are."""
    url: str = ""
    sessions: dict[str, "Session"] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of creations."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Rows and columns that terminals were given."""
    killed: list[int] = field(default_factory=list)
    """Process ids of executions whose connection ended before them."""
    attachments: int = 0
    """So far."""
    cut: Callable[[], object] = lambda: None
    """Resets every connection."""
    asked: list[str] = field(default_factory=list)
    """Of what is streamed in."""
    gives_up: str = ""
    """What attachments are told before they are closed."""
    refusal: tuple[int, dict[str, Any], dict[str, str]] | None = None
    """Answered to every request, if set."""


@dataclass(kw_only=True)
class Session:
    """A main process and all that it has written."""

    id: str
    image: str = "host"
    status: str = "running"
    exit_code: int | None = None
    ports: dict[int, int] = field(default_factory=dict)
    executor: dict[str, Any] = field(default_factory=dict)
    """What the record says of it."""
    process: asyncio.subprocess.Process | None = None
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        known: dict[str, Any] = {"id": self.id, "status": self.status, "createdAt": CREATED, "image": self.image}
        if self.exit_code is not None:
            known |= {"exitCode": self.exit_code, "endedAt": CREATED}
        if self.ports:
            ports = {
                str(inside): {"hostPort": host, "url": f"http://localhost:{host}"}
                for inside, host in self.ports.items()
            }
            known["network"] = {"mode": "exposed", "host": "localhost", "ports": ports}
        if self.executor:
            known["executor"] = self.executor
        return known


def error(status: int, code: str, text: str) -> JSONResponse:
    return JSONResponse({"error": text, "code": code}, status_code=status)


async def readable(descriptor: int) -> None:
    ready = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)


class Refused(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


def application(stub: Stub) -> Starlette:
    def admitted(request: Request | WebSocket) -> Session | None:
        """The session that the path names; raises Refused as the protocol orders."""
        if stub.refusal is not None:
            status, body, headers = stub.refusal
            raise Refused(JSONResponse(body, status_code=status, headers=headers))
        if request.headers.get("authorization") != f"Bearer {KEY}":
            raise Refused(error(401, "UNAUTHORIZED", "unauthorized"))
        session_id = request.path_params.get("id")
        if session_id is None:
            return None
        if session_id not in stub.sessions:
            raise Refused(error(404, "NOT_FOUND", f"session {session_id} not found"))
        return stub.sessions[session_id]

    def answering(handler: Callable[..., Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            try:
                session = admitted(request)
                response: Response = await (handler(request) if session is None else handler(request, session))
                return response
            except Refused as refused:
                return refused.response

        return answer

    def streaming(handler: Callable[..., Any]) -> Callable[[WebSocket], Any]:
        async def stream(socket: WebSocket) -> None:
            try:
                session = admitted(socket)
                assert session is not None
                if session.status in ("stopped", "killed") and session.exit_code is None:
                    raise Refused(error(409, "CONFLICT", "session already stopped"))
            except Refused as refused:
                await socket.send_denial_response(refused.response)
                return
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await handler(socket, session)

        return stream

    async def create(request: Request) -> Response:
        body = await request.json()
        stub.created.append(body)
        if not body.get("image"):
            return error(400, "BAD_REQUEST", "image is required")
        session = Session(id=f"sess_{len(stub.sessions):012x}", image=body["image"])
        session.ports = {one["container"]: 40000 + one["container"] for one in body.get("ports", ())}
        await start(session, body.get("command") or ["cat"], body.get("env"))
        stub.sessions[session.id] = session
        answer = session.record()
        if wanted := body.get("executor"):
            port = 43031 if body.get("network") == "exposed" else None
            session.executor = {"url": f"{stub.url}/koyeb-sandbox", "proxyPort": port}
            secret = SECRET if wanted is True else wanted.get("secret", SECRET)
            answer |= {"executor": session.executor | {"secret": secret}}
        return JSONResponse(answer, status_code=201)

    async def list_(request: Request) -> Response:
        status = request.query_params.get("status")
        found = [one.record() for one in reversed(stub.sessions.values()) if status in (None, one.status)]
        return JSONResponse({"sessions": found})

    async def get(request: Request, session: Session) -> Response:
        return JSONResponse(session.record())

    async def end(request: Request, session: Session) -> Response:
        status = "stopped" if request.method == "POST" else "killed"
        if request.method == "POST" and session.status != "running":
            return error(409, "CONFLICT", "session already stopped")
        session.status = status
        if session.process is not None and session.process.returncode is None:
            session.process.kill()
        return JSONResponse({"status": status})

    async def extend(request: Request, session: Session) -> Response:
        body = await request.json()
        seconds = body["timeoutMs"] // 1000
        return JSONResponse(session.record() | {"expiresAt": f"2026-02-03T04:{seconds // 60:02}:{seconds % 60:02}Z"})

    async def logs(request: Request, session: Session) -> Response:
        log = session.stdout if request.query_params["stream"] == "stdout" else session.stderr
        return Response(bytes(log[-int(request.query_params.get("tail", 1 << 40)) :]), media_type="text/plain")

    async def url(request: Request, session: Session) -> Response:
        port = int(request.query_params["port"])
        if port not in session.ports:
            return error(404, "NOT_FOUND", f"port {port} is not exposed")
        host = session.ports[port]
        return JSONResponse(
            {"containerPort": port, "hostPort": host, "url": f"http://localhost:{host}", "protocol": "tcp"}
        )

    async def read(request: Request, session: Session) -> Response:
        path = stub.root / request.query_params["path"].lstrip("/")
        if not path.exists():
            return error(404, "NOT_FOUND", f"{request.query_params['path']}: no such file")
        if request.query_params.get("list") == "true":
            if not path.is_dir():
                return error(400, "BAD_REQUEST", "not a directory")
            entries = [
                {
                    "name": one.name,
                    "size": 0 if one.is_dir() else one.stat().st_size,
                    "isDir": one.is_dir(),
                    "mode": one.stat().st_mode & 0o777,
                }
                for one in sorted(path.iterdir())
            ]
            return JSONResponse({"path": request.query_params["path"], "entries": entries})
        if request.query_params.get("archive") == "tar":
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
                archive.add(path, arcname="." if path.is_dir() else path.name)
            return Response(packed.getvalue(), media_type="application/x-tar")
        if path.is_dir():
            return error(400, "BAD_REQUEST", "is a directory")
        content = path.read_bytes()
        if (wanted := request.headers.get("range")) is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1 if last else None]
            return Response(content, status_code=206)

        async def parts() -> AsyncIterator[bytes]:
            for at in range(0, len(content), 65536):
                yield content[at : at + 65536]

        return StreamingResponse(parts(), headers={"content-length": str(len(content))})

    async def write(request: Request, session: Session) -> Response:
        path = stub.root / request.query_params["path"].lstrip("/")
        stub.asked.append("POST /files")
        body = b"".join([part async for part in request.stream()])
        if request.query_params.get("directory") == "true":
            path.mkdir(parents=True, exist_ok=True)
            return JSONResponse({"path": request.query_params["path"], "size": 0}, status_code=201)
        if request.query_params.get("archive") == "tar":
            path.mkdir(parents=True, exist_ok=True)
            with tarfile.open(fileobj=io.BytesIO(body)) as archive:
                archive.extractall(path)
            return JSONResponse({"path": request.query_params["path"], "size": len(body)}, status_code=201)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        path.chmod(int(request.query_params.get("mode", 0o644)))
        return JSONResponse({"path": request.query_params["path"], "size": len(body)}, status_code=201)

    async def delete(request: Request, session: Session) -> Response:
        (stub.root / request.query_params["path"].lstrip("/")).unlink()
        return Response(status_code=204)

    async def start(session: Session, command: list[str], env: dict[str, str] | None) -> None:
        session.process = await asyncio.create_subprocess_exec(
            *command,
            env=os.environ | (env or {}),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        session.tasks.append(asyncio.create_task(collect(session)))

    async def collect(session: Session) -> None:
        process = session.process
        assert process is not None

        async def drain(stream: asyncio.StreamReader, log: bytearray) -> None:
            while part := await stream.read(65536):
                async with session.changed:
                    log += part
                    session.changed.notify_all()

        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(drain(process.stdout, session.stdout), drain(process.stderr, session.stderr))
        code = await process.wait()
        async with session.changed:
            session.exit_code = code if code >= 0 else 128 - code
            if session.status == "running":
                session.status = "stopped" if code == 0 else "failed"
            session.changed.notify_all()

    async def attach(socket: WebSocket, session: Session) -> None:
        await socket.accept()
        stub.attachments += 1
        if stub.gives_up:
            await socket.send_bytes(struct.pack("!BI", 5, len(stub.gives_up)) + stub.gives_up.encode())
            await socket.close(1011)
            return
        at = [int(socket.query_params.get("stdoutOffset", 0)), int(socket.query_params.get("stderrOffset", 0))]

        async def outgoing() -> None:
            while True:
                async with session.changed:
                    await session.changed.wait_for(
                        lambda: (
                            len(session.stdout) > at[0] or len(session.stderr) > at[1] or session.exit_code is not None
                        )
                    )
                    parts = bytes(session.stdout[at[0] :]), bytes(session.stderr[at[1] :])
                    code = session.exit_code
                for kind, part in enumerate(parts):
                    at[kind] += len(part)
                    if part:
                        await socket.send_bytes(struct.pack("!BI", kind + 2, len(part)) + part)
                if code is not None and not any(parts):
                    await socket.send_bytes(struct.pack("!BI", 4, code))
                    await socket.close()
                    return

        assert session.process is not None
        assert session.process.stdin is not None
        sending = asyncio.create_task(outgoing())
        try:
            await take_input(socket, session.process.stdin.write, session.process.stdin.close)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def take_input(
        socket: WebSocket,
        write: Callable[[bytes], Any],
        close: Callable[[], Any],
        resize: Callable[[int, int], Any] | None = None,
    ) -> None:
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            data = message["bytes"]
            if data[0] == 1:
                assert struct.unpack_from("!I", data, 1)[0] == len(data) - 5
                write(data[5:])
            elif data == b"\x06":
                close()
            elif data[0] == 7 and resize is not None:
                resize(*struct.unpack_from("!II", data, 1))

    async def exec_(socket: WebSocket, session: Session) -> None:
        command = socket.query_params.getlist("cmd")
        if len(command) == 1 and " " in command[0]:
            command = ["/bin/sh", "-c", command[0]]
        env = os.environ | dict(one.split("=", 1) for one in socket.query_params.getlist("env"))
        cwd = socket.query_params.get("workdir")
        await socket.accept()
        if socket.query_params.get("tty") == "true":
            await in_terminal(socket, command, env, cwd)
            return
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=env,
                cwd=cwd,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError:
            text = f"cannot start {command[0]}: no such program".encode()
            await socket.send_bytes(struct.pack("!BI", 5, len(text)) + text)
            await socket.send_bytes(struct.pack("!BI", 4, 127))
            await socket.close()
            return

        async def pump(stream: asyncio.StreamReader, kind: int) -> None:
            while part := await stream.read(262144):
                await socket.send_bytes(struct.pack("!BI", kind, len(part)) + part)

        async def outgoing() -> None:
            assert process.stdout is not None
            assert process.stderr is not None
            await asyncio.gather(pump(process.stdout, 2), pump(process.stderr, 3))
            code = await process.wait()
            await socket.send_bytes(struct.pack("!BI", 4, code if code >= 0 else 128 - code))
            await socket.close()

        assert process.stdin is not None
        sending = asyncio.create_task(outgoing())
        try:
            while (message := await socket.receive())["type"] != "websocket.disconnect":
                data = message["bytes"]
                if data == b"\x06":
                    process.stdin.close()
                elif data[0] == 1:
                    with contextlib.suppress(ConnectionError):
                        process.stdin.write(data[5:])
                        await process.stdin.drain()
        finally:
            if process.returncode is None:
                process.kill()
                stub.killed.append(process.pid)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def in_terminal(socket: WebSocket, command: list[str], env: dict[str, str], cwd: str | None) -> None:
        master, slave = pty.openpty()

        def resize(rows: int, columns: int) -> None:
            stub.sizes.append((rows, columns))
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

        resize(int(socket.query_params["rows"]), int(socket.query_params["cols"]))
        process = await asyncio.create_subprocess_exec(
            "setsid", "--ctty", *command, env=env, cwd=cwd, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)

        async def outgoing() -> None:
            while True:
                await readable(master)
                try:
                    part = os.read(master, 65536)
                except OSError:  # EIO: the last process with the terminal has ended
                    break
                await socket.send_bytes(struct.pack("!BI", 2, len(part)) + part)
            code = await process.wait()
            await socket.send_bytes(struct.pack("!BI", 4, code if code >= 0 else 128 - code))
            await socket.close()

        sending = asyncio.create_task(outgoing())
        try:
            await take_input(socket, lambda data: os.write(master, data), lambda: os.write(master, b"\x04"), resize)
        finally:
            if process.returncode is None:
                process.kill()
                stub.killed.append(process.pid)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            os.close(master)

    sessions, one = "/v1/sessions", "/v1/sessions/{id}"
    return Starlette(
        routes=[
            Route(sessions, answering(create), methods=["POST"]),
            Route(sessions, answering(list_), methods=["GET"]),
            Route(one, answering(get), methods=["GET"]),
            Route(one, answering(end), methods=["DELETE"]),
            Route(one + "/stop", answering(end), methods=["POST"]),
            Route(one + "/extend", answering(extend), methods=["POST"]),
            Route(one + "/logs", answering(logs), methods=["GET"]),
            Route(one + "/url", answering(url), methods=["GET"]),
            Route(one + "/files", answering(read), methods=["GET"]),
            Route(one + "/files", answering(write), methods=["POST"]),
            Route(one + "/files", answering(delete), methods=["DELETE"]),
            WebSocketRoute(one + "/attach", streaming(attach)),
            WebSocketRoute(one + "/exec", streaming(exec_)),
        ]
    )


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Stub]:
    """A server in a thread; its processes are killed at the end."""
    stub = Stub(root=root)
    server = uvicorn.Server(
        uvicorn.Config(
            application(stub),
            host="127.0.0.1",
            port=0,
            log_level="critical",
            ws="websockets-sansio",
            ws_max_size=2**24 + 5,
            ws_ping_interval=None,
            timeout_graceful_shutdown=1,
            lifespan="off",
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline, "the stub does not start"
        time.sleep(0.005)
    stub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def cut() -> None:
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    loop = server.servers[0].get_loop()
    stub.cut = lambda: loop.call_soon_threadsafe(cut)
    try:
        yield stub
    finally:
        for session in stub.sessions.values():
            if session.process is not None and session.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(session.process.pid, 9)
        server.should_exit = True
        thread.join(START_S)


def eventually(condition: Callable[[], Any], *, within_s: float = 60.0) -> Any:
    """The first true value of *condition*."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)
    return value
