"""The reference's own environment variables, as settings of ours.

Those that mean nothing here, for there is no Docker and there are no runners with names, are answered with one message
that says what takes their place. A setting's own variable (`STOCKADE_…`) always wins over these.
"""

from collections.abc import Mapping
from urllib.parse import quote

from stockade.dialects.code_sandbox.durations import SECOND_NS, BadDuration, format_ns, parse_ns
from stockade.dialects.code_sandbox.translate import NAME, SPELLINGS
from stockade.settings import ConfigError

__all__ = ["VARIABLES", "translate_environment"]

VARIABLES = (
    "HTTP_HOST", "HTTP_PORT", "HTTP_READ_TIMEOUT", "HTTP_WRITE_TIMEOUT", "HTTP_SHUTDOWN_TIMEOUT",
    "REDIS_ADDR", "REDIS_PASSWORD", "REDIS_DB", "JOB_TTL",
    "SANDBOX_TIMEOUT", "SANDBOX_MAX_TIMEOUT", "SANDBOX_LANGUAGE_CONTAINERS",
    "SANDBOX_CONTAINER", "SANDBOX_JOB_DIR", "SANDBOX_CONTAINER_JOB_DIR", "SANDBOX_DOCKER_BIN", "SANDBOX_DOCKER_USER",
    "SANDBOX_NETWORK",
)  # fmt: skip
"""All that is translated or answered here. `DATABASE_URL`, `JWT_SECRET`, `REDIS_URL` and `AUTH_REQUIRED` are
other names of settings of ours; so is `CORS_ORIGIN`, which does more here."""

_ANSWERED = {
    "SANDBOX_CONTAINER": "every worker runs every installed language, so no fallback is needed; "
    "SANDBOX_LANGUAGE_CONTAINERS or jobs.pools bound how many of a language run at once",
    "SANDBOX_JOB_DIR": "each run's files live in its own sandbox and vanish with it; data_dir is where the server "
    "keeps what is its own",
    "SANDBOX_CONTAINER_JOB_DIR": "each run's files live in its own sandbox, in /code, and vanish with it",
    "SANDBOX_DOCKER_BIN": "sandboxes are made without Docker; sandbox.backend says by what",
    "SANDBOX_DOCKER_USER": "every sandbox has a user of its own; server.user says whom the server becomes",
}
_NETWORK = "runs have no network at all; sandboxes that stay can have one, by the [network] settings"
_DEFAULT_HOST, _DEFAULT_PORT = "0.0.0.0", 8080  # fmt: skip
_DEFAULT_REDIS = "redis:6379"
_OWN_PORT = 8080
"""The merged server's."""
_OTHER_PORT = 8000
"""The merged server's, where the reference's variables give the usual one to this dialect."""
_DEFAULT_MAXIMUM_NS = 300 * SECOND_NS
"""`sandbox.maximum.wall_s`, and `cpu_s`."""


