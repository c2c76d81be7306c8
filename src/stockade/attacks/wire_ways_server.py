"""The server that the ways over the wire lead into: requests, and what its refusals mean."""

import ssl
from types import TracebackType
from typing import Any, Final, Self

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from stockade.attacks.corpus import LIMITS, Attack
from stockade.errors import Denied, Fault, Invalid, StockadeError, Unavailable, Unsupported
from stockade.model import Outcome

__all__ = ["LIFE_S", "STARTED_BY", "TIMES", "WITHIN_S", "WireServer", "ends_by_time", "life_of"]

WITHIN_S: Final = 40.0
"""Life of a sandbox whose program comes to its own end, however busy the host is."""
LIFE_S: Final = LIMITS.wall_s or 4.0
TIMES: Final = frozenset({Outcome.WALL_TIME, Outcome.CPU_TIME})
_ANSWER_S: Final = 90.0
_MOST_KEPT: Final = 1 << 20
_SHOWN: Final = 300

STARTED_BY: Final = {
    "python": ("main.py", ("python3", "main.py")),
    "bash": ("main.sh", ("bash", "main.sh")),
    "c": ("main.c", ("sh", "-c", "cc -o main main.c && exec ./main")),
}
"""By language: name of the file, and what starts it in a sandbox that lives."""

_LIVE_WITHOUT_END = frozenset({"output-flood", "output-flood-stderr", "output-endless-line", "memory-by-children"})
"""Attacks that no limit of a sandbox that lives ends but its life."""


def ends_by_time(attack: Attack) -> bool:
    """Whether nothing but its time ends it."""
    return bool(attack.accept) and attack.accept <= TIMES


def life_of(attack: Attack, within_s: float = WITHIN_S) -> float:
    """Seconds that a sandbox for *attack* is to live; *within_s* where it comes to its own end."""
    return LIFE_S if attack.accept & TIMES or attack.name in _LIVE_WITHOUT_END else within_s


class WireServer:
    """A server by its address, and a key for it. Use as an async context manager."""

    def __init__(self, url: str, key: str) -> None:
        """*url*: of the server that speaks every protocol. *key*: an API key whose quota has room for the corpus."""
        self.url = url.rstrip("/")
        self._key = key
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(_ANSWER_S, pool=None),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def ask(
        self, method: str, path: str, *, secret: str | None = None, headers: dict[str, str] | None = None, **more: Any
    ) -> Any:
        """What is answered: parsed JSON, or `None` where there is none.

        Args:
            secret: instead of the key.
            more: `json`, `content` or `params`, as httpx has them.

        Raises:
            Unsupported: this server cannot do it: no such language, no such protocol, no room for so much input.
            Unavailable: it was busy, or nobody answered.
            Denied: it does not accept the key.
            Invalid: it refused the request itself.
            Fault: it failed.
        """
        assert self._http is not None, "the server is not open"
        own = {"Authorization": f"Bearer {secret or self._key}"}
        if secret is None:
            own["X-API-Key"] = self._key  # which some of the protocols look for
        try:
            response = await self._http.request(method, path, headers=own | (headers or {}), **more)
        except httpx.HTTPError as error:
            raise Unavailable(f"{method} {self.url}{path}: {type(error).__name__}: {error}") from error
        if response.is_error:
            raise _refusal(f"{method} {path}", response.status_code, response.text)
        try:
            return response.json() if response.content else None
        except ValueError:
            raise Fault(f"{method} {path}: not JSON: {response.text[:_SHOWN]!r}") from None

    async def socket(self, path: str) -> ClientConnection:
        """A WebSocket. Raises as `ask`."""
        secure = self.url.startswith("https:")
        try:
            return await connect(
                f"ws{self.url.removeprefix('http')}{path}",
                additional_headers={"Authorization": f"Bearer {self._key}"},
                max_size=1 << 25,
                open_timeout=_ANSWER_S,
                close_timeout=5,
                compression=None,
                proxy=None,
                ssl=ssl.create_default_context() if secure else None,
            )
        except (WebSocketException, OSError, TimeoutError) as error:
            raise Unavailable(f"{self.url}{path}: no WebSocket: {error}") from error


def _refusal(what: str, status: int, text: str) -> StockadeError:
    shown = f"{what}: {status} {' '.join(text.split())[:_SHOWN]}"
    if status == 401 or status == 403:
        return Denied(shown)
    if status in (404, 413, 422, 501) or (status == 400 and "nsupported" in text):
        return Unsupported(shown)
    if status in (408, 429, 502, 503, 504):
        return Unavailable(shown)
    return Invalid(shown) if status < 500 else Fault(shown)


class Kept:
    """The beginning of an output, however much there is of it."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, data: bytes) -> None:
        self._bytes += data[: max(0, _MOST_KEPT - len(self._bytes))]

    def text(self) -> bytes:
        """With the line ends of programs: a terminal makes others of them."""
        return bytes(self._bytes).replace(b"\r\n", b"\n")


async def fed(socket: ClientConnection, messages: list[bytes | str]) -> None:
    """Send what a program is to read, for as long as somebody takes it."""
    try:
        for message in messages:
            await socket.send(message)
    except WebSocketException:  # the program has ended, and the connection with it
        return
