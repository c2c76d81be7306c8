"""What an operator can set about the executor dialect: `[dialects.executor]`."""

from dataclasses import dataclass

from stockade.config import setting

__all__ = ["ExecutorSettings"]

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """Settings of the executor dialect."""

    max_body_bytes: int = setting(
        128 * _MIB,
        at_least=64 * 1024,
        help="Largest body of a request: what a file is written with comes in one. Larger ones are answered with 413.",
    )
    bodies_bytes: int = setting(
        512 * _MIB,
        at_least=64 * 1024,
        help="Bytes of large bodies that may be in memory at once, each in up to three copies. What comes beyond that "
        "is answered with 503, and clients send it again. At least `max_body_bytes`.",
    )
    requests_per_sandbox: int = setting(
        512,
        at_least=1,
        help="Requests for one sandbox that may be under way at once, readers of logs among them; more get 503. "
        "`stockade executor` has no such bound.",
    )
    max_output_bytes: int = setting(
        256 * _MIB,
        at_least=_MIB,
        help="Most that a command may print to each stream for `/run`, and the longest line of `/run_streaming`. One "
        "that prints more is killed; the answer holds what came before, and says so. Beyond 1 MiB it is kept on disk "
        "(in the directory for temporary files) until it is answered.",
    )
    spool_bytes: int = setting(
        8 * 1024 * _MIB,
        at_least=16 * _MIB,
        help="Most that all commands together may keep so on disk; those of one sandbox, a quarter of it. A command "
        "that would need more is killed.",
    )
    max_read_bytes: int = setting(256 * _MIB, at_least=_MIB, help="Largest file that `/read_file` answers with.")
    log_lines: int = setting(
        10_000,
        at_least=1,
        help="Lines of a process, over both streams, that a reader of its log is told before what is new.",
    )
    wrong_secrets_per_s: int = setting(
        10,
        at_least=0,
        help="Wrong secrets a second from one address, over time; 0: no limit. An address above it is answered with "
        "429, with a right secret, too: behind a proxy of your own, all clients may have one address.",
    )
    wrong_secrets_burst: int = setting(
        50, at_least=1, help="Wrong secrets that one address may send at once after a pause."
    )
