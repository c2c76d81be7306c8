"""The configuration: one frozen tree from defaults, a TOML file, the environment and options, each over the one before.

Each field says itself what it is for; `docs/configuration.md` is generated from here (`make docs`).
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from stockade.config_accounts import AccountsConfig, DatabaseConfig
from stockade.config_boxes import BoxesConfig, DisksConfig, RegistriesConfig
from stockade.config_jobs import JobsConfig
from stockade.config_portal import PortalConfig
from stockade.config_ports import PortsConfig
from stockade.config_sandboxes import BuildsConfig, ImagesConfig, LiveConfig, NetworkConfig
from stockade.config_users import UsersConfig
from stockade.model import Limits
from stockade.settings import ConfigError, Given, Setting, construct, from_environment, from_table, read, setting
from stockade.settings import describe as _describe

__all__ = [
    "CacheConfig",
    "Config",
    "ConfigError",
    "LogConfig",
    "QueueConfig",
    "SandboxConfig",
    "ServerConfig",
    "Setting",
    "TemplateConfig",
    "TracingConfig",
    "default_data_dir",
    "describe",
    "is_loopback",
    "load",
    "parse_address",
    "setting",
]

SYSTEM_FILE = Path("/etc/stockade/stockade.toml")
FILE_NAME = "stockade.toml"
SECTIONS = (
    "server", "database", "accounts", "users", "portal", "jobs", "sandbox", "live", "network", "ports", "images",
    "builds", "templates", "queue", "cache", "log", "tracing", "dialects",
)  # fmt: skip

_TEMPLATE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_TEMPLATE_VARIABLE = re.compile(r"STOCKADE_TEMPLATES_([A-Z0-9][A-Z0-9_]*)_(?:LANGUAGE|IMAGE|PRELOAD)")
_ANY_NAME = "<name>"
_MOST_PRELOADED = 64

_MIB = 1024 * 1024
_GIB = 1024 * _MIB

LIMITS_HELP = {
    "wall_s": "Wall-clock time from the program's start.",
    "cpu_s": "CPU time, user and system, of all processes together.",
    "cpus": "CPU rate: how many processors' worth of time may be used at once.",
    "memory_bytes": "Memory of all processes, page cache and files of the sandbox together; swap is closed.",
    "processes": "Processes and threads alive at once.",
    "disk_bytes": "Bytes that may be written to the sandbox's file system.",
    "disk_inodes": "Files and directories that may be made.",
    "open_files": "Open descriptors of one process.",
    "stack_bytes": "Stack of a process's main thread.",
    "output_bytes": "Bytes kept of each output stream.",
}


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def default_data_dir() -> Path:
    """/var/lib/stockade for root, else a directory in the user's home."""
    if os.geteuid() == 0:
        return Path("/var/lib/stockade")
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification tells to ignore relative paths.
    home = Path(base) if base.startswith("/") else Path.home() / ".local" / "share"
    return home / "stockade"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8000" or "[::1]:8000".

    Raises:
        ValueError: *text* is something else.
    """
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host != bare
    if not colon or not bare or not port.isdecimal() or int(port) > 65535 or (":" in bare) != bracketed:
        raise ValueError('must be HOST:PORT, like "127.0.0.1:8000" or "[::1]:8000"')
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on *host*. A name other than localhost counts as reachable."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _level(text: str) -> str:
    """A log level by any of its usual names; of a Rust filter ("info,hyper=warn"), the part for everything."""
    names = {
        "error": "error",
        "warn": "warning",
        "warning": "warning",
        "info": "info",
        "debug": "debug",
        "trace": "debug",
    }
    for part in text.lower().split(","):
        if part.strip() in names:
            return names[part.strip()]
    raise ValueError("must be error, warning, info or debug")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where the server listens and whom it answers."""

    host: str = setting(
        "127.0.0.1",
        help="Address of the merged server, which speaks every dialect. Anything but a loopback address can be "
        "reached by others: they then need an API key.",
    )
    port: int = setting(
        8080, env=("PORT",), at_least=0, at_most=65535, help="Port of the merged server; 0 takes a free one."
    )
    listen: Mapping[str, str] = setting(
        factory=dict,
        help="Dialects that also get an address of their own, where they answer exactly as their protocol says: "
        '`isobox = "127.0.0.1:8000"`. Option: `--dialect NAME=HOST:PORT`.',
    )
    dialects: tuple[str, ...] = setting(
        (), help="Dialects of the merged server; empty means every one that is installed."
    )
    api_key: str = setting(
        "",
        env=("STOCKADE_API_KEY",),
        secret=True,
        help="Presets the API key (at least 16 characters). Without it the first start makes one and prints it once.",
    )
    insecure: bool = setting(
        False,
        help="Answer without a key on addresses that others can reach, where the dialect's protocol has no "
        "authentication of its own. Anyone who can connect can then run code.",
    )
    metrics_public: bool = setting(
        False, help="Serve `/metrics` without a key also on addresses that others can reach."
    )
    trusted_hosts: tuple[str, ...] = setting(
        (),
        help="Further names in the `Host` header that are answered, beside the address itself and, on loopback, "
        "localhost. `*` allows any. On loopback the check keeps web pages in a browser from reaching the server "
        "by a name that they rebind.",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        help="Addresses, or networks in CIDR form, of reverse proxies in front of this server. Of requests that come "
        "from them, the client's address is the one that they name in `X-Forwarded-For`; without this all clients of a "
        "proxy count as one, for rate limits too.",
    )
    max_body_bytes: int = setting(
        2 * _MIB, at_least=1024, help="Largest request body; a larger one is answered with 413."
    )
    body_timeout_s: float = setting(
        30.0,
        at_least=0.1,
        help="Time that a client has to send a request's headers, and then its body; also the longest time in which it "
        "may take nothing of an answer.",
    )
    max_connections: int = setting(
        4096,
        at_least=16,
        help="Connections of clients at once, on each address. Beyond, the one that has waited longest without a "
        "request is ended for each that comes; where none waits, who comes is answered with 503. Never more than half "
        "of the descriptors that the process may have.",
    )
    drain_s: float = setting(
        30.0, at_least=0, help="After SIGTERM: time that running requests have to end before they are cancelled."
    )
    user: str = setting(
        "",
        help="When started as root: user to become once the ports are open and the warden runs. The data directory "
        "stays root's. Capabilities are given up in any case.",
    )
    cors_enabled: bool = setting(False, env=("CORS_ENABLED",), help="Answer cross-origin requests of browsers.")
    cors_allowed_origins: tuple[str, ...] = setting(
        (), env=("CORS_ALLOWED_ORIGINS",), help="Origins that may read answers; `*` means any."
    )
    cors_allowed_methods: tuple[str, ...] = setting(
        ("GET", "POST", "PUT", "DELETE", "OPTIONS"), env=("CORS_ALLOWED_METHODS",), help="Methods that they may use."
    )
    cors_allowed_headers: tuple[str, ...] = setting(
        ("Content-Type", "Authorization", "X-API-Key"),
        env=("CORS_ALLOWED_HEADERS",),
        help="Request headers that they may send.",
    )
    cors_allow_credentials: bool = setting(
        False, env=("CORS_ALLOW_CREDENTIALS",), help="Let browsers send cookies and HTTP credentials along."
    )
    cors_max_age_s: float = setting(
        3600.0,
        env=("CORS_MAX_AGE",),
        at_least=0,
        help="Time that a browser may keep the answer to a preflight request.",
    )


