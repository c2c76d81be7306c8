"""The two libraries below us: how a WebSocket is opened, what answers and errors mean. Their exceptions end here."""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException

from stockade.sdk._frames import MOST_BYTES
from stockade.sdk.errors import ConnectionFailed, ProtocolError, TimedOut, api_error

__all__ = ["answered", "checked_url", "headers", "open_websocket", "timeouts", "translated"]

CONNECT_S = 10.0
CLOSE_S = 2.0
QUEUED_MESSAGES = 8
"""That wait for us to take them; when there are more, the server is no longer read from."""
KEEPALIVE = {
    # Who waits for output sends nothing, and so would never learn that the other machine is gone. WebSocket pings
    # cannot tell: their answers wait behind output that we are slow to take.
    socket.TCP_KEEPIDLE: 20,
    socket.TCP_KEEPINTVL: 10,
    socket.TCP_KEEPCNT: 3,
}


def checked_url(url: str) -> str:
    """*url* without a slash at its end.

    Raises:
        ValueError: it is not that of an HTTP server.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not the URL of a server; it looks like http://127.0.0.1:8080")
    return url.rstrip("/")


def headers(api_key: str) -> dict[str, str]:
    """What every request carries.

    Raises:
        ValueError: the key cannot stand in a header.
    """
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ValueError("the API key is empty, or has characters that no key has")
    return {"authorization": f"Bearer {api_key}"}


def timeouts(answer_s: float) -> httpx.Timeout:
    """Deadlines of a request's phases; *answer_s* for the answer to begin, and between two parts of it."""
    return httpx.Timeout(answer_s, connect=CONNECT_S)


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turns what httpx raises into our errors."""
    try:
        yield
    except httpx.TimeoutException as error:
        phase = "took no connection" if isinstance(error, httpx.ConnectTimeout) else "did not answer"
        raise TimedOut(f"the server at {url} {phase} in time") from error
    except httpx.ConnectError as error:
        raise ConnectionFailed(f"no server answers at {url}: {_reason(error)}") from error
    except httpx.TransportError as error:
        raise ConnectionFailed(f"the connection to {url} broke: {_reason(error)}") from error
    except httpx.DecodingError as error:
        raise ProtocolError(f"the answer of {url} cannot be decoded: {error}") from error


def answered(url: str, response: httpx.Response) -> dict[str, Any]:
    """The JSON object that a server answers with; an empty one where it says nothing.

    Raises:
        ApiError: it refuses.
        ProtocolError: it says something else.
    """
    if not response.is_success:
        raise api_error(response.status_code, response.headers, response.content)
    if not response.content:
        return {}
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ProtocolError(f"{url} does not answer as a server of ours")
    return document


async def open_websocket(url: str, path: str, more_headers: Mapping[str, str]) -> ClientConnection:
    """Open a WebSocket.

    Raises:
        ApiError: the server refused it.
        ConnectionFailed, ProtocolError.
    """
    scheme, _, rest = url.partition("://")
    try:
        connection = await connect(
            f"{'wss' if scheme == 'https' else 'ws'}://{rest}{path}",
            additional_headers=dict(more_headers),
            compression=None,
            open_timeout=CONNECT_S,
            close_timeout=CLOSE_S,
            ping_interval=None,
            max_size=MOST_BYTES + 5,
            max_queue=QUEUED_MESSAGES,
        )
    except InvalidStatus as error:
        response = error.response
        raise api_error(response.status_code, dict(response.headers.raw_items()), bytes(response.body or b"")) from None
    except TimeoutError as error:
        raise TimedOut(f"the server at {url} did not open the stream in time") from error
    except OSError as error:
        raise ConnectionFailed(f"no server answers at {url}: {_reason(error)}") from error
    except EOFError as error:
        raise ConnectionFailed(f"the server at {url} closed the connection instead of opening the stream") from error
    except (InvalidHandshake, InvalidURI) as error:
        if isinstance(error.__cause__, (OSError, EOFError)):
            raise ConnectionFailed(f"the connection to {url} broke before the stream was open") from error
        raise ProtocolError(f"{url} does not speak WebSocket: {error}") from error
    except WebSocketException as error:
        raise ProtocolError(f"the stream of {url} failed: {error}") from error
    wire = connection.transport.get_extra_info("socket")
    if wire is not None and wire.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # the server may be gone again
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE.items():
                wire.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


def _reason(error: BaseException) -> str:
    """What went wrong in few words: the operating system's, where it was asked."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, socket.gaierror):
            return f"the name is not known ({inner.strerror})"
        if isinstance(inner, OSError) and inner.errno and inner.errno > 0:
            return os.strerror(inner.errno).lower()
        inner = inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__
