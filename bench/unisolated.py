"""What commands over HTTP cost with no isolation at all: uvicorn, uvloop, `sh -c`.

    python -m bench.unisolated        prints its address, answers POST /run and POST /run_streaming until it is ended

It answers as the sandbox-executor dialect does, and checks nothing: a yardstick, on loopback and nowhere else.
"""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
import uvloop

__all__ = ["app", "main"]

_CHUNK = 1 << 18
_KEEP_ALIVE_S = 75
_Receive = Callable[[], Awaitable[dict[str, Any]]]
_Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Command:
    """A shell's command. By posix_spawn, which takes a quarter of what the event loop's own subprocesses do."""

    def __init__(self, command: str) -> None:
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, writing, n) for n, (_, writing) in enumerate(pipes, 1)]
        no_signals: tuple[int, ...] = ()
        self.pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", command],
            os.environ,
            file_actions=actions,
            setpgroup=0,
            setsigmask=no_signals,
            setsigdef=(signal.SIGPIPE,),
        )
        for _, writing in pipes:
            os.close(writing)
        self.stdout, self.stderr = (reading for reading, _ in pipes)
        for reading in (self.stdout, self.stderr):
            os.set_blocking(reading, False)

    async def code(self) -> int:
        """How it ended, as soon as it has."""
        descriptor = os.pidfd_open(self.pid)
        try:
            await _readable(descriptor)
        finally:
            os.close(descriptor)
        return _reap(self.pid)


def _reap(pid: int) -> int:
    """The exit code of a child that has ended; minus the signal's number for one that a signal ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, os.WNOHANG)[1])


def _set(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def _chunks(descriptor: int) -> AsyncIterator[bytes]:
    """All of a pipe; it is closed then."""
    try:
        while True:
            try:
                chunk = os.read(descriptor, _CHUNK)
            except BlockingIOError:
                await _readable(descriptor)
                continue
            if not chunk:
                return
            yield chunk
    finally:
        os.close(descriptor)


async def _all(descriptor: int) -> bytes:
    return b"".join([chunk async for chunk in _chunks(descriptor)])


async def app(scope: dict[str, Any], receive: _Receive, send: _Send) -> None:
    """The ASGI application."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    command = _Command(json.loads(body)["cmd"])
    if scope["path"] == "/run_streaming":
        await _stream(command, send)
        return
    out, err = await asyncio.gather(_all(command.stdout), _all(command.stderr))
    code = await command.code()
    answer = {"stdout": out.decode(errors="replace"), "stderr": err.decode(errors="replace"), "code": code}
    content = json.dumps(answer, separators=(",", ":")).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": content})


async def _stream(command: _Command, send: _Send) -> None:
    head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    rest = b""
    async for chunk in _chunks(command.stdout):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            await send({"type": "http.response.body", "body": _events(lines), "more_body": True})
    last = _events([rest]) if rest else b""
    os.close(command.stderr)
    code = await command.code()
    end = json.dumps({"code": code, "error": code != 0}, separators=(",", ":"))
    await send({"type": "http.response.body", "body": last + f"event: complete\ndata: {end}\n\n".encode()})


def _events(lines: list[bytes]) -> bytes:
    return b"".join(
        b'event: output\ndata: {"stream":"stdout","data":%s}\n\n' % json.dumps(line.decode(errors="replace")).encode()
        for line in lines
    )


def main() -> None:
    """Serve on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            app,
            http="httptools",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
