"""`stockade sandbox`: sandboxes that live, on a server."""

import json
import math
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockade.cli.options import AsJson
from stockade.cli.sandbox_files import cp
from stockade.cli.sandbox_server import ApiKey, SandboxId, Server, Url, say, the_server, with_client
from stockade.cli.sandbox_streams import Env, attach, environment, exec_, logs

if TYPE_CHECKING:
    from stockade.sdk import AsyncClient, Port, Sandbox, SandboxFile

__all__ = ["sandbox"]

MIB = 1024 * 1024
SECRET_BYTES = 4096
"""Of a file with a secret that are read; the server takes far fewer."""

sandbox = typer.Typer(help="Sandboxes that live, on a server: make one, work in it, end it.", no_args_is_help=True)

# What follows the sandbox belongs to the command inside, its options too.
TO_THE_END = {"allow_interspersed_args": False}

Ids = Annotated[list[str], typer.Argument(metavar="ID", help="The sandboxes.")]


@sandbox.command("create", context_settings=TO_THE_END)
def create(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND...]", help="Main process; its end is the sandbox's. Else the image's own."),
    ] = None,
    image: Annotated[str, typer.Option(metavar="NAME", help="Image; `host` is the server's own programs.")] = "host",
    env: Env = None,
    workdir: Annotated[
        str | None, typer.Option("--workdir", "-w", metavar="DIR", help="Working directory; made when it is missing.")
    ] = None,
    cpu: Annotated[float | None, typer.Option(metavar="CORES", help="CPU rate: 0.5 is half a core.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help='Memory limit: "512MiB", "2G".')] = None,
    timeout: Annotated[str | None, typer.Option(metavar="DURATION", help='How long it may live: "90s", "5m".')] = None,
    network: Annotated[
        str | None, typer.Option(metavar="MODE", help="`none`, `outgoing` or `exposed`; --port means the last.")
    ] = None,
    port: Annotated[
        list[str] | None, typer.Option("--port", "-p", metavar="PORT[/udp]", help="Expose a port; as often as wanted.")
    ] = None,
    allow_cidr: Annotated[
        list[str] | None,
        typer.Option(metavar="NETWORK", help="Let it connect to this network only; as often as wanted."),
    ] = None,
    allow_domain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Let it connect to this name only (`*.example.org`); as often as wanted."),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(metavar="COMMAND", help="Shell command that prepares the image, once; as often as wanted."),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(metavar="LOCAL:PATH", help="File that is put into the image at PATH; as often as wanted."),
    ] = None,
    executor: Annotated[
        bool,
        typer.Option(
            "--executor", help="Have the executor API reach it, by a secret that is printed below the id, now only."
        ),
    ] = False,
    executor_secret_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="As --executor, by the secret that FILE holds (`-`: standard input), which is not printed.",
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Start a sandbox and print its id."""
    server = the_server(url, api_key)
    variables = environment(env)
    files = _files(file)
    ports = _ports(port)
    timeout_s, memory_mb = _measures(timeout, memory)
    secret = None if executor_secret_file is None else _secret(executor_secret_file)

    async def work(client: "AsyncClient") -> None:
        made = await client.create(
            image,
            command,
            env=variables,
            workdir=workdir,
            cpu_millis=None if cpu is None else round(cpu * 1000),
            memory_mb=memory_mb,
            timeout_s=timeout_s,
            network=network or ("exposed" if ports else None),
            ports=ports,
            setup=setup or (),
            files=files,
            allow_cidrs=allow_cidr,
            allow_domains=allow_domain,
            executor=secret or executor,
        )
        if as_json:
            print(json.dumps(made.raw))
            return
        print(made.id)
        if secret is None and made.executor is not None:
            print(made.executor.secret)

    with_client(server, work)


def _secret(file: str) -> str:
    """The secret that *file* holds, without white space around it. Others can read an argument, and so it is none."""
    try:
        content = sys.stdin.buffer.read(SECRET_BYTES + 1) if file == "-" else _beginning(Path(file))
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--executor-secret-file") from None
    text = content.decode("utf-8", "replace").strip()
    if not text or len(content) > SECRET_BYTES:
        what = "there is no secret in it" if not text else f"more than {SECRET_BYTES} bytes are no secret"
        raise typer.BadParameter(f"{file}: {what}", param_hint="--executor-secret-file")
    return text


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(SECRET_BYTES + 1)


def _measures(timeout: str | None, memory: str | None) -> tuple[float | None, int | None]:
    """Seconds, and MiB rounded up."""
    from stockade.settings import parse_duration, parse_size

    option = "--timeout"
    try:
        timeout_s = None if timeout is None else parse_duration(timeout)
        option = "--memory"
        memory_mb = None if memory is None else math.ceil(parse_size(memory) / MIB)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
    return timeout_s, memory_mb


def _ports(texts: list[str] | None) -> "list[Port]":
    from stockade.sdk import Port

    ports = []
    for text in texts or ():
        number, _, protocol = text.partition("/")
        if not (number.isascii() and number.isdigit()) or protocol not in ("", "tcp", "udp"):
            raise typer.BadParameter(f"{text!r} is no port; one looks like 8080 or 53/udp", param_hint="--port")
        ports.append(Port(container=int(number), protocol=protocol or "tcp"))
    return ports


def _files(texts: list[str] | None) -> "list[SandboxFile]":
    from stockade.sdk import SandboxFile

    files = []
    for text in texts or ():
        local, _, path = text.partition(":")
        if not local or not path:
            raise typer.BadParameter(f"{text!r} is not LOCAL:PATH", param_hint="--file")
        try:
            content = Path(local).read_bytes()
            mode = Path(local).stat().st_mode & 0o777
        except OSError as error:
            raise typer.BadParameter(f"{local}: {error.strerror}", param_hint="--file") from None
        files.append(SandboxFile(path=path, content=content, mode=mode))
    return files


@sandbox.command("list")
def list_(
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help="Only those that are so: running, stopped, failed, killed, …")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the sandboxes of the key, the newest first; ended ones too."""

    async def work(client: "AsyncClient") -> None:
        found = await client.sandboxes(status=status)
        if as_json:
            print(json.dumps([one.raw for one in found]))
        else:
            _print(found)

    with_client(the_server(url, api_key), work)


def _print(found: "list[Sandbox]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("Id", "Status", "Exit", "Image", "Created", "Ports"):
        table.add_column(title, no_wrap=title == "Id", overflow="fold")
    for one in found:
        ports = [f"{port.container} → {escape(port.url)}" for port in one.network.ports.values()] if one.network else []
        if one.executor is not None and one.executor.proxy_port is not None:
            ports.append(f"bound → {one.executor.proxy_port}")
        table.add_row(
            one.id,
            escape(one.status),
            "" if one.exit_code is None else str(one.exit_code),
            escape(one.image or ""),
            one.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            "\n".join(ports),
        )
    Console(highlight=False).print(table)


@sandbox.command("stop")
def stop(ids: Ids, url: Url = None, api_key: ApiKey = None) -> None:
    """End sandboxes gracefully: SIGTERM, and after a grace SIGKILL. Prints the id of each that has ended."""
    _each(the_server(url, api_key), ids, lambda client, one: client.stop(one))


@sandbox.command("kill")
def kill(ids: Ids, url: Url = None, api_key: ApiKey = None) -> None:
    """End sandboxes at once and drop what they left, also of those that have ended. Prints the id of each."""
    _each(the_server(url, api_key), ids, lambda client, one: client.kill(one))


def _each(server: Server, ids: list[str], act: "Callable[[AsyncClient, str], Awaitable[None]]") -> None:
    """Do it for all of them, whatever becomes of the others."""

    async def work(client: "AsyncClient") -> int:
        from stockade.sdk import ApiError, Unauthorized

        status = 0
        for one in ids:
            try:
                await act(client, one)
                print(one)
            except Unauthorized:
                raise
            except ApiError as error:
                say(f"{one}: {error}")
                status = 1
        return status

    with_client(server, work)


@sandbox.command("extend")
def extend(
    sandbox_id: SandboxId,
    lifetime: Annotated[str, typer.Argument(metavar="DURATION", help='Life that is left from now on: "5m".')],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Let a sandbox live longer, or shorter. Prints when it ends."""
    from stockade.settings import parse_duration

    try:
        lifetime_s = parse_duration(lifetime)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="DURATION") from None

    async def work(client: "AsyncClient") -> None:
        extended = await client.extend(sandbox_id, lifetime_s)
        print(extended.expires_at.isoformat() if extended.expires_at else extended.id)

    with_client(the_server(url, api_key), work)


@sandbox.command("port")
def port(
    sandbox_id: SandboxId,
    number: Annotated[
        int | None, typer.Argument(metavar="PORT", min=1, max=65535, help="Port inside; else all that are exposed.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print the URL under which a port of a sandbox is reached; without PORT a line for each."""

    async def work(client: "AsyncClient") -> None:
        if number is not None:
            one = await client.port_url(sandbox_id, number)
            print(json.dumps(_port_json(one)) if as_json else one.url)
            return
        network = (await client.get(sandbox_id)).network
        found = list(network.ports.values()) if network else []
        if as_json:
            print(json.dumps([_port_json(one) for one in found]))
        else:
            for one in found:
                print(f"{one.container}/{one.protocol} {one.url}")

    with_client(the_server(url, api_key), work)


def _port_json(one: Any) -> dict[str, object]:
    return {"container": one.container, "host": one.host, "url": one.url, "protocol": one.protocol}


sandbox.command("exec", context_settings=TO_THE_END)(exec_)
sandbox.command("attach")(attach)
sandbox.command("cp")(cp)
sandbox.command("logs")(logs)