@dataclass(frozen=True, kw_only=True)
class DockerConfig:
    """The backend `docker`: see [backends](backends.md)."""

    socket: Path = setting(Path("/var/run/docker.sock"), help="Where the Docker engine listens.")
    gate: Path | None = setting(
        None,
        help="Where `stockade docker-gate` listens, which stands between the server and the engine. Without it, the "
        "server starts one, where it may.",
    )
    image: str = setting(
        "",
        help="Image that stands for `host`; it needs a `python3`. Without it, one is made from this machine's `/usr`.",
    )
    runtime: str = setting("", help="Runtime of its containers: `runc`, `runsc`, `kata`; the engine's own where empty.")
    spares: int = setting(4, at_least=0, at_most=64, help="Containers that are made ahead of demand.")


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """What sandboxes are made of, and what they may use."""

    backend: str = setting(
        "native", help="Where sandboxes come from that do not ask for another: see [backends](backends.md)."
    )
    backends: tuple[str, ...] = setting(
        (), help="Further backends, which a key (`stockade keys create --backend`) or a request may name."
    )
    defaults: Limits = setting(
        Limits(
            wall_s=10.0,
            cpu_s=5.0,
            cpus=1.0,
            memory_bytes=128 * _MIB,
            processes=50,
            disk_bytes=64 * _MIB,
            disk_inodes=10_000,
            open_files=100,
            stack_bytes=64 * _MIB,
            output_bytes=1 * _MIB,
        ),
        help="Limits of a run that sets none itself; a language file may ask for others.",
        members=LIMITS_HELP,
    )
    maximum: Limits = setting(
        factory=lambda: Limits(
            wall_s=300.0,
            cpu_s=300.0,
            cpus=float(processors()),
            memory_bytes=4 * _GIB,
            processes=1024,
            disk_bytes=2 * _GIB,
            disk_inodes=1_000_000,
            open_files=4096,
            stack_bytes=1 * _GIB,
            output_bytes=64 * _MIB,
        ),
        help="The most that a request may ask for.",
        members=LIMITS_HELP,
        shown={"cpus": "the host's processors"},
    )
    templates: bool = setting(
        True,
        help="Begin runs from interpreters that have been started already. `false` starts each from nothing: slower, "
        "and otherwise the same. See [templates](templates.md).",
    )
    host_paths: tuple[str, ...] = setting(
        (),
        help="Further directories of this machine that the `host` image shows, read-only. Every program can read all "
        "that is in them.",
    )
    allow_unenforced: tuple[str, ...] = setting(
        (),
        help="Protections, by the names that `stockade doctor` prints, that you agree to go without where this machine "
        "cannot enforce them.",
    )
    warden_socket: Path | None = setting(
        None,
        help="Where a warden listens that somebody else started (`stockade warden`): its sandboxes are used and none "
        "is started here. So a server that never was root gets root's isolation. Directories to show are then up to "
        "the warden's own `sandbox.host_paths`.",
    )
    languages_dir: Path | None = setting(
        None, help="Directory with further language files; one with the name of a language of ours replaces it."
    )