def translate_environment(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The reference's variables in *environ* as variables of ours, and what the operator is to be told.

    A variable that is set but empty counts as not set; a duration or number that does not parse as its default, and the
    messages say so.

    Raises:
        ConfigError: HTTP_PORT or SANDBOX_LANGUAGE_CONTAINERS is so wrong that the reference would not start either.
    """
    given = {name: value for name, value in environ.items() if value}
    found = _Found(given)
    _listen(found)
    _durations(found)
    _redis(found)
    _pools(found)
    _cors(found)
    for name, text in _ANSWERED.items():
        if name in given:
            found.say(f"{name} has no effect: {text}")
    if "SANDBOX_NETWORK" in given:
        found.say(f"SANDBOX_NETWORK has no effect: {_NETWORK}")
    return found.variables, found.messages


class _Found:
    """What has been translated so far."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.given = given
        self.variables: dict[str, str] = {}
        self.messages: list[str] = []

    def set(self, variable: str, value: str, *, also: tuple[str, ...] = ()) -> bool:
        """Set *variable* unless the operator has, by itself or by one of its other names."""
        if any(name in self.given for name in (variable, *also)):
            return False
        self.variables[variable] = value
        return True

    def say(self, message: str) -> None:
        self.messages.append(message)

    def duration_ns(self, name: str, *, default: str) -> int | None:
        """A duration; `None` where it is not set or does not parse."""
        text = self.given.get(name)
        if text is None:
            return None
        try:
            return parse_ns(text.strip())
        except BadDuration:
            self.say(f"{name}={text!r} is no duration like 1m30s; {default} is used")
            return None

    def whole(self, name: str, *, default: int) -> int | None:
        """A number; `None` where it is not set or does not parse."""
        text = self.given.get(name)
        if text is None:
            return None
        digits = text.strip().removeprefix("+").removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
            self.say(f"{name}={text!r} is no whole number; {default} is used")
            return None
        return int(text)


def _listen(found: _Found) -> None:
    if "HTTP_HOST" not in found.given and "HTTP_PORT" not in found.given:
        return
    asked = found.whole("HTTP_PORT", default=_DEFAULT_PORT)
    port = _DEFAULT_PORT if asked is None else asked
    if not 1 <= port <= 65535:
        raise ConfigError(f"environment variable HTTP_PORT: must be from 1 to 65535 (got {port})")
    host = found.given.get("HTTP_HOST", _DEFAULT_HOST).strip()
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    others = found.given.get("STOCKADE_SERVER_LISTEN", "")
    if any(part.partition("=")[0].strip() == NAME for part in others.split(",")):
        return
    found.variables["STOCKADE_SERVER_LISTEN"] = ",".join(part for part in (others, f"{NAME}={address}") if part)
    # The Code Sandbox API gets the address; what else the server speaks must not stand in its way.
    merged = found.given.get("STOCKADE_SERVER_PORT") or found.given.get("PORT")
    if merged is None and port == _OWN_PORT:
        found.variables["STOCKADE_SERVER_PORT"] = str(_OTHER_PORT)
        found.say(
            f"HTTP_HOST and HTTP_PORT give {address} to the Code Sandbox API alone; the server with all dialects "
            f"listens on port {_OTHER_PORT}, unless PORT says otherwise"
        )


def _durations(found: _Found) -> None:
    prefix = "STOCKADE_DIALECTS_CODE_SANDBOX_"
    for name, default, variable in (
        ("HTTP_READ_TIMEOUT", "30s", "STOCKADE_SERVER_BODY_TIMEOUT_S"),
        ("HTTP_WRITE_TIMEOUT", "10s", f"{prefix}WRITE_TIMEOUT_S"),
        ("HTTP_SHUTDOWN_TIMEOUT", "30s", "STOCKADE_SERVER_DRAIN_S"),
        ("SANDBOX_TIMEOUT", "3s", f"{prefix}TIMEOUT_S"),
        ("SANDBOX_MAX_TIMEOUT", "1m0s", f"{prefix}MAX_TIMEOUT_S"),
        ("JOB_TTL", "24h0m0s", "STOCKADE_JOBS_RETENTION_S"),
    ):
        length_ns = found.duration_ns(name, default=default)
        if length_ns is None or (name == "JOB_TTL" and length_ns == 0 and _never(found, variable)):
            continue
        if length_ns <= 0:
            found.say(f"{name}={found.given[name]!r} is not above zero; {default} is used")
            continue
        found.set(variable, _seconds(length_ns))
        if name in ("SANDBOX_TIMEOUT", "SANDBOX_MAX_TIMEOUT"):
            _allow(found, length_ns)


def _never(found: _Found, variable: str) -> bool:
    found.set(variable, "0")
    return True


def _allow(found: _Found, length_ns: int) -> None:
    """Let a run take so long, where the server would not."""
    if length_ns <= _DEFAULT_MAXIMUM_NS:
        return
    raised = [
        found.set(variable, _seconds(max(length_ns, _parsed_ns(found.variables.get(variable)))))
        for variable in ("STOCKADE_SANDBOX_MAXIMUM_WALL_S", "STOCKADE_SANDBOX_MAXIMUM_CPU_S")
    ]
    if any(raised):
        found.say(f"sandbox.maximum.wall_s and cpu_s are raised to {format_ns(length_ns)}, for every dialect")


def _redis(found: _Found) -> None:
    if not any(name in found.given for name in ("REDIS_ADDR", "REDIS_PASSWORD", "REDIS_DB")):
        return
    address = found.given.get("REDIS_ADDR", _DEFAULT_REDIS).strip()
    password = found.given.get("REDIS_PASSWORD", "")
    number = found.whole("REDIS_DB", default=0) or 0
    if number < 0:
        found.say(f"REDIS_DB={number} is below zero; 0 is used")
        number = 0
    if ":" not in address:
        address = f"{address}:6379"
    secret = f":{quote(password, safe='')}@" if password else ""
    found.set("STOCKADE_JOBS_REDIS_URL", f"redis://{secret}{address}/{number}", also=("REDIS_URL",))


def _pools(found: _Found) -> None:
    text = found.given.get("SANDBOX_LANGUAGE_CONTAINERS", "")
    pools: dict[str, list[str]] = {}
    for entry in text.split(","):
        if not entry.strip():
            continue
        language, colon, runners = entry.partition(":")
        names = [name.strip() for name in runners.split("|") if name.strip()]
        if not colon or not language.strip() or not names:
            raise ConfigError(
                f"environment variable SANDBOX_LANGUAGE_CONTAINERS: {entry.strip()!r} is not LANGUAGE:NAME|NAME, as in "
                "go:a|b,python:c"
            )
        known = SPELLINGS.get(language.strip().lower())
        if known is None:
            found.say(f"SANDBOX_LANGUAGE_CONTAINERS: {language.strip()!r} is no language of this protocol; left out")
            continue
        pool = pools.setdefault(known, [])
        pool += (name for name in names if name not in pool)
    if pools and found.set("STOCKADE_JOBS_POOLS", ",".join(f"{name}={len(pool)}" for name, pool in pools.items())):
        counts = ", ".join(f"{len(pool)} of {name}" for name, pool in pools.items())
        found.say(f"SANDBOX_LANGUAGE_CONTAINERS: as many programs run at once as it names runners: {counts}")


def _cors(found: _Found) -> None:
    """Let in the pages of an origin that is named: a server that demands no key refuses those of all others."""
    origin = found.given.get("CORS_ORIGIN", "").strip()
    if origin in ("", "*") or "CORS_ENABLED" in found.given:
        return
    if found.set("STOCKADE_SERVER_CORS_ALLOWED_ORIGINS", origin, also=("CORS_ALLOWED_ORIGINS",)):
        found.set("STOCKADE_SERVER_CORS_ENABLED", "true")
        found.say(f"CORS_ORIGIN lets pages of {origin} use the server, with every dialect")


def _seconds(length_ns: int) -> str:
    """As the settings take it, to the nanosecond."""
    whole, rest = divmod(length_ns, SECOND_NS)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".")


def _parsed_ns(seconds: str | None) -> int:
    return round(float(seconds) * SECOND_NS) if seconds else 0
