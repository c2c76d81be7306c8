"""`stockade box exec`: a process in a box, over BoxLite's WebSocket."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from stockade.cli.sandbox_conversation import STDIN, converse
from stockade.cli.sandbox_server import ApiKey, Server, Url, the_server, with_client
from stockade.cli.sandbox_streams import Env, environment
from stockade.cli.sandbox_terminal import Terminal, raw, size

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from stockade.cli.box_client import BoxClient
    from stockade.sdk import AsyncClient, AsyncProcess, Chunk

__all__ = ["attach", "exec_"]

_STDOUT, _STDERR = 1, 2


class BoxProcess:
    """The input and output of a process of a box: as much of `sdk.AsyncProcess` as a conversation needs."""

    def __init__(self, connection: "ClientConnection") -> None:
        self._connection = connection
        self.exit_code: int | None = None

    async def __aiter__(self) -> "AsyncIterator[Chunk]":
        from websockets.exceptions import ConnectionClosed

        from stockade.sdk import Chunk, ConnectionLost, Source, StreamFailed

        told = ""
        sources = {_STDOUT: Source.STDOUT, _STDERR: Source.STDERR}
        try:
            async for message in self._connection:
                if isinstance(message, bytes):
                    if message and message[0] in sources:
                        yield Chunk(source=sources[message[0]], data=message[1:])
                    continue
                event = _event(message)
                if event.get("type") == "exit":
                    self.exit_code = int(event.get("exit_code", 1))
                    return
                if event.get("type") == "error":
                    told = str(event.get("message", ""))
                    yield Chunk(source=Source.NOTICE, data=told.encode())
        except ConnectionClosed:
            pass
        if told:
            raise StreamFailed(told)
        raise ConnectionLost("the connection to the process broke; whether it goes on is not known")

    async def write(self, data: bytes) -> bool:
        """Whether anybody may read it."""
        return await self._send(data) if data else True

    async def close_stdin(self) -> None:
        await self._send(json.dumps({"type": "stdin_eof"}))

    async def resize(self, rows: int, columns: int) -> None:
        await self._send(json.dumps({"type": "resize", "cols": columns, "rows": rows}))

    async def _send(self, message: bytes | str) -> bool:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._connection.send(message)
        except ConnectionClosed:
            return False
        return True


def _event(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def exec_(
    box: Annotated[str, typer.Argument(metavar="BOX", help="Id or name.")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="Program and arguments.")],
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Pass our standard input on.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give the process a terminal.")] = False,
    env: Env = None,
    workdir: Annotated[
        str | None, typer.Option("--workdir", "-w", metavar="DIR", help="Working directory; else the box's own.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", "-u", metavar="NAME", help="`root`, `user` or UID:GID; else the box's own.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help='After which it is killed: "90s", "5m".')
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Run a command in a box, which is started for that where it does not run. The exit status is the command's.

    With `-it` it is as if one sat at a terminal inside. When we are ended, or the connection breaks, the process is
    killed.
    """
    from stockade.cli.box_client import BoxClient
    from stockade.settings import parse_duration

    server = the_server(url, api_key)
    variables = environment(env)
    if tty:
        variables.setdefault("TERM", os.environ.get("TERM") or "xterm")
    if command[0] == "--" and len(command) > 1:
        command = command[1:]  # what is after the box is not looked into for options
    body: dict[str, Any] = {"command": command[0], "args": command[1:], "env": variables, "tty": tty}
    if workdir is not None:
        body["working_dir"] = workdir
    if user is not None:
        body["user"] = user
    if timeout is not None:
        try:
            body["timeout_seconds"] = parse_duration(timeout)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--timeout") from None

    async def work(_: "AsyncClient") -> int | None:
        with BoxClient(server) as client:
            return await _run(client, server, box, body, interactive=interactive, tty=tty)

    with_client(server, work)


def attach(
    box: Annotated[str, typer.Argument(metavar="BOX", help="Id or name.")],
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Pass our standard input on.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="It has a terminal (`create --tty`): be that.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Follow the main process of a box: what it has printed, and what it prints. The exit status is the process's.

    The box is started for that where it does not run. When we are ended, the process goes on.
    """
    from stockade.cli.box_client import BoxClient

    server = the_server(url, api_key)

    async def work(_: "AsyncClient") -> int | None:
        with BoxClient(server) as client:
            path = client.attach_path(box) + ("" if interactive else "?stdin=0")
            has_terminal = tty and interactive and os.isatty(STDIN)
            return await _attached(server, path, interactive=interactive, ends_input=False, has_terminal=has_terminal)

    with_client(server, work)


async def _run(
    client: "BoxClient", server: Server, box: str, body: dict[str, Any], *, interactive: bool, tty: bool
) -> int | None:
    from stockade.sdk.errors import SdkError

    execution = await asyncio.to_thread(client.exec, box, body)
    is_over = False
    try:
        code = await _attached(
            server,
            client.attach_path(box, execution),
            interactive=interactive,
            ends_input=not interactive,
            has_terminal=tty and interactive and os.isatty(STDIN),
        )
        is_over = True
        return code
    finally:
        if not is_over:
            with contextlib.suppress(SdkError):  # it is gone, or the server is
                await asyncio.shield(asyncio.to_thread(client.forget, box, execution))


async def _attached(
    server: Server, path: str, *, interactive: bool, ends_input: bool, has_terminal: bool
) -> int | None:
    """Speak with the process whose WebSocket is at *path*; its exit code, or `None` when we were ended."""
    from stockade.sdk._transport import checked_url, headers, open_websocket

    connection = await open_websocket(checked_url(server.url), path, headers(server.api_key))
    async with connection:
        process = BoxProcess(connection)
        if ends_input:
            await process.close_stdin()
        elif has_terminal:
            await process.resize(*size(STDIN))
        return await converse(
            cast("AsyncProcess", process),
            takes_input=interactive,
            terminal=Terminal(STDIN, raw) if has_terminal else None,
            follows_size=has_terminal,
        )
