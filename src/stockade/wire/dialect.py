"""The record by which a dialect is found and mounted."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry

from stockade.accounts import Accounts
from stockade.config import ServerConfig
from stockade.engine import Engine
from stockade.model import Actor
from stockade.wire.auth import KeyVerifier

__all__ = ["Dialect", "Services", "SoleSandbox"]


@dataclass(frozen=True, kw_only=True)
class SoleSandbox:
    """The sandbox of a server that is there for it alone (`stockade executor`)."""

    actor: Actor
    """Whose it is."""
    sandbox_id: str
    verify: Callable[[str], Awaitable[bool]]
    """Whether a secret that somebody presents opens it.

    Raises:
        Fault: the first secret is to be adopted, and cannot be written down.
    """
    proxy_port: int
    """Port of this host that leads to whichever port of it is bound."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """What a dialect is handed when it is mounted."""

    engine: Engine
    keys: KeyVerifier
    """API keys of the server."""
    accounts: Accounts | None = None
    """Accounts, with all that can be done to them; `None` where there is no database."""
    settings: Any
    """An instance of the dialect's own `settings` class."""
    server: ServerConfig
    registry: CollectorRegistry
    """The dialect registers its metrics here; `/metrics` prints it."""
    open_access: bool
    """True where every listener of this app is on a loopback address (or the operator said `--insecure`):
    a dialect whose protocol has no authentication then answers without a key."""
    is_alone: bool = False
    """Whether nothing but the dialect answers on this app's address."""
    sole: SoleSandbox | None = None
    """Set where the server is there for one sandbox alone."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A protocol that the server speaks."""

    name: str
    summary: str
    """One line for the docs and the CLI."""
    router: Callable[[Services], APIRouter]
    """Makes the routes. Called once for each app that mounts the dialect."""
    settings: type | None = None
    """Frozen dataclass whose fields are made by `config.setting`; `[dialects.<name>]` in the file."""
    health: Callable[[Services], dict[str, object]] | None = None
    """Members that this dialect adds to the merged server's `GET /health`. A dialect that is alone on a port
    answers `/health` with exactly these."""
    largest_body: Callable[[Services, str], int | None] | None = None
    """Bytes that the body of a request to a path may have, where that is not the server's own limit (`None`)."""
    bounds_itself: Callable[[Services, str], bool] | None = None
    """Whether requests to a path may take as long as they like, and the dialect bounds how many there are: they take
    none of the server's places."""
    refusal: Callable[[int], Response | None] | None = None
    """How the dialect, alone on an address, words what the server refuses by itself, by status (404, 405, 413, 503);
    `None` where it has no words of its own for it."""
    variables: Callable[[Mapping[str, str]], tuple[Mapping[str, str], Sequence[str]]] | None = None
    """What the variables of an environment that are the original system's own mean here: variables of ours, and what
    the operator is to be told. Raises ConfigError where the original would not start either."""
    listeners: Callable[[Services], AbstractAsyncContextManager[object]] | None = None
    """Whatever the dialect serves beside HTTP (gRPC), where its settings say so. Entered once for each server, however
    many apps mount the dialect, after the engine has started; left before the engine is closed."""
