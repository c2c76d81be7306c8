"""What an operator can set about the code-sandbox dialect: `[dialects.code-sandbox]`.

The reference's own variables, which are Go durations and the like, come by `variables`.
"""

from dataclasses import dataclass

from stockade.config import setting

__all__ = ["CodeSandboxSettings"]

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class CodeSandboxSettings:
    """Settings of the code-sandbox dialect."""

    timeout_s: float = setting(
        3.0, at_least=1e-9, help="Time that a program has when its request sets none (`SANDBOX_TIMEOUT`)."
    )
    max_timeout_s: float = setting(
        60.0,
        at_least=1e-9,
        help="The most that a request may ask for (`SANDBOX_MAX_TIMEOUT`); `sandbox.maximum.wall_s` counts as well.",
    )
    all_languages: bool = setting(
        False,
        help="Let `POST /v1/execute` take every language that this server has, not only Go, Python and JavaScript. "
        "`POST /v1/jobs` takes all of them in any case.",
    )
    auth_required: bool = setting(
        False,
        env=("AUTH_REQUIRED",),
        help="Demand a key or a token on loopback addresses, too. Addresses that others can reach demand one always, "
        "unless `server.insecure` says otherwise.",
    )
    cors_origin: str = setting(
        "*",
        env=("CORS_ORIGIN",),
        help="The origin whose pages may read answers: `*` for any (with `server.cors_enabled`, for those that the "
        "server's own rules allow), empty for none. While no key is demanded, pages of other origins than "
        "`server.cors_allowed_origins` are refused all the same.",
    )
    max_body_bytes: int = setting(
        _MIB, at_least=1024, help="Largest body of a request; a larger one is answered with 413."
    )
    max_batch_bytes: int = setting(16 * _MIB, at_least=1024, help="Largest body of `POST /v1/jobs/batch`.")
    write_timeout_s: float = setting(
        10.0,
        at_least=0.1,
        help="Longest time until an answer is there (`HTTP_WRITE_TIMEOUT`), `?wait=` included.",
    )
    streams_per_key: int = setting(
        100, at_least=1, help="Streams of events that one key, or one address without keys, may follow at once."
    )
