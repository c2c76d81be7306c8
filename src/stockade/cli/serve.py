"""`stockade serve`."""

import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from stockade.cli.options import ConfigFile, DataDir

if TYPE_CHECKING:
    from stockade.app.server import Listener
    from stockade.config import Config

__all__ = ["banner", "parse_listen", "serve"]


def serve(
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on. Default: 127.0.0.1", show_default=False)
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default: 8080", show_default=False)] = None,
    data_dir: DataDir = None,
    dialect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=HOST:PORT",
            help="Give a dialect an address of its own, where it answers exactly as its protocol says. "
            "May be repeated.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Answer without a key on addresses that others can reach. Anyone can run code."
        ),
    ] = False,
    user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="As root: user to become once everything has started.", show_default=False),
    ] = None,
) -> None:
    """Serve every dialect over HTTP.

    The first start prints an API key, once. SIGTERM drains: running programs may end, new ones are refused; a second
    one ends at once.
    """
    from stockade.app.http import dialect_settings, translated
    from stockade.app.logs import configure
    from stockade.app.server import serve as run_server
    from stockade.config import load

    environ, notices = translated(os.environ)
    loaded = load(
        environ=environ,
        file=config,
        options={
            "server.host": host,
            "server.port": port,
            "data_dir": data_dir,
            "server.listen": parse_listen(dialect) if dialect else None,
            "server.insecure": insecure or None,
            "server.user": user,
        },
        dialects=dialect_settings(),
    )
    configure(loaded.log)
    for notice in notices:
        structlog.get_logger().warning("config.notice", notice=notice)
    made: list[str] = []

    def made_key(secret: str) -> None:
        made.append(secret)
        print(f"API key (new; shown only now):  {secret}", flush=True)

    def ready(listeners: "tuple[Listener, ...]") -> None:
        print(banner(loaded, listeners, made[0] if made else ""), flush=True)

    run_server(loaded, made_key=made_key, ready=ready)


def parse_listen(values: list[str]) -> dict[str, str]:
    """The addresses of dialects by their names, from NAME=HOST:PORT."""
    found = {}
    for value in values:
        name, equals, address = value.partition("=")
        if not (name and equals and address):
            raise typer.BadParameter(f"{value!r} is not NAME=HOST:PORT", param_hint="--dialect")
        if name in found:
            raise typer.BadParameter(f"{name} is named twice", param_hint="--dialect")
        found[name] = address
    return found


def banner(config: "Config", listeners: "tuple[Listener, ...]", new_key: str) -> str:
    """What a new user needs: where the server is, the key when it may be shown, and a line to paste."""
    from stockade.config import is_loopback

    merged, *others = listeners
    lines = [f"Stockade answers at  {merged.url}"]
    if config.portal.enabled:
        lines.append(f"In a browser         {merged.url}/")
    lines.append(f"Documentation        {merged.url}/docs")
    lines += [f"{one.dialect:<20} {one.url}" for one in others]
    # A key that was preset stays out of logs: only a terminal sees it again.
    key = new_key or (config.server.api_key if sys.stdout.isatty() else "")
    if not new_key and key:
        lines.append(f"API key              {key}")
    header = f" -H {shlex.quote(f'X-API-Key: {key}')}" if key else ""
    if not key and (config.server.api_key or (not is_loopback(merged.host) and not config.server.insecure)):
        header = " -H 'X-API-Key: YOUR_KEY'"
    body = json.dumps({"language": "python", "code": "print(6*7)"}, separators=(",", ":"))
    lines.append("Try it:")
    lines.append(f"  curl -s {merged.url}/execute -H 'Content-Type: application/json'{header} -d {shlex.quote(body)}")
    return "\n".join(lines)
