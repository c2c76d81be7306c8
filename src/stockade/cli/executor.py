"""`stockade executor`."""

import asyncio
import contextlib
import ipaddress
import math
import os
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stockade.cli.failures import complain
from stockade.cli.options import ConfigFile, DataDir
from stockade.cli.sandbox_streams import Env, environment
from stockade.errors import CannotEnforce, Invalid, StockadeError

if TYPE_CHECKING:
    from stockade.app.executor import Asked, Secret
    from stockade.config import Config
    from stockade.model import NetworkMode

__all__ = ["TO_THE_END", "executor"]

PORT, PROXY_PORT = 3030, 3031
SECRET_PATH = "/var/lib/sandbox-container/sandbox-secret"
LEVELS = {"trace": "debug", "debug": "debug", "info": "info", "warn": "warning", "error": "error"}

# What follows belongs to the companion, its options too.
TO_THE_END = {"allow_interspersed_args": False}


def executor(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND...]",
            help="Companion: runs in the sandbox with our standard streams; when it ends, so do we, with its status.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="IP address to listen on, with both ports.")] = "0.0.0.0",
    image: Annotated[str, typer.Option(metavar="NAME", help="Image; `host` is this machine's own programs.")] = "host",
    network: Annotated[
        str, typer.Option(metavar="MODE", help="`outgoing`: the sandbox may connect to the internet; or `none`.")
    ] = "outgoing",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help='Memory limit: "2GiB". Default: the most that the configuration allows.',
            show_default=False,
        ),
    ] = None,
    cpus: Annotated[
        float | None,
        typer.Option(metavar="CORES", help="CPU rate: 0.5 is half a core. Default: all.", show_default=False),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Bytes that may be written to its files. Default: the most that the configuration allows.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes and threads. Default: the most that the configuration allows.", show_default=False
        ),
    ] = None,
    env: Env = None,
    workdir: Annotated[
        str | None,
        typer.Option(
            "--workdir", "-w", metavar="DIR", help="Working directory; made when it is missing.", show_default=False
        ),
    ] = None,
    user: Annotated[str, typer.Option("--user", "-u", metavar="NAME", help="`user` or `root`.")] = "user",
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Serve one sandbox by the sandbox-executor protocol: in place of Koyeb's `sandbox-executor`.

    The environment says the rest: SANDBOX_SECRET opens the sandbox; PORT (3030) is for requests, PROXY_PORT (3031)
    leads to the port that is bound; SANDBOX_AUTH_MODE `pool` adopts the first secret that somebody presents, and keeps
    it in SANDBOX_SECRET_PATH; LOG_LEVEL. Nothing of it reaches the sandbox. SIGTERM and SIGINT end everything.
    """
    import structlog

    from stockade.app.logs import configure
    from stockade.config import LogConfig

    # Taken out first: what is started from here on does not inherit it.
    given = os.environ.pop("SANDBOX_SECRET", "").strip()  # no header could hold what is around it
    level = _level()
    configure(LogConfig(level=level or "info", format="console"))
    try:
        from stockade.app.executor import Asked

        asked = Asked(
            command=tuple(command or ()),
            image=image,
            network=_network(network),
            proxy_port=_port("PROXY_PORT", PROXY_PORT),
            env=environment(env),
            cwd=workdir,
            user=user,
            cpus=_cores(cpus),
            memory_bytes=_bytes(memory, "--memory"),
            disk_bytes=_bytes(disk, "--disk"),
            processes=processes,
        )
        port = _port("PORT", PORT)
        loaded = _config(asked, host=_address(host), port=port, level=level, data_dir=data_dir, file=config)
        status = _serve(loaded, asked, given)
    except CannotEnforce as error:
        complain(error)
        status = 1
    except StockadeError as error:
        structlog.get_logger().error("executor.failed", reason=str(error))
        status = 1
    except asyncio.CancelledError:
        status = 0  # a signal ended it before it answered
    raise typer.Exit(status)


def _config(
    asked: "Asked", *, host: str, port: int, level: str | None, data_dir: Path | None, file: Path | None
) -> "Config":
    """The configuration: of `stockade serve`, but for what an executor has to itself. No file but one that is named."""
    from stockade.app.executor import executor_config, executor_data_dir
    from stockade.app.http import dialect_settings
    from stockade.config import load

    loaded = load(
        file=file or Path(os.devnull),
        environ={name: value for name, value in os.environ.items() if name != "PORT"},
        options={"data_dir": data_dir or executor_data_dir(port)},
        dialects=dialect_settings(),
    )
    log = replace(
        loaded.log,
        level=level or loaded.log.level,
        format="console" if loaded.log.format == "auto" else loaded.log.format,
    )
    return executor_config(replace(loaded, log=log), asked, host=host, port=port)


def _serve(config: "Config", asked: "Asked", given: str) -> int:
    """Serve to the end; the exit status.

    Raises:
        StockadeError: it cannot start.
    """
    from stockade.app.executor import DIALECT, Executor, request_of
    from stockade.app.server import serve
    from stockade.cli.executor_console import StandardStreams

    console = StandardStreams() if asked.command else None
    request = request_of(config, asked, has_terminal=console is not None and console.terminal is not None)
    with _secret(config, given) as secret:
        caretaker = Executor(request, secret, console=console)
        serve(config, only=DIALECT, caretaker=caretaker)
    return caretaker.exit_code


def _secret(config: "Config", given: str) -> "AbstractContextManager[Secret]":
    """Who may use the sandbox, by the mode of authentication.

    Raises:
        Invalid: the environment does not say it.
    """
    from stockade.app.pool_secret import PoolSecret, StaticSecret
    from stockade.app.privileges import find_user

    mode = os.environ.get("SANDBOX_AUTH_MODE", "").lower() or "static"
    if mode == "static":
        if not given:
            raise Invalid("SANDBOX_SECRET is not set: without it nobody could use the sandbox")
        return contextlib.nullcontext(StaticSecret(given))
    if mode == "pool":
        if given:
            raise Invalid("SANDBOX_SECRET is set, but in pool mode the first client brings the secret: unset it")
        path = Path(os.environ.get("SANDBOX_SECRET_PATH") or SECRET_PATH)
        return PoolSecret(path, owner=find_user(config.server.user) if config.server.user else None)
    raise Invalid(f"SANDBOX_AUTH_MODE: must be static or pool (got {mode!r})")


def _level() -> str | None:
    """The level that LOG_LEVEL names; `None` where it is not set."""
    named = os.environ.get("LOG_LEVEL", "").lower()
    return LEVELS.get(named, "info") if named else None


def _port(variable: str, default: int) -> int:
    """Raises Invalid."""
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise Invalid(f"{variable}: must be a port, 1 to 65535 (got {text!r})")
    return int(text)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no IP address", param_hint="--host") from None


def _network(text: str) -> "NetworkMode":
    from stockade.model import NetworkMode

    if text not in (NetworkMode.OUTGOING, NetworkMode.NONE):
        raise typer.BadParameter(f"must be outgoing or none (got {text!r})", param_hint="--network")
    return NetworkMode(text)


def _bytes(text: str | None, option: str) -> int | None:
    from stockade.settings import parse_size

    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _cores(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"must be greater than zero (got {value:g})", param_hint="--cpus")
    return value
