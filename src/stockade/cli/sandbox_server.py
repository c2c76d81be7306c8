"""Which server the `stockade sandbox` commands speak to, with which key, and how they tell what went wrong."""

import asyncio
import contextlib
import os
import signal
import stat
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from stockade.errors import Denied, Invalid

if TYPE_CHECKING:
    from stockade.sdk import AsyncClient

__all__ = ["ApiKey", "SandboxId", "Server", "Url", "say", "telling_failures", "the_server", "with_client"]

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help=f"The server. Else STOCKADE_URL, the file ~/.config/stockade/credentials, {DEFAULT_URL}.",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="API key; others on this machine can read an option. Else STOCKADE_API_KEY, or `api_key` in that file.",
        show_default=False,
    ),
]
SandboxId = Annotated[str, typer.Argument(metavar="ID", help="The sandbox, as `create` and `list` print it.")]


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where to, and as whom."""

    url: str
    api_key: str


def the_server(url: str | None, api_key: str | None) -> Server:
    """The server and key that the options, the environment or the file of credentials name, in this order.

    Raises:
        Invalid: the file cannot be understood.
        Denied: there is no key, or others could read it.
    """
    stored = _credentials(_credentials_file())
    url = url or os.environ.get("STOCKADE_URL") or None
    api_key = api_key or os.environ.get("STOCKADE_API_KEY") or None
    # A key is for the server that it stands beside; another one shall not be shown it.
    if api_key is None and (url is None or stored.get("url") in (None, url)):
        api_key = stored.get("api_key")
    url = url or stored.get("url") or DEFAULT_URL
    if api_key is None:
        raise Denied(
            f'no API key for {url}: set STOCKADE_API_KEY, or write `api_key = "sk_…"` to {_credentials_file()}'
        )
    return Server(url=url, api_key=api_key)


def _credentials_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "stockade" / "credentials"


def _credentials(file: Path) -> dict[str, str]:
    """What the file says (TOML: `url`, `api_key`); nothing when there is none."""
    try:
        with file.open("rb") as opened:
            if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & 0o077:
                raise Denied(f"{file} can be read by others than you: chmod 600 {file}")
            document = tomllib.load(opened)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise Denied(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{file}: {error}") from None
    unknown = sorted(document.keys() - {"url", "api_key"})
    if unknown or not all(isinstance(value, str) for value in document.values()):
        raise Invalid(
            f"{file}: it may have `url` and `api_key`, both texts" + (f", not {unknown[0]}" if unknown else "")
        )
    return document


def say(text: str) -> None:
    """A line of ours on standard error."""
    print(f"stockade: {text}", file=sys.stderr)


@contextlib.contextmanager
def telling_failures(server: Server) -> Iterator[None]:
    """What the client or the file system refuses is told in one line; the exit status is then 1, 130 after Ctrl-C.

    Raises:
        Invalid: the URL or the key cannot be right.
    """
    from stockade.sdk.errors import ConnectionFailed, ConnectionLost, SdkError, Unauthorized

    try:
        yield
    except Unauthorized:
        say(f"{server.url} does not accept the API key: it is unknown, expired or switched off")
    except ConnectionLost as error:
        say(str(error))
    except ConnectionFailed as error:
        say(f"{error}; is it the right --url?")
    except SdkError as error:
        say(str(error))
    except BrokenPipeError:
        # Nobody reads what we print any more. What is still in buffers must not make Python complain at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        raise Invalid(str(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    else:
        return
    raise typer.Exit(1)


def with_client(server: Server, work: "Callable[[AsyncClient], Awaitable[int | None]]") -> NoReturn:
    """Do *work* with a client and end with the status that it returns; 0 for None.

    SIGINT, SIGTERM and SIGHUP cancel it, so that everything is put back in order; the status is then 128 and the
    signal's number.
    """
    from stockade.sdk import AsyncClient

    async def supervised() -> int:
        task = asyncio.current_task()
        assert task is not None
        got: list[int] = []

        def cancel(number: int) -> None:
            got.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, cancel, number)
        try:
            async with AsyncClient(server.url, server.api_key) as client:
                return await work(client) or 0
        except asyncio.CancelledError:
            if not got:
                raise
            return 128 + got[0]

    with telling_failures(server):
        status = asyncio.run(supervised())
    raise typer.Exit(status)