@dataclass(frozen=True, kw_only=True)
class TemplateConfig:
    """A template that requests name; the one with a language's own name is what its runs have by default."""

    language: str = setting("", shown="the language of that name, else python", help="Language whose runs may have it.")
    image: str = setting("", shown="the language's", help="Image of its runs.")
    preload: tuple[str, ...] = setting(
        (),
        help="Modules that are imported already when the program starts, in this order; at most 64. They must be "
        "installed in the image. Not for languages whose interpreter cannot fork.",
    )


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """How many programs run at once, and who waits."""

    places: int = setting(
        factory=lambda: 8 * processors(),
        shown="8 × the host's processors",
        at_least=1,
        help="Programs running at once.",
    )
    length: int = setting(1000, at_least=0, help="Requests that may wait for a place; further ones are refused.")
    wait_s: float = setting(
        30.0,
        at_least=0.001,
        help="The longest wait for a place; what waits for longer, or is expected to, is refused.",
    )
    overload_wait_s: float = setting(
        2.0,
        at_least=0.001,
        help="The longest wait that a request may expect when somebody has been waiting for 3 s without a break; what "
        "would wait for longer is refused. A longer queue would make everybody wait and serve nobody sooner.",
    )
    places_per_actor: int | None = setting(
        None,
        at_least=1,
        shown="all places",
        help="Places that one API key (or one address, without keys) may hold at once.",
    )


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What is kept so that it need not be made again."""

    compilations_bytes: int = setting(
        256 * _MIB,
        at_least=0,
        help="Memory for what compile steps left: an equal program, of the same key and with the same compiler, is not "
        "compiled again. 0 compiles each time.",
    )
    compilations_shared: bool = setting(
        False,
        help="Let all keys share compilations. By the time that an answer takes, one key can then tell whether "
        "another has compiled the very same program.",
    )
    toolchains: bool = setting(
        True,
        help="Keep what compilers would make again in each sandbox (a standard library's archives, precompiled "
        "headers) in the data directory, and show it to sandboxes, read-only. Made in the background when a language "
        "is first asked for.",
    )


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What the server says on standard error. Never code, output or keys."""

    level: str = setting("info", env=("RUST_LOG",), parse=_level, help="`error`, `warning`, `info` or `debug`.")
    format: Literal["auto", "console", "json"] = setting(
        "auto", help="`auto` is `console` on a terminal and `json` elsewhere."
    )


