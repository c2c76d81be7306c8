"""The executor of a session: the secret that opens it over the executor API, and where that API answers.

Not in the reference. The API itself is a dialect of its own: docs/dialects/executor.md.
"""

from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from stockade.config import ServerConfig, parse_address
from stockade.dialects.execbox.wire import BadBody, ExecutorBody
from stockade.engine.secrets import checked_secret, digest, new_secret
from stockade.errors import Invalid, Unsupported
from stockade.model import NetworkMode, Port, Sandbox, SandboxRequest

__all__ = ["NAME", "ExecutorApi", "bound_port", "executor", "with_executor"]

NAME = "executor"
"""Of the dialect that serves it."""
_PATH = "/koyeb-sandbox"
"""Where the protocol's clients expect it below a URL."""
_ANY = ("", "0.0.0.0", "::")


@dataclass(frozen=True, kw_only=True)
class ExecutorApi:
    """Where a server's executor API is reached."""

    url: str = ""
    """As the operator says; empty to go by the request."""
    server: ServerConfig
    is_merged: bool
    """Whether the merged server speaks it."""

    @property
    def is_served(self) -> bool:
        """Whether it can be reached at all."""
        return self.is_merged or NAME in self.server.listen

    def url_for(self, request: Request) -> str:
        """Its base URL for the client of *request*, without a slash at its end."""
        if self.url:
            return self.url.rstrip("/") + _PATH
        came_to = (request.scope.get("server") or ("", 0))[1]
        try:
            name, netloc = request.url.hostname or "", request.url.netloc
        except ValueError:  # a Host header that is none; the answer is still to be read
            name = netloc = ""
        if not self.is_merged:
            netloc = _netloc(*parse_address(self.server.listen.get(NAME, "127.0.0.1:0")), name)
        elif not netloc or ("execbox" in self.server.listen and self.server.port not in (0, came_to)):
            # It came to the address where execbox is alone.
            netloc = _netloc(self.server.host, self.server.port or came_to, name)
        return f"{request.scope['scheme']}://{netloc}{_PATH}"


def _netloc(host: str, port: int, name: str) -> str:
    """Of an address of this server; one that means all of them goes by the name that the client used."""
    host = (name or "localhost") if host in _ANY else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def with_executor(request: SandboxRequest, body: ExecutorBody, api: ExecutorApi) -> tuple[SandboxRequest, str]:
    """*request* for a sandbox that its secret opens, and that secret.

    Raises:
        BadBody: the secret cannot be one.
        Unsupported: this server does not speak the executor's protocol.
    """
    if not api.is_served:
        raise Unsupported("executor: this server does not speak the executor dialect")
    try:
        secret = new_secret() if body.secret is None else checked_secret(body.secret)
    except Invalid as error:
        raise BadBody(f"executor.{error}") from None
    network = request.network
    if network.mode is NetworkMode.EXPOSED:
        network = replace(network, ports=(*network.ports, Port(container=Port.BOUND)))
    return replace(request, secret_digest=digest(secret), network=network), secret


def executor(sandbox: Sandbox, url: str, *, secret: str | None = None) -> dict[str, Any]:
    """What the session object says of its executor; nothing where it has none."""
    if sandbox.secret_digest is None:
        return {}
    shown = {} if secret is None else {"secret": secret}
    return {"executor": {**shown, "url": url, "proxyPort": bound_port(sandbox)}}


def bound_port(sandbox: Sandbox) -> int | None:
    """Port of the host that leads to whichever port is bound; `None` where there is none."""
    found = (port.host for port in sandbox.network.ports if port.container == Port.BOUND)
    return next(found, None)
