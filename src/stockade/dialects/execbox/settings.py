"""What an operator can set about the execbox dialect: `[dialects.execbox]`."""

from dataclasses import dataclass

from stockade.config import setting

__all__ = ["ExecboxSettings"]

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ExecboxSettings:
    """Settings of the execbox dialect."""

    url_host: str = setting(
        "localhost",
        help="Name or address under which clients reach exposed ports; it stands in their URLs.",
    )
    executor_url: str = setting(
        "",
        help="URL of this server as the clients of sessions with an `executor` reach it: their `executor.url` is made "
        "of it. Empty takes the one that the request came to; behind a proxy that speaks TLS, set it.",
    )
    default_cpu_millis: int = setting(
        1000, at_least=100, help="`resources.cpuMillis` of a session that sets none; 1000 is one core."
    )
    default_memory_mb: int = setting(512, at_least=128, help="`resources.memoryMB` of a session that sets none.")
    default_timeout_s: float = setting(
        300.0,
        at_least=1.0,
        help="Life of a session that sets no `resources.timeoutMs`; cut to what its key's tier allows.",
    )
    default_disk_bytes: int = setting(
        1024 * _MIB,
        at_least=_MIB,
        help="What a session may write to its file system; cut to `sandbox.maximum.disk_bytes`.",
    )
    max_cpu_millis: int = setting(8000, at_least=100, help="The most that `resources.cpuMillis` may ask for.")
    max_memory_mb: int = setting(8192, at_least=128, help="The most that `resources.memoryMB` may ask for.")
    max_timeout_s: float = setting(
        300.0,
        at_least=1.0,
        help="The most that `resources.timeoutMs` may ask for. The protocol says 300 s; it can be raised to "
        "`live.most_lifetime_s`. `extend` goes that far in any case.",
    )
    processes: int = setting(
        512, at_least=1, help="Processes and threads of a session; cut to `sandbox.maximum.processes`."
    )
    open_files: int = setting(
        1024, at_least=16, help="Open descriptors of a session's process; cut to `sandbox.maximum.open_files`."
    )
    max_body_bytes: int = setting(
        16 * _MIB, at_least=1024, help="Largest JSON body; files to be built into an image come in it."
    )
    max_setup: int = setting(256, at_least=1, help="Most entries of `setup`, and of `files`.")
    streams_per_key: int = setting(1000, at_least=1, help="WebSocket connections that one key may have open at once.")
    public_rate_per_s: int = setting(
        10, at_least=1, help="Requests a second from one address to `/v1/waitlist` and `/v1/quota-requests`."
    )
