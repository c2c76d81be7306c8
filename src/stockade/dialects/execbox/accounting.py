"""What the dialect does with accounts, keys and usage, in the protocol's terms."""

from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from stockade.accounts import Accounts, NewKey
from stockade.dialects.execbox import account_translate as translate
from stockade.dialects.execbox.queries import Query
from stockade.dialects.execbox.wire import (
    BadBody,
    CreateKeyBody,
    LimitsBody,
    QuotaRequestBody,
    UpdateKeyBody,
    WaitlistBody,
)
from stockade.errors import Denied, Invalid
from stockade.model import Actor

__all__ = ["Accounting"]

KEEP_IT = "Keep this key; it is shown only once."


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """The account behind a key."""

    accounts: Accounts

    async def account(self, actor: Actor) -> dict[str, Any]:
        _require_account(actor)
        found = await self.accounts.limits.account(actor)
        return translate.account(found, actor, await self.accounts.keys.get(actor, actor.id))

    async def usage(self, actor: Actor) -> dict[str, Any]:
        made, active = await self.accounts.usage.counts(actor)
        return translate.usage(actor, made=made, active=active)

    async def enhanced(self, actor: Actor, query: Query) -> dict[str, Any]:
        days = query.number("days", least=1, most=90, default=7)
        found = await self.accounts.usage.enhanced(actor, days=days or 7)
        answer = translate.usage(actor, made=found.made_today, active=found.unended)
        answer["account_id"] = actor.account_id
        if found.hourly:
            answer["hourly_usage"] = translate.hourly(found.hourly)
        if found.daily:
            answer["daily_history"] = translate.history(found.daily)
        answer["cost_estimate_cents"] = found.cost_cents
        if found.limits.monthly_cost_limit_cents is not None:
            answer["monthly_cost_limit_cents"] = found.limits.monthly_cost_limit_cents
        answer["alert_threshold"] = found.limits.alert_threshold
        return answer

    async def export(self, actor: Actor, query: Query) -> object:
        """The history as a bare list, or as CSV."""
        days = query.number("days", least=1, most=365, default=30)
        kind = query.choice("format", "json", "csv")
        found = await self.accounts.usage.daily(actor, days=days or 30)
        if kind == "json":
            return translate.history(found)
        headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
        return Response(translate.history_csv(found), media_type="text/csv", headers=headers)

    async def limits(self, actor: Actor) -> dict[str, Any]:
        tier = self.accounts.limits.tier(actor)
        found = await self.accounts.limits.get(actor)
        return translate.limits(found, daily=tier.daily, concurrent=tier.concurrent)

    async def change_limits(self, actor: Actor, body: LimitsBody) -> dict[str, Any]:
        tier = self.accounts.limits.tier(actor)
        changes = translate.to_limits(body)
        for name, most in (("daily_requests_limit", tier.daily), ("concurrent_requests_limit", tier.concurrent)):
            if name in changes and changes[name] is None and most is not None:
                raise BadBody(f"{name}: your tier allows {most} at most")
        found = await self.accounts.limits.put(actor, changes)
        return translate.limits(found, daily=tier.daily, concurrent=tier.concurrent)

    async def keys(self, actor: Actor) -> dict[str, Any]:
        return {"keys": [translate.key(one) for one in await self.accounts.keys.list(actor)]}

    async def key(self, actor: Actor, key_id: str) -> dict[str, Any]:
        return translate.key(await self.accounts.keys.get(actor, key_id))

    async def create_key(self, actor: Actor, body: CreateKeyBody) -> dict[str, Any]:
        made = await self.accounts.keys.create(
            actor,
            name=body.name,
            description=body.description or "",
            expires_at=None if body.expires_at is None else translate.to_moment(body.expires_at),
            custom_daily_limit=body.custom_daily_limit,
            custom_concurrent_limit=body.custom_concurrent_limit,
        )
        return _with_secret(made)

    async def change_key(self, actor: Actor, key_id: str, body: UpdateKeyBody) -> dict[str, Any]:
        changes = {name: value for name, value in body.model_dump().items() if value is not None}
        if not changes:
            raise Invalid("no fields to update")
        if body.expires_at is not None:
            changes["expires_at"] = translate.to_moment(body.expires_at)
        return translate.key(await self.accounts.keys.update(actor, key_id, changes))

    async def delete_key(self, actor: Actor, key_id: str) -> Response:
        await self.accounts.keys.deactivate(actor, key_id)
        return Response(status_code=204)

    async def rotate_key(self, actor: Actor, key_id: str) -> dict[str, Any]:
        return _with_secret(await self.accounts.keys.rotate(actor, key_id))

    async def join(self, _actor: Actor | None, body: WaitlistBody) -> dict[str, Any]:
        made = await self.accounts.sign_up.join(email=body.email, name=body.name or "")
        return {"id": made.key.account_id, "key": made.secret, "tier": "free", "message": KEEP_IT}

    async def request_quota(self, actor: Actor | None, body: QuotaRequestBody) -> dict[str, Any]:
        texts = {name: value or "" for name, value in body.model_dump().items()}
        return translate.quota_request(await self.accounts.sign_up.request_quota(**texts, actor=actor))


def _with_secret(made: NewKey) -> dict[str, Any]:
    return {**translate.key(made.key), "key": made.secret}


def _require_account(actor: Actor) -> None:
    if not actor.account_id:
        raise Denied("this needs an API key of this server")
