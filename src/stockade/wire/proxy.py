"""One HTTP request to a service in a sandbox, and its answer: both streamed, as fast as the slower side takes them.

Nothing is kept but what is on its way. The service is a tenant's and may say anything: what it says is parsed by h11
and written anew by our server, so that nothing but one answer can come of it.
"""

import asyncio
import socket
from typing import Any

import h11
from starlette.types import Message, Receive, Scope, Send

from stockade.wire.proxy_headers import Headers, Target, first, request_headers, response_headers

__all__ = ["AnswerBroken", "BadAnswer", "BadRequest", "Exchange"]

READ_BYTES = 128 * 1024
MOST_HEADER_BYTES = 64 * 1024


class BadRequest(Exception):
    """The request cannot be passed on; nothing has been sent to either side."""


class BadAnswer(Exception):
    """What came from inside is no answer in HTTP; nothing has been sent to the client."""


class AnswerBroken(Exception):
    """The answer broke off; the client has got a part of it and must be cut off, or it would take that for all."""


class Exchange:
    """One request and its answer, over a connection that is used for nothing else."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        connection: socket.socket,
        target: Target,
        *,
        answer_s: float,
        idle_s: float,
    ) -> None:
        """Take what it needs; nothing is sent yet.

        Args:
            connection: connected and non-blocking; the caller closes it.
            answer_s: time for the head of the answer, once the request has been sent.
            idle_s: time in which something must pass, in either direction.
        """
        self._scope = scope
        self._receive = receive
        self._send = send
        self._connection = connection
        self._target = target
        self._answer_s = answer_s
        self._idle_s = idle_s
        self._host = first(scope["headers"], b"host")
        self._loop = asyncio.get_running_loop()
        self._peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEADER_BYTES)
        self.has_read_all = False
        """Whether nothing more of the request's body is to come."""
        self._has_started = False
        """Whether the client has the head of an answer."""
        self._has_asked = False
        """Whether the whole request has been sent."""
        self._client_left = False
        self._patience = asyncio.timeout(None)

    async def run(self) -> None:
        """Pass the request on and the answer back. Returns also when the client has left.

        Raises:
            BadRequest, BadAnswer, AnswerBroken: see there.
            TimeoutError: no answer in time; nothing has been sent to the client.
        """
        try:
            async with asyncio.timeout(self._idle_s) as patience:
                self._patience = patience
                await self._ask_and_answer()
        except TimeoutError:
            if self._has_started:
                raise AnswerBroken("nothing passed for too long") from None
            raise
        except (OSError, h11.RemoteProtocolError, BadAnswer) as error:
            if self._client_left:
                return
            if self._has_started:
                raise AnswerBroken(str(error)) from error
            raise BadAnswer(_reason(error)) from error

    async def _ask_and_answer(self) -> None:
        head = self._head()
        try:
            await self._loop.sock_sendall(self._connection, head)
        except OSError:
            pass  # it may have answered all the same
        upload = asyncio.create_task(self._upload())
        try:
            await self._answer()
        finally:
            upload.cancel()
            await asyncio.wait([upload])
        if not upload.cancelled() and (error := upload.exception()) is not None:
            raise error

    def _head(self) -> bytes:
        scope = self._scope
        headers = request_headers(
            scope["headers"],
            self._target,
            client=scope["client"][0] if scope.get("client") else "",
            scheme=scope.get("scheme", "http"),
        )
        if first(scope["headers"], b"transfer-encoding") is not None:
            headers = [(name, value) for name, value in headers if name != b"content-length"]
            headers.append((b"transfer-encoding", b"chunked"))
        headers.append((b"connection", b"close"))
        try:
            request = h11.Request(method=scope["method"], target=self._target.path, headers=headers)
            return self._peer.send(request) or b""
        except h11.LocalProtocolError as error:
            raise BadRequest(str(error)) from error

    async def _upload(self) -> None:
        """Pass the request's body on, then wait for the client to leave: the service is told then, whatever it does."""
        is_taken = True
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.has_read_all = self._client_left = True
                self._cut()
                return
            self.has_read_all = not message.get("more_body", False)
            if not is_taken or self._has_asked:
                continue  # nobody reads it inside any more; the answer says why
            try:
                if body := message.get("body", b""):
                    await self._say(h11.Data(data=body))
                    self._renew(self._idle_s)
                if self.has_read_all:
                    await self._say(h11.EndOfMessage())
                    self._has_asked = True
                    if not self._has_started:
                        self._renew(self._answer_s)
            except OSError:
                is_taken = False
            except h11.LocalProtocolError:  # it has answered already and is done
                is_taken = False

    async def _say(self, event: Any) -> None:
        for part in self._peer.send_with_data_passthrough(event) or ():
            await self._loop.sock_sendall(self._connection, part)

    async def _answer(self) -> None:
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                await self._begin(event)
            elif isinstance(event, h11.Data):
                await self._pass({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
            elif isinstance(event, h11.EndOfMessage):
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            elif isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    raise BadAnswer("it switched protocols unasked")
            else:
                raise BadAnswer("it closed the connection without an answer")

    async def _begin(self, answer: h11.Response) -> None:
        if not 200 <= answer.status_code < 600:
            raise BadAnswer(f"it answered with status {answer.status_code}")
        headers: Headers = response_headers(
            list(answer.headers), self._target, status=answer.status_code, host=self._host
        )
        self._has_started = True
        await self._pass({"type": "http.response.start", "status": answer.status_code, "headers": headers})

    async def _pass(self, message: Message) -> None:
        self._renew(self._idle_s)
        await self._send(message)

    async def _next(self) -> Any:
        while (event := self._peer.next_event()) is h11.NEED_DATA:
            self._peer.receive_data(await self._loop.sock_recv(self._connection, READ_BYTES))
        return event

    def _renew(self, seconds: float) -> None:
        if not self._patience.expired():
            self._patience.reschedule(self._loop.time() + seconds)

    def _cut(self) -> None:
        """End the connection inside, and with it whatever waits for something to come from there."""
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended


def _reason(error: Exception) -> str:
    if isinstance(error, h11.RemoteProtocolError):
        return f"its answer is not HTTP: {error}"
    return str(error) if isinstance(error, BadAnswer) else f"it broke the connection off: {error}"
