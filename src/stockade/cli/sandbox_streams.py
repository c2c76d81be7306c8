"""`stockade sandbox exec`, `attach`, `logs`: processes of a sandbox, and what they write."""

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from stockade.cli.sandbox_conversation import STDIN, converse
from stockade.cli.sandbox_server import ApiKey, SandboxId, Url, say, the_server, with_client
from stockade.cli.sandbox_terminal import DetachKeys, Terminal, detachable, parse_keys, raw, size

if TYPE_CHECKING:
    from stockade.sdk import AsyncClient

__all__ = ["attach", "environment", "exec_", "logs"]

Env = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="Variable, as often as wanted; no VALUE takes ours."),
]
Workdir = Annotated[
    str | None, typer.Option("--workdir", "-w", metavar="DIR", help="Working directory; else the sandbox's own.")
]


def environment(variables: list[str] | None) -> dict[str, str]:
    """What `--env` asks for. One without a value, that we do not have either, is left out."""
    found: dict[str, str] = {}
    for one in variables or ():
        name, is_given, value = one.partition("=")
        if not name:
            raise typer.BadParameter(f"{one!r} names no variable", param_hint="--env")
        if is_given:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def exec_(
    sandbox_id: SandboxId,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="Program and arguments; one with spaces is for a shell.")
    ],
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Pass our standard input on.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give the process a terminal.")] = False,
    env: Env = None,
    workdir: Workdir = None,
    user: Annotated[str | None, typer.Option("--user", "-u", metavar="NAME", help="`user` or `root`.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Run a command in a running sandbox. The exit status is the command's.

    With `-it` it is as if one sat at a terminal inside: every key goes there, Ctrl-C too. When we are ended, or the
    connection breaks, the process is killed.
    """
    server = the_server(url, api_key)
    variables = environment(env)
    has_terminal = tty and interactive and os.isatty(STDIN)
    if tty:
        variables.setdefault("TERM", os.environ.get("TERM") or "xterm")
    if command[0] == "--" and len(command) > 1:
        command = command[1:]  # what is after the id is not looked into for options
    # One text with spaces in it is what one would type; two or more are the arguments as they are.
    asked = command[0] if len(command) == 1 and any(one.isspace() for one in command[0]) else command

    async def work(client: "AsyncClient") -> int | None:
        terminal = size(STDIN) if tty else None
        async with client.exec(
            sandbox_id, asked, env=variables, workdir=workdir, user=user, terminal=terminal
        ) as process:
            if not interactive:
                await process.close_stdin()
            return await converse(
                process,
                takes_input=interactive,
                terminal=Terminal(STDIN, raw) if has_terminal else None,
                follows_size=has_terminal,
            )

    with_client(server, work)


def attach(
    sandbox_id: SandboxId,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Only look: pass no input on.")] = False,
    detach_keys: Annotated[
        str, typer.Option("--detach-keys", metavar="KEYS", help="What to type to leave; empty for nothing.")
    ] = "ctrl-p,ctrl-q",
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Connect with a sandbox's main process: all it has written, then live. The exit status is the process's.

    Ctrl-P Ctrl-Q, or Ctrl-C, leaves it alone: it goes on. When our standard input ends, so does the process's. A
    connection that breaks is opened again, and goes on where it was.
    """
    try:
        keys = parse_keys(detach_keys)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--detach-keys") from None
    server = the_server(url, api_key)
    has_terminal = bool(keys) and not no_stdin and os.isatty(STDIN)

    async def work(client: "AsyncClient") -> int | None:
        async with client.attach(sandbox_id) as process:
            try:
                status = await converse(
                    process,
                    takes_input=not no_stdin,
                    keys=DetachKeys(keys) if has_terminal else None,
                    terminal=Terminal(STDIN, detachable(keys[-1:])) if has_terminal else None,
                )
            except asyncio.CancelledError:
                say(f"left {sandbox_id}, which goes on")
                raise
        if status is None:
            say(f"left {sandbox_id}, which goes on")
        return status

    with_client(server, work)


def logs(
    sandbox_id: SandboxId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the process ends.")] = False,
    tail: Annotated[
        str | None, typer.Option(metavar="SIZE", help='Only the end of each stream: "4KiB". Not with --follow.')
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print what a sandbox's main process has written, as far as it is kept."""
    from stockade.settings import parse_size

    if follow and tail is not None:
        raise typer.BadParameter("what goes on has no end to show", param_hint="--tail")
    try:
        most = None if tail is None else parse_size(tail)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--tail") from None

    async def work(client: "AsyncClient") -> None:
        if follow:
            async with client.attach(sandbox_id) as process:
                await converse(process, takes_input=False)
        else:
            await _print_logs(client, sandbox_id, most)

    with_client(the_server(url, api_key), work)


async def _print_logs(client: "AsyncClient", sandbox_id: str, most: int | None) -> None:
    from stockade.sdk import Source

    for source, file in ((Source.STDOUT, sys.stdout.buffer), (Source.STDERR, sys.stderr.buffer)):
        async with client.logs(sandbox_id, source, tail=most) as parts:
            async for part in parts:
                file.write(part)
        file.flush()
