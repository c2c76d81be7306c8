"""HTTP/1.1 between a program in a sandbox and the host it calls, with secrets put in on the way out.

Requests are taken apart by h11 and made anew, one after the other, so that what we saw is what the host gets: nothing
that one of us could read otherwise than the other. For whom a request is, is decided on the name by which the
connection was made, and its `Host` must be that one.

What we answer ourselves is fixed text: nothing that was put in, and no error of a library, which may quote it.
"""

import asyncio
import contextlib
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import h11

from stockade.engine.diversion_hosts import Misdirected
from stockade.engine.diversion_streams import Bare, Stream, relay
from stockade.engine.diversion_texts import Replacement, Streamed, writing_of

__all__ = ["MOST_HEADER_BYTES", "WHOLE_BYTES", "Conversation", "host_of"]

MOST_HEADER_BYTES = 64 << 10
WHOLE_BYTES = 256 << 10
"""A body of text of at most so many bytes goes out with its length, a longer one in chunks."""
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer", b"transfer-encoding",
     b"upgrade"}
)  # fmt: skip
_MADE_ANEW = frozenset({b"host", b"content-length", b"expect"})
_NOT_TOLD = frozenset({b"alt-svc"})  # it would lead the program past us
_HOST = re.compile(rb"([a-z0-9_.-]+)(?::([0-9]{1,5}))?", re.IGNORECASE)
_SWITCHING, _BAD_REQUEST, _MISDIRECTED, _TOO_LARGE, _BAD_GATEWAY = 101, 400, 421, 431, 502

_VERSIONS = (b"1.0", b"1.1")

Headers = list[tuple[bytes, bytes]]


