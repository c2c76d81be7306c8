"""The gRPC service of isobox. Needs the extra `grpc`.

What becomes of a program, and what is wrong with it, is said in the answer (`status`, `exit_code` -1); only who may not
ask, or must wait, gets a gRPC status.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf.message import DecodeError

from stockade import __version__
from stockade.config import ServerConfig
from stockade.dialects.isobox import translate
from stockade.dialects.isobox.access import Access
from stockade.dialects.isobox.failures import from_error
from stockade.dialects.isobox.messages import MESSAGES, METHODS, SERVICE, STATUS
from stockade.dialects.isobox.service import Isobox
from stockade.dialects.isobox.wire import ExecuteBody, checked
from stockade.errors import (
    Denied,
    LanguageUnavailable,
    LimitExceeded,
    QueueFull,
    StockadeError,
    Unavailable,
    UnknownLanguage,
)
from stockade.model import Outcome, RunResult
from stockade.wire.auth import Credentials
from stockade.wire.clients import normal_address

__all__ = ["serving"]

log = structlog.get_logger()

STOP_S = 5.0
"""Time that calls have to end when the server stops."""
SPARE_CALLS = 256
"""Beyond those that run or wait for a place: health checks, and such as are refused."""
CALLS_PER_CONNECTION = 128
HANDSHAKE_S = 10
"""Time that a client has to begin with HTTP/2; gRPC's own is two minutes."""
IDLE_S = 300
"""A connection without a call is closed after that."""
METADATA_BYTES = 16 * 1024
ENVELOPE_BYTES = 64 * 1024
"""What a message may hold beside the streams."""


@asynccontextmanager
async def serving(isobox: Isobox, access: Access, *, host: str, server: ServerConfig) -> AsyncIterator[int]:
    """Serve gRPC on *host* at the port of the settings, until the block ends. The value is the port.

    Raises:
        Unavailable: the port is taken.
    """
    settings, queue = isobox.settings, isobox.engine.queue
    output_bytes = isobox.engine.limits.maximum.output_bytes
    listener = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", server.max_body_bytes),
            # Two streams; each invalid byte becomes a character of three.
            ("grpc.max_send_message_length", 2 * 3 * output_bytes + ENVELOPE_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", CALLS_PER_CONNECTION),
            ("grpc.server_handshake_timeout_ms", 1000 * HANDSHAKE_S),
            ("grpc.max_connection_idle_ms", 1000 * IDLE_S),
            ("grpc.max_metadata_size", METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ),
        maximum_concurrent_rpcs=queue.places + queue.length + SPARE_CALLS,
    )
    service = Service(isobox=isobox, access=access)
    calls = {
        "ExecuteCode": service.execute_code,
        "HealthCheck": service.health_check,
        "GetSupportedLanguages": service.get_supported_languages,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            _reading(request, calls[name]),
            response_serializer=MESSAGES[response].SerializeToString,
        )
        for name, (request, response) in METHODS.items()
    }
    listener.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    address = f"[{host}]:{settings.grpc_port}" if ":" in host else f"{host}:{settings.grpc_port}"
    try:
        port = listener.add_insecure_port(address)
    except RuntimeError as error:
        raise Unavailable(f"dialects.isobox: gRPC cannot listen on {address}: is the port in use?") from error
    await listener.start()
    log.info("isobox.grpc_started", host=host, port=port)
    try:
        yield port
    finally:
        await listener.stop(STOP_S)


@dataclass(frozen=True, kw_only=True)
class Service:
    """The three calls."""

    isobox: Isobox
    access: Access
    started: float = field(default_factory=time.monotonic)

    async def execute_code(self, request: Any, context: Any) -> Any:
        """Run a program once. A client that cancels its call ends the program."""
        try:
            actor = await self.access.authenticator.actor(_credentials(context))
            if self.isobox.rates is not None and not self.isobox.rates.take(actor).allowed:
                raise LimitExceeded("too many requests; try again later")
            result, limits = await self.isobox.run(actor, _to_body(request))
        except Denied as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        except LimitExceeded as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except QueueFull as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except StockadeError as error:
            return _refusal(error)
        answer = translate.from_run(result, limits)
        return MESSAGES["ExecuteCodeResponse"](
            stdout=answer["stdout"],
            stderr=answer["stderr"],
            exit_code=answer["exit_code"],
            time_taken=answer["time_taken"] or 0.0,
            memory_used=answer["memory_used"] or 0,
            status=STATUS[_status(result)],
        )

    async def health_check(self, _request: Any, _context: Any) -> Any:
        """Whether the server works."""
        return MESSAGES["HealthCheckResponse"](
            status="healthy",
            service="isobox",
            version=__version__,
            uptime_seconds=int(time.monotonic() - self.started),
        )

    async def get_supported_languages(self, _request: Any, _context: Any) -> Any:
        """The languages that are installed here."""
        known = self.isobox.engine.languages
        entry = MESSAGES["LanguageInfo"]
        return MESSAGES["GetSupportedLanguagesResponse"](
            languages=[
                entry(
                    name=language.name,
                    display_name=language.display_name,
                    docker_image=language.image,
                    requires_compilation=language.compile is not None,
                    file_extensions=language.extensions,
                )
                for language in known.all()
                if known.is_available(language.name)
            ]
        )


def _reading(name: str, call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[bytes, Any], Awaitable[Any]]:
    """*call* for the bytes of a message: gRPC takes malformed ones for mistakes of ours, and logs a trace of each."""

    async def read(data: bytes, context: Any) -> Any:
        try:
            message = MESSAGES[name].FromString(data)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message is no {name}")
        return await call(message, context)

    return read


def _credentials(context: Any) -> Credentials:
    """The key travels bare in `authorization`; a token as in HTTP, after `Bearer `."""
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    sent = metadata.get("authorization")
    return Credentials(address=_address(context.peer()), api_key=sent, authorization=sent)


def _address(peer: str) -> str:
    """Of `ipv4:127.0.0.1:5000`, or `ipv6:%5B::1%5D:5000` with its brackets escaped."""
    host = unquote(peer.partition(":")[2]).rpartition(":")[0]
    return normal_address(host.strip("[]"))


def _to_body(request: Any) -> ExecuteBody:
    members: dict[str, Any] = {"language": request.language, "code": request.code, "template": request.template}
    if request.HasField("resource_limits"):
        limits = request.resource_limits
        members["resource_limits"] = {f.name: getattr(limits, f.name) for f in limits.DESCRIPTOR.fields}
    return checked(ExecuteBody, members)


def _status(result: RunResult) -> str:
    if result.process is None:
        return "COMPILATION_ERROR"
    match result.process.outcome:
        case Outcome.WALL_TIME | Outcome.CPU_TIME:
            return "TIMEOUT"
        case Outcome.MEMORY:
            return "MEMORY_LIMIT_EXCEEDED"
    return "SUCCESS" if result.process.succeeded else "RUNTIME_ERROR"


def _refusal(error: StockadeError) -> Any:
    _, title, message = from_error(error)
    unsupported = isinstance(error, UnknownLanguage | LanguageUnavailable)
    return MESSAGES["ExecuteCodeResponse"](
        exit_code=-1,
        status=STATUS["UNSUPPORTED_LANGUAGE" if unsupported else "INTERNAL_ERROR"],
        error_message=f"{title}: {message}" if message else title,
    )
