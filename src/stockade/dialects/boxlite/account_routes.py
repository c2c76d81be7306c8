"""Routes without a slot: what the server can do, tokens, who asks."""

from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response

from stockade.accounts import Accounts
from stockade.dialects.boxlite.documented import operation
from stockade.dialects.boxlite.edge import Edge
from stockade.dialects.boxlite.settings import BoxliteSettings
from stockade.dialects.boxlite.translate import CAPABILITIES, GIB, MIB, timestamp
from stockade.dialects.boxlite.wire import BadBody, ConfigAnswer, MeAnswer, TokenAnswer
from stockade.engine import LimitPolicy
from stockade.errors import NotFound
from stockade.model import Actor
from stockade.wire.bodies import read_body

__all__ = ["account_routes", "configuration"]

TOKEN_LIFE_S = 3600
"""Clients ask for a token anew before that is over. It is the key itself, and so is good for as long as the key is."""
SCOPES = ("box:read", "box:write", "box:exec", "box:delete", "me:read")
_FORM_BYTES = 64 * 1024
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "grant_type": {"type": "string", "enum": ["client_credentials"]},
                        "client_id": {"type": "string", "description": "Has no meaning here."},
                        "client_secret": {"type": "string", "description": "An API key."},
                    },
                    "required": ["grant_type", "client_secret"],
                }
            }
        },
    }
}


def account_routes(edge: Edge, accounts: Accounts | None, config: dict[str, Any]) -> APIRouter:
    """The routes.

    Args:
        config: the answer of `/v1/config`; see `configuration`.
    """
    router = APIRouter()

    @router.get(
        "/v1/config",
        **operation("config", "What the server can do", answer=ConfigAnswer, is_public=True),
    )
    async def read_config(request: Request) -> Response:
        """Clients look here before they ask for what not every server has."""

        async def answer() -> object:
            return config

        return await edge.respond(request, answer)

    about = operation("token", "Exchange an API key for a token", answer=TokenAnswer, errors=(400, 408, 413))

    @router.post("/v1/oauth/tokens", **(about | {"openapi_extra": _FORM, "dependencies": []}))
    async def token(request: Request) -> Response:
        """For clients up to 0.9, which have a client id and a secret: the secret is an API key."""

        async def answer() -> object:
            raw = await read_body(request, max_bytes=_FORM_BYTES, timeout_s=edge.body_timeout_s)
            secret = _client_secret(raw)
            await edge.access.bearer(secret)
            return {"access_token": secret, "token_type": "bearer", "expires_in": TOKEN_LIFE_S, "scope": ""}

        response = await edge.respond(request, answer)
        response.headers["Cache-Control"] = "no-store"
        return response

    @router.get("/v1/me", **operation("me", "Whose key it is", answer=MeAnswer))
    async def me(request: Request) -> Response:
        """The account behind the key."""

        async def work(actor: Actor) -> object:
            return await _principal(actor, accounts)

        return await edge.call(request, work)

    return router


def _client_secret(raw: bytes) -> str:
    """The secret of a token request.

    Raises:
        BadBody: it is no such request.
    """
    try:
        form = dict(parse_qsl(raw.decode(), keep_blank_values=True, strict_parsing=bool(raw), errors="strict"))
    except ValueError:
        raise BadBody("the body must be a form: application/x-www-form-urlencoded") from None
    if form.get("grant_type") != "client_credentials":
        raise BadBody("grant_type: must be client_credentials")
    return form.get("client_secret", "")


async def _principal(actor: Actor, accounts: Accounts | None) -> dict[str, Any]:
    email = name = expires = None
    if accounts is not None and actor.tier:
        try:
            key = await accounts.keys.get(actor, actor.id)
            name, expires = key.name or None, key.expires_at
            email = (await accounts.limits.account(actor)).email or None
        except NotFound:
            pass  # the key that the operator presets has no record of its own
    return {
        "sub": actor.account_id or actor.id,
        "principal_type": "service_account",
        "scopes": list(SCOPES),
        "email": email,
        "display_name": name,
        "path_prefix": None,
        "expires_at": None if expires is None else timestamp(expires),
    }


def configuration(settings: BoxliteSettings, limits: LimitPolicy | None, *, has_archives: bool) -> dict[str, Any]:
    """What clients are told: what is not there must not be announced, since they go by it.

    Args:
        limits: of boxes; `None` where the server has none.
    """
    has_boxes = limits is not None
    capabilities: dict[str, Any] = {
        "snapshots_enabled": has_boxes,
        "clone_enabled": has_boxes,
        "export_enabled": has_boxes and has_archives,
        "import_enabled": has_boxes and has_archives,
        "linux_capabilities_enabled": has_boxes,
        "linux_capabilities": sorted(CAPABILITIES),
        "tty_enabled": has_boxes,
        "streaming_enabled": has_boxes,
        "pause_enabled": has_boxes,
        "fork_enabled": has_boxes,
    }
    defaults: dict[str, Any] = {}
    if limits is not None:
        capabilities |= {
            "max_cpus": settings.max_cpus,
            "max_memory_mib": min(settings.max_memory_mib, limits.maximum.memory_bytes // MIB),
            "max_disk_size_gb": max(1, limits.maximum.disk_bytes // GIB),
            "max_concurrent_executions": settings.most_executions,
            "file_transfer_max_bytes": settings.max_transfer_bytes,
            "exec_timeout_max_seconds": int(limits.maximum.wall_s),
        }
        defaults = {
            "image": settings.default_image,
            "cpus": settings.default_cpus,
            "memory_mib": min(settings.default_memory_mib, limits.maximum.memory_bytes // MIB),
            "disk_size_gb": max(1, limits.defaults.disk_bytes // GIB),
            "auto_remove": False,
            "auto_stop": round(settings.auto_stop_s),
            "auto_delete": 0,
            "auto_resume": True,
        }
    return {"defaults": defaults, "overrides": {}, "capabilities": capabilities}