@dataclass(frozen=True, kw_only=True)
class TracingConfig:
    """Traces of requests and jobs, for an OpenTelemetry collector. Never code, output or keys."""

    endpoint: str = setting(
        "",
        env=("OTEL_EXPORTER_OTLP_ENDPOINT",),
        help="URL of the collector (OTLP over HTTP), like `http://127.0.0.1:4318`; empty: no traces. Extra: `otel`.",
    )
    service: str = setting("stockade", env=("OTEL_SERVICE_NAME",), help="Name of this service in the traces.")
    ratio: float = setting(
        1.0, at_least=0, at_most=1, help="Share of the requests that are traced, where the caller has not decided."
    )
    timeout_s: float = setting(10.0, at_least=0.1, help="Longest time that the collector may take to answer.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that can be configured."""

    data_dir: Path = setting(
        factory=default_data_dir,
        shown="/var/lib/stockade as root, else $XDG_DATA_HOME/stockade or ~/.local/share/stockade",
        help="Directory of all that must outlive the server; made with mode 0700. One server at a time uses it.",
    )
    server: ServerConfig = field(default_factory=ServerConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    accounts: AccountsConfig = field(default_factory=AccountsConfig)
    users: UsersConfig = field(default_factory=UsersConfig)
    portal: PortalConfig = field(default_factory=PortalConfig)
    jobs: JobsConfig = field(default_factory=JobsConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    live: LiveConfig = field(default_factory=LiveConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    ports: PortsConfig = field(default_factory=PortsConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    registries: RegistriesConfig = field(default_factory=RegistriesConfig)
    disks: DisksConfig = field(default_factory=DisksConfig)
    boxes: BoxesConfig = field(default_factory=BoxesConfig)
    builds: BuildsConfig = field(default_factory=BuildsConfig)
    docker: DockerConfig = field(default_factory=DockerConfig)
    templates: Mapping[str, TemplateConfig] = field(default_factory=dict)
    """By name."""
    queue: QueueConfig = field(default_factory=QueueConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    log: LogConfig = field(default_factory=LogConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    dialects: Mapping[str, object] = field(default_factory=dict)
    """The settings record of each dialect, by its name."""


def describe(
    dialects: Mapping[str, type | None] | None = None, templates: Iterable[str] = (_ANY_NAME,)
) -> Iterator[Setting]:
    """Every setting, at the end those of *templates* (their names) and of *dialects* (settings class by name)."""
    yield from _describe(Config)
    for name in templates:
        yield from _describe(TemplateConfig, f"templates.{name}")
    for name, cls in sorted((dialects or {}).items()):
        if cls is not None:
            yield from _describe(cls, f"dialects.{name}")


def load(
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    options: Mapping[str, object] | None = None,
    dialects: Mapping[str, type | None] | None = None,
) -> Config:
    """Read the configuration.

    Args:
        file: read this file; else the one that STOCKADE_CONFIG names, else the first that exists of
            <data directory>/stockade.toml and /etc/stockade/stockade.toml.
        environ: instead of the process's environment.
        options: what the command line sets, by dotted key; members that are `None` are not set.
        dialects: the settings class of each dialect, by name. With `None` the dialects' own settings are neither
            checked nor read: a command that serves nothing need not import them.

    Raises:
        ConfigError: the file cannot be read, a setting is unknown or a value does not fit.
    """
    environ = os.environ if environ is None else environ
    templates = _template_names(environ)
    settings = {one.key: one for one in describe(dialects, templates)}
    sections = SECTIONS if dialects is not None else SECTIONS[:-1]
    given: dict[str, Given] = {}
    given_by_options = {
        key: Given(value=read(settings[key], _plain(value), _option(key)), origin=_option(key))
        for key, value in (options or {}).items()
        if value is not None
    }
    given_by_environment = from_environment(environ, settings, sections)
    located = {**given_by_environment, **given_by_options}.get("data_dir")
    data_dir = Path(str(located.value)) if located else default_data_dir()
    if path := _file(file, environ, data_dir):
        table = _table(path, skip_dialects=dialects is None)
        templates |= dict.fromkeys(_named(table, str(path)))
        settings = {one.key: one for one in describe(dialects, templates)}
        given |= from_table(table, settings, str(path))
    given |= given_by_environment
    given |= given_by_options
    values = {key: one.value for key, one in given.items()}
    values["dialects"] = _dialects(dialects, given)
    values["templates"] = {name: construct(TemplateConfig, values, f"templates.{name}") for name in templates}
    config = construct(Config, values)
    _check(config, given)
    return config


def _dialects(dialects: Mapping[str, type | None] | None, given: Mapping[str, Given]) -> dict[str, object]:
    values = {key: one.value for key, one in given.items()}
    return {
        name: construct(cls, values, f"dialects.{name}") for name, cls in (dialects or {}).items() if cls is not None
    }


def _template_names(environ: Mapping[str, str]) -> dict[str, None]:
    """Templates that the environment sets something of, in order."""
    found = (_TEMPLATE_VARIABLE.fullmatch(name) for name, value in environ.items() if value)
    return dict.fromkeys(match[1].lower().replace("_", "-") for match in found if match)


def _named(table: Mapping[str, object], origin: str) -> Iterator[str]:
    """The templates of a file, those too of which nothing is set."""
    templates = table.get("templates", {})
    if not isinstance(templates, Mapping):
        raise ConfigError(f"{origin}: templates: must be a table of tables ([templates.NAME])")
    for name, one in templates.items():
        if not _TEMPLATE_NAME.fullmatch(name):
            raise ConfigError(f"{origin}: templates: a name is lower-case letters, digits and hyphens (got {name!r})")
        if not isinstance(one, Mapping):
            raise ConfigError(f"{origin}: templates.{name}: must be a table ([templates.{name}])")
        yield name


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _option(key: str) -> str:
    return f"option --{key.rpartition('.')[2].replace('_', '-')}"


def _file(file: Path | None, environ: Mapping[str, str], data_dir: Path) -> Path | None:
    named = file or (Path(environ["STOCKADE_CONFIG"]) if environ.get("STOCKADE_CONFIG") else None)
    if named is not None:
        return named
    return next((path for path in (data_dir / FILE_NAME, SYSTEM_FILE) if path.is_file()), None)


def _table(path: Path, *, skip_dialects: bool) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    if skip_dialects:
        table.pop("dialects", None)
    return table


def _check(config: Config, given: Mapping[str, Given]) -> None:
    """What no single setting can tell by itself."""

    def place(key: str) -> str:
        return given[key].origin if key in given else key

    for name, address in config.server.listen.items():
        try:
            parse_address(address)
        except ValueError as error:
            raise ConfigError(f"{place('server.listen')}: {name}: {error} (got {address!r})") from None
    if config.server.api_key and len(config.server.api_key) < 16:
        raise ConfigError(f"{place('server.api_key')}: must have at least 16 characters")
    for name in (one.name for one in fields(Limits)):
        default, maximum = getattr(config.sandbox.defaults, name), getattr(config.sandbox.maximum, name)
        for key, value in ((f"sandbox.defaults.{name}", default), (f"sandbox.maximum.{name}", maximum)):
            if value <= 0:
                raise ConfigError(f"{place(key)}: must be greater than zero (got {value!r})")
        # Lowering a maximum alone is fine: the default is cut to it. Asking for more than the maximum is a mistake.
        if default > maximum and (key := f"sandbox.defaults.{name}") in given:
            raise ConfigError(f"{place(key)}: {default:g} is above sandbox.maximum.{name}, {maximum:g}")
    if config.ports.first > config.ports.last:
        raise ConfigError(f"{place('ports.last')}: must not be below ports.first")
    for key, networks in (
        ("network.permit_private", config.network.permit_private),
        ("network.refuse", config.network.refuse),
    ):
        for network in networks:
            try:
                ipaddress.IPv4Network(network)
            except ValueError as error:
                raise ConfigError(f"{place(key)}: {error} (got {network!r})") from None
    for name, template in config.templates.items():
        key = f"templates.{name}.preload"
        if len(template.preload) > _MOST_PRELOADED:
            raise ConfigError(f"{place(key)}: must be at most {_MOST_PRELOADED} modules")
        for module in template.preload:
            if not all(part.isidentifier() for part in module.split(".")):
                raise ConfigError(f"{place(key)}: {module!r} is no name of a module")
