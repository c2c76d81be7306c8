"""Whose secret a request shows, and what is done about those who guess."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from stockade.dialects.executor.engine_needs import Secrets
from stockade.dialects.executor.failures import Ended, TooManyWrong, Unauthorized
from stockade.dialects.executor.operation import Caller
from stockade.model import Actor, Port, SandboxState
from stockade.wire.clients import address
from stockade.wire.dialect import SoleSandbox
from stockade.wire.rates import RateLimiter

__all__ = ["Access", "Who", "WrongSecrets", "by_secret", "sole", "token"]

Who = Callable[[str], Awaitable[Caller | None]]
"""The caller that a secret makes somebody; `None` where it opens nothing."""

_BEARER = b"Bearer "


class WrongSecrets:
    """Counts wrong secrets by the client's address, and says who has sent too many.

    Such an address is not listened to, whatever it sends, until it has been quiet for a moment: otherwise whoever
    guesses would learn that a guess was right at any rate, and each guess could cost a question to the database. The
    price is that a right secret from there is refused, too, as long as its neighbour goes on.
    """

    def __init__(
        self, *, per_s: int, burst: int, addresses: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rates = RateLimiter(per_minute=60 * per_s, burst=burst, actors=addresses, clock=clock) if per_s else None
        self._most = addresses
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()
        """When an address is listened to again."""

    def check(self, request: Request) -> None:
        """Raises TooManyWrong: nothing from the request's address is to be looked at now."""
        if not self._until:
            return
        where = address(request)
        until = self._until.get(where)
        if until is None:
            return
        wait_s = until - self._clock()
        if wait_s > 0:
            raise TooManyWrong(wait_s)
        del self._until[where]

    def count(self, request: Request) -> None:
        """The request's secret was wrong."""
        if self._rates is None:
            return
        where = address(request)
        rate = self._rates.take(Actor(id=where))
        if rate.retry_after_s > 0:
            self._until[where] = self._clock() + rate.retry_after_s
            if len(self._until) > self._most:
                self._until.popitem(last=False)


class Access:
    """Lets in who shows a secret."""

    def __init__(self, who: Who, wrong: WrongSecrets) -> None:
        self._who = who
        self._wrong = wrong

    async def caller(self, request: Request) -> Caller:
        """Who asks.

        Raises:
            TooManyWrong, Unauthorized, Ended.
            Unavailable, Fault: nobody can tell now.
        """
        self._wrong.check(request)
        secret = token(request)
        if secret is None:
            raise Unauthorized
        caller = await self._who(secret)
        if caller is None:
            self._wrong.count(request)
            raise Unauthorized
        return caller


def token(request: Request) -> str | None:
    """The secret in `Authorization: Bearer <secret>`: the scheme in just these letters, one space, no other white space
    but after it. `None` where there is none.
    """
    for name, value in request.scope["headers"]:
        if name == b"authorization":
            secret = value.rstrip(b" \t")[len(_BEARER) :] if value.startswith(_BEARER) else b""
            if not secret or len(secret.split(None, 1)) != 1 or secret[:1].isspace():
                return None
            try:
                return str(secret, "utf-8")
            except UnicodeDecodeError:
                return None
    return None


def by_secret(secrets: Secrets) -> Who:
    """Each secret opens its own sandbox."""

    async def who(secret: str) -> Caller | None:
        grant = await secrets.find(secret)
        if grant is None:
            return None
        sandbox = grant.sandbox
        if sandbox.state is SandboxState.ENDED:
            why = f" ({sandbox.ended_by.value})" if sandbox.ended_by is not None else ""
            raise Ended(f"The sandbox of this secret has ended{why}; nothing was done")
        has_bound_port = any(port.container == Port.BOUND for port in sandbox.network.ports)
        return Caller(actor=grant.actor, sandbox_id=sandbox.id, has_bound_port=has_bound_port)

    return who


def sole(only: SoleSandbox) -> Who:
    """One secret opens the one sandbox."""
    caller = Caller(actor=only.actor, sandbox_id=only.sandbox_id, has_bound_port=True)

    async def who(secret: str) -> Caller | None:
        return caller if await only.verify(secret) else None

    return who