class _Refusal(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


@dataclass
class _Body:
    """How what follows a request's head is passed on."""

    length: int | None
    """`None`: in chunks, as many as come."""
    streamed: Streamed | None
    whole: bytes | None = None
    """All of it, where it had to be known first."""


def host_of(value: bytes) -> tuple[str, int | None] | None:
    """The name, in lower case and without the last dot, and the port that a `Host` says; `None`: it says neither."""
    found = _HOST.fullmatch(value.strip())
    if found is None:
        return None
    return found[1].decode().lower().removesuffix("."), None if found[2] is None else int(found[2])


class Conversation:
    """The requests of one connection."""

    def __init__(
        self,
        client: Stream,
        *,
        port: int,
        admit: Callable[[str], Replacement],
        dial: Callable[[], Awaitable[Bare]],
        is_proven: bool,
    ) -> None:
        """Nothing happens yet.

        Args:
            port: to which the program connected.
            admit: gives what is to be put into a request whose `Host` says this name; raises Misdirected.
            dial: connects to where the program wanted to go. Raises OSError.
            is_proven: whom *dial* connects to is who the program means. Else it is called once: later somebody else
                may be there.
        """
        self._client, self._port, self._admit, self._dial, self._is_proven = client, port, admit, dial, is_proven
        self._server = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEADER_BYTES)
        self._stream: Bare | None = None
        self._was_dialled = False
        self._peer = h11.Connection(h11.CLIENT)

    async def run(self) -> None:
        """Pass requests on and answers back until one side hangs up. Raises OSError: one broke."""
        try:
            while await self._exchange():
                pass
        finally:
            await self._hang_up()

    async def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            request = await self._hear()
            if not isinstance(request, h11.Request):
                return False
            return await self._pass_on(request)
        except _Refusal as refusal:
            await self._refuse(refusal)
            return False

    async def _pass_on(self, request: h11.Request) -> bool:
        replacement = self._admitted(request)
        upgrade = _wants_websocket(request)
        body = await self._body_of(request, replacement)
        head = self._head(request, replacement, body, upgrade=upgrade)
        # A host that is about to hang up may say so, which must not be taken for the answer.
        is_fresh = self._stream is None or not await self._stream.is_silent()
        if is_fresh:
            if self._was_dialled and not self._is_proven:
                raise ConnectionResetError("the host hung up between requests")
            await self._hang_up()
            self._stream = await self._connected()
            self._was_dialled = True
            self._peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEADER_BYTES)
        try:
            first = self._peer.send(head) or b""
        except h11.LocalProtocolError:
            raise _Refusal(_BAD_GATEWAY, "A secret of this box cannot be sent in a header.") from None
        return await self._both_ways(first, body, request, is_fresh=is_fresh)

    async def _both_ways(self, first: bytes, body: _Body, request: h11.Request, *, is_fresh: bool) -> bool:
        """Send and receive at once: a host may answer before it has heard all, or only then."""
        sending = asyncio.ensure_future(self._send(first, body))
        answering = asyncio.ensure_future(self._answer(request, sending, is_fresh=is_fresh))
        try:
            await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and sending.exception() is None:
                await asyncio.wait({answering})
            if answering.done():
                return answering.result() and sending.done() and sending.exception() is None
            sending.result()  # the program broke off
            return False
        finally:
            for task in (sending, answering):
                task.cancel()
            await asyncio.wait({sending, answering})
            for task in (sending, answering):
                if not task.cancelled():
                    task.exception()  # seen

    # ── from the program ────────────────────────────────────────────────────────────────────────────────────────

    async def _hear(self) -> Any:
        """The next event of the program's side."""
        try:
            while (event := self._server.next_event()) is h11.NEED_DATA:
                if self._server.they_are_waiting_for_100_continue:
                    await self._say(h11.InformationalResponse(status_code=100, headers=[]))
                self._server.receive_data(await self._client.read())
        except h11.RemoteProtocolError as error:
            is_long = error.error_status_hint == _TOO_LARGE
            raise _Refusal(_TOO_LARGE if is_long else _BAD_REQUEST, "This is not HTTP/1.1 as it should be.") from None
        return event

    def _admitted(self, request: h11.Request) -> Replacement:
        if request.http_version not in _VERSIONS:
            raise _Refusal(_BAD_REQUEST, "Only HTTP/1.1 is spoken here.")
        hosts = [value for name, value in request.headers if name == b"host"]
        host = host_of(hosts[0]) if len(hosts) == 1 else None
        if host is None:
            raise _Refusal(_BAD_REQUEST, "The request has no Host that is a name or an IPv4 address.")
        if not request.target.startswith(b"/") and request.target != b"*":
            raise _Refusal(_BAD_REQUEST, "The target of the request must be a path.")
        if host[1] not in (None, self._port):
            raise _Refusal(_MISDIRECTED, "The Host of the request says another port than was connected to.")
        try:
            return self._admit(host[0])
        except Misdirected as error:
            raise _Refusal(_MISDIRECTED, str(error)) from None

    async def _body_of(self, request: h11.Request, replacement: Replacement) -> _Body:
        headers = dict(request.headers)
        is_chunked, length = b"transfer-encoding" in headers, int(headers.get(b"content-length", 0))
        if is_chunked and b"content-length" in headers:
            raise _Refusal(_BAD_REQUEST, "The request says its length in two ways.")
        streamed = None
        if headers.get(b"content-encoding", b"identity").lower() == b"identity":
            writing = writing_of(headers.get(b"content-type", b"").decode("latin-1"))
            streamed = None if writing is None else replacement.body(writing)
        if streamed is None or (not is_chunked and length == 0):
            return _Body(length=None if is_chunked else length, streamed=None)
        if is_chunked or length > WHOLE_BYTES:
            return _Body(length=None, streamed=streamed)
        whole = bytearray()
        while isinstance(event := await self._hear(), h11.Data):
            whole += streamed.feed(bytes(event.data))
        if not isinstance(event, h11.EndOfMessage):
            raise ConnectionResetError("hung up within a request")
        whole += streamed.end()
        return _Body(length=len(whole), streamed=None, whole=bytes(whole))

    def _head(self, request: h11.Request, replacement: Replacement, body: _Body, *, upgrade: bool) -> h11.Request:
        """The request, as the host gets it."""
        dropped = _HOP_BY_HOP | _MADE_ANEW | _named_by_connection(request.headers)
        headers: Headers = [(b"Host", dict(request.headers)[b"host"])]
        headers += [
            (raw, replacement.header(value) if replacement else value)
            for (raw, value), (name, _) in zip(request.headers.raw_items(), request.headers, strict=True)
            if name not in dropped
        ]
        if body.length is None:
            headers.append((b"Transfer-Encoding", b"chunked"))
        elif body.length or b"content-length" in dict(request.headers):
            headers.append((b"Content-Length", str(body.length).encode()))
        if upgrade:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        target = replacement.target(request.target) if replacement else request.target
        try:
            return h11.Request(method=request.method, target=target, headers=headers)
        except h11.LocalProtocolError:
            raise _Refusal(_BAD_GATEWAY, "A secret of this box cannot be sent where it stands.") from None

    # ── to the host, and back ───────────────────────────────────────────────────────────────────────────────────

    async def _connected(self) -> Bare:
        try:
            return await self._dial()
        except ssl.SSLCertVerificationError as error:
            raise _Refusal(
                _BAD_GATEWAY, f"The host's certificate is not to be trusted: {error.verify_message}."
            ) from None
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                why = "it speaks no TLS of today"
            else:
                why = os.strerror(error.errno) if error.errno else "no answer in time"
            raise _Refusal(_BAD_GATEWAY, f"The host cannot be reached: {why}.") from None

    async def _send(self, first: bytes, body: _Body) -> None:
        """The request. A host that takes no more is no error here: it may have answered."""
        stream = self._stream
        assert stream is not None

        async def pass_on(data: bytes) -> None:
            with contextlib.suppress(OSError):
                await stream.write(data)

        await pass_on(first)
        if body.whole is not None:
            await pass_on(self._made(h11.Data(data=body.whole)) + self._made(h11.EndOfMessage()))
            return
        while isinstance(event := await self._hear(), h11.Data):
            data = bytes(event.data)
            if part := body.streamed.feed(data) if body.streamed else data:
                await pass_on(self._made(h11.Data(data=part)))
        if not isinstance(event, h11.EndOfMessage):
            raise ConnectionResetError("hung up within a request")
        rest = self._made(h11.Data(data=end)) if body.streamed and (end := body.streamed.end()) else b""
        await pass_on(rest + self._made(h11.EndOfMessage()))

    def _made(self, event: h11.Data | h11.EndOfMessage) -> bytes:
        return self._peer.send(event) or b""

    async def _answer(self, request: h11.Request, sending: "asyncio.Future[None]", *, is_fresh: bool) -> bool:
        """Pass the host's answer on; whether another request may follow."""
        stream = self._stream
        assert stream is not None
        response = await self._response(stream, is_fresh=is_fresh)
        if response.status_code == _SWITCHING:
            await asyncio.wait({sending})
            await self._switch(stream, response)
            return False
        headers = _passed_back(response)
        if not sending.done():  # what is left of the request would be taken for the next one
            headers.append((b"Connection", b"close"))
        try:
            await self._say(h11.Response(status_code=response.status_code, reason=response.reason, headers=headers))
            while isinstance(event := await self._heard(stream), h11.Data):
                await self._say(h11.Data(data=bytes(event.data)))
            if not isinstance(event, h11.EndOfMessage):
                raise ConnectionResetError("the host hung up within an answer")
            await self._say(h11.EndOfMessage())
        except (h11.RemoteProtocolError, h11.LocalProtocolError):
            raise ConnectionResetError("the host's answer is no HTTP/1.1") from None
        return await self._is_next()

    async def _is_next(self) -> bool:
        """Whether both connections can carry another request, and made ready for it."""
        if self._server.our_state is not h11.DONE or self._server.their_state is not h11.DONE:
            return False
        self._server.start_next_cycle()
        # What has come behind the answer is none of the next request's: a host that is about to hang up may say so.
        is_over = self._peer.our_state is h11.DONE and self._peer.their_state is h11.DONE
        if is_over and not self._peer.trailing_data[0]:
            self._peer.start_next_cycle()
            return True
        await self._hang_up()
        return self._is_proven

    async def _response(self, stream: Bare, *, is_fresh: bool) -> h11.Response | h11.InformationalResponse:
        """What the host answers, without what it says before that."""
        try:
            while True:
                event = await self._heard(stream)
                if isinstance(event, h11.InformationalResponse) and event.status_code != _SWITCHING:
                    continue
                if isinstance(event, h11.Response | h11.InformationalResponse):
                    return event
                raise h11.RemoteProtocolError("no answer")
        except h11.RemoteProtocolError:
            raise _Refusal(_BAD_GATEWAY, "The host's answer is no HTTP/1.1.") from None
        except OSError:
            if is_fresh:
                raise _Refusal(_BAD_GATEWAY, "The host hung up without an answer.") from None
            # It was about to close a connection that had been used before: what the program sees of it is the same,
            # and programs ask again then.
            raise

    async def _heard(self, stream: Bare) -> Any:
        """The next event of the host's side."""
        while (event := self._peer.next_event()) is h11.NEED_DATA:
            data = await stream.read()
            if not data and self._peer.their_state is h11.SEND_RESPONSE:
                raise ConnectionResetError("the host hung up without an answer")
            self._peer.receive_data(data)
        return event

    async def _switch(self, stream: Bare, response: h11.InformationalResponse | h11.Response) -> None:
        """Both sides speak something else from here on."""
        headers = [*_passed_back(response), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        await self._say(h11.InformationalResponse(status_code=_SWITCHING, reason=response.reason, headers=headers))
        if early := self._server.trailing_data[0]:
            await stream.write(early)
        if early := self._peer.trailing_data[0]:
            await self._client.write(early)
        await relay(self._client, stream)

    async def _say(self, event: h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage) -> None:
        if data := self._server.send(event):
            await self._client.write(data)

    async def _refuse(self, refusal: _Refusal) -> None:
        """Answer for the host, where nothing was answered yet."""
        if self._server.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        text = f"{refusal.text}\n".encode()
        headers: Headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", str(len(text)).encode()),
            (b"Connection", b"close"),
        ]
        with contextlib.suppress(h11.LocalProtocolError):
            await self._say(h11.Response(status_code=refusal.status, headers=headers))
            await self._say(h11.Data(data=text))
            await self._say(h11.EndOfMessage())

    async def _hang_up(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.close()


def _wants_websocket(request: h11.Request) -> bool:
    upgrades = b",".join(value for name, value in request.headers if name == b"upgrade").lower().split(b",")
    return request.method == b"GET" and b"websocket" in (one.strip() for one in upgrades)


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    values = (value for name, value in headers if name == b"connection")
    return frozenset(one.strip().lower() for value in values for one in value.split(b","))


def _passed_back(response: h11.Response | h11.InformationalResponse) -> Headers:
    dropped = _HOP_BY_HOP | _NOT_TOLD | _named_by_connection(response.headers)
    return [
        (raw, value)
        for (raw, value), (name, _) in zip(response.headers.raw_items(), response.headers, strict=True)
        if name not in dropped
    ]
