"""Telling whoever wants to know that a job has ended.

| threat | mechanism |
|---|---|
| reaching services of this host or its network | the addresses of the name must all be public, or permitted |
| DNS rebinding: a name that changes after the check | resolved once; the connection goes to the checked address |
| a redirect inwards | none is followed, and where it leads is not looked at |
| a receiver that never answers, or answers without end | one deadline; of the answer only the status is read |
| an account whose receivers do not answer, and whose messages are many | few of its messages are under way at a time; those of others pass it |
| an answer that something in here cannot bear | whatever it is, that one message has failed, and no other |
| the server's own credentials, proxies | a client without cookies, `.netrc` or proxy variables |
| somebody else who pretends to be us | each body is signed, with its time, by a secret of the job's account: another account's does not help |

A receiver may be told twice: when it has taken a message and we end before that is noted.
"""  # noqa: E501

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import structlog

from stockade import __version__
from stockade.config_jobs import WebhooksConfig
from stockade.engine.webhooks import SIGNATURE_HEADER, describe, retry_in, secret_of, signature
from stockade.errors import StockadeError
from stockade.model.jobs import Job, Webhook
from stockade.store.jobs import JobStore
from stockade.wire.fetch import IPAddress, Resolve, is_public, resolve, within
from stockade.worker.observing import Observer
from stockade.worker.pauses import Pause, first_of, sleep_until

__all__ = ["NotDelivered", "WebhookSender", "permission"]

log = structlog.get_logger()

EVERY_S = 1.0
AT_ONCE = 32
TOGETHER = 8
"""So many places are waited for before the store is asked again."""
AT_ONCE_OF_SLOW = 2
"""Of an account whose receivers have kept us waiting until the time was up."""
SLOW_FOR_S = 60.0
MOST_SLOW = 10_000
HOLD_S = 30.0
"""Beyond the receiver's time, until another sender may take a message over."""
NOTE_TRIES = 5
MOST_REASON = 200


class NotDelivered(Exception):
    """The receiver was not told; the message is the reason, fit for the eyes of the job's owner."""

    is_final = False


class Refused(NotDelivered):
    """It may not be reached from here: trying again does not help."""

    is_final = True


def permission(networks: tuple[str, ...]) -> Callable[[IPAddress], bool]:
    """Tells whether an address may be told: a public one, or one in *networks*.

    Raises:
        ConfigError: one of them is no network.
    """
    is_permitted = within(networks, setting="jobs.webhooks.permit_private")
    return lambda address: is_public(address) or is_permitted(address)


class _Slow:
    """An account whose receivers do not answer in time."""

    def __init__(self) -> None:
        self.until = 0.0
        self.under_way = 0
        self.planned_until = 0.0
        """Up to when its messages that had to wait fill the time that it is given."""

    def turn_in(self, timeout_s: float) -> float:
        """Seconds until another message of its may be tried, if none is answered before its time is up."""
        now = time.monotonic()
        self.planned_until = max(now, self.planned_until) + timeout_s / AT_ONCE_OF_SLOW
        return self.planned_until - now


async def _refuse_redirect(response: httpx.Response) -> None:
    """Raise NotDelivered, before the library looks where it leads: of some addresses it makes errors of its own."""
    if response.has_redirect_location:
        raise NotDelivered(f"the receiver answered {response.status_code}: redirects are not followed")


class WebhookSender:
    """Sends the messages that are due. Made for one event loop."""

    def __init__(
        self,
        store: JobStore,
        config: WebhooksConfig,
        *,
        secret: str,
        observer: Observer | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        """Nothing is sent yet.

        Args:
            secret: of the server; see `secret_of` for what signs the messages.

        Raises:
            ConfigError: see `permission`.
        """
        self._store = store
        self._config = config
        self._secret = secret
        self._observer = observer or Observer()
        self._resolve = resolve
        self._permitted = permission(config.permit_private)
        self._under_way = 0
        self._slow: dict[str, _Slow] = {}
        self._freed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Send what is due until *stop*; what is under way then is finished."""
        pause = Pause()
        # trust_env=False: no proxies, no .netrc. A proxy would resolve the name again.
        async with (
            httpx.AsyncClient(
                trust_env=False,
                follow_redirects=False,
                timeout=self._config.timeout_s,
                # A connection is one name's, although it goes to an address that others may share.
                limits=httpx.Limits(max_keepalive_connections=0),
                event_hooks={"response": [_refuse_redirect]},
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            while not stop.is_set():
                try:
                    self._freed.clear()
                    found = await self._send_due(client, group)
                    pause.over()
                    wait_s = 0.0 if found else EVERY_S
                    if self._under_way > AT_ONCE - TOGETHER:
                        await first_of(EVERY_S, self._freed.wait(), stop.wait())
                except Exception as error:
                    wait_s = pause.next_s()
                    if isinstance(error, StockadeError):
                        log.warning("webhooks.cannot_look", reason=str(error))
                    else:
                        log.error("webhooks.cannot_look", exc_info=error)
                await sleep_until(stop, wait_s)

    async def _send_due(self, client: httpx.AsyncClient, group: asyncio.TaskGroup) -> bool:
        """Begin with what is due, as far as there are places; whether anything was."""
        free = AT_ONCE - self._under_way
        if free <= 0:
            return True
        jobs = await self._store.due_webhooks(most=free, hold_s=self._config.timeout_s + HOLD_S)
        for job in jobs:
            slow = self._slow_one(job)
            if slow is not None and slow.under_way >= AT_ONCE_OF_SLOW:
                await self._put_off(job, slow)
                continue
            self._under_way += 1
            if slow is not None:
                slow.under_way += 1
            group.create_task(self._see_to(client, job, slow), name=f"webhook of job {job.id}")
        return bool(jobs)

    def _slow_one(self, job: Job) -> _Slow | None:
        """What is known of the job's account, where its receivers keep us waiting."""
        slow = self._slow.get(_whose(job))
        if slow is not None and slow.until <= time.monotonic() and not slow.under_way:
            del self._slow[_whose(job)]
            return None
        return slow

    def _is_slow(self, job: Job) -> None:
        """A receiver of the account's has kept us waiting until its time was up."""
        if len(self._slow) >= MOST_SLOW:
            self._slow.clear()
        self._slow.setdefault(_whose(job), _Slow()).until = time.monotonic() + SLOW_FOR_S

    async def _put_off(self, job: Job, slow: _Slow) -> None:
        """Have a message wait for its turn. That is no attempt, and nothing has failed."""
        assert job.webhook is not None
        wait_s = min(slow.turn_in(self._config.timeout_s), self._config.longest_retry_s)
        await self._store.set_webhook(
            job.id, replace(job.webhook, next_at=datetime.now(UTC) + timedelta(seconds=wait_s))
        )

    async def _see_to(self, client: httpx.AsyncClient, job: Job, slow: _Slow | None) -> None:
        if job.trace_id:
            structlog.contextvars.bind_contextvars(trace_id=job.trace_id)  # of this task
        try:
            with self._observer.telling(job):
                await self._tell(client, job)
        except Exception as error:
            # A mistake of ours with one message is no reason to drop the others; it is due again after a while.
            log.error("webhook.crashed", job_id=job.id, exc_info=error)
        finally:
            self._under_way -= 1
            if slow is not None:
                slow.under_way -= 1
            if self._under_way <= AT_ONCE - TOGETHER:
                self._freed.set()

    async def _tell(self, client: httpx.AsyncClient, job: Job) -> None:
        webhook = job.webhook
        if webhook is None:
            return
        attempts = webhook.attempts + 1
        try:
            async with asyncio.timeout(self._config.timeout_s):
                await self._post(client, job, webhook.url, attempts)
        except (TimeoutError, httpx.TimeoutException):
            self._is_slow(job)
            after = self._failed(webhook, f"no answer within {self._config.timeout_s:g} s")
        except NotDelivered as error:
            after = self._failed(webhook, str(error), is_final=error.is_final)
        except httpx.HTTPError as error:
            after = self._failed(webhook, f"{type(error).__name__}: {error}")
        except Exception as error:
            # Whatever a receiver has found: nobody else's message may be lost for it, nor this one be tried for ever.
            log.error("webhook.crashed", job_id=job.id, exc_info=error)
            after = self._failed(webhook, "the message could not be sent")
        else:
            after = replace(webhook, attempts=attempts, next_at=None, delivered_at=datetime.now(UTC), error="")
        given_up = after.delivered_at is None and after.next_at is None
        outcome = "given_up" if given_up else "failed" if after.delivered_at is None else "delivered"
        tell = log.debug if outcome == "delivered" else log.warning
        tell(f"webhook.{outcome}", job_id=job.id, attempt=attempts, reason=after.error)
        self._observer.told(outcome)
        await self._note(job, after)

    def _failed(self, webhook: Webhook, reason: str, *, is_final: bool = False) -> Webhook:
        attempts = webhook.attempts + 1
        next_at = None
        if not is_final and attempts < self._config.attempts:
            wait_s = retry_in(
                attempts,
                first_s=self._config.first_retry_s,
                longest_s=self._config.longest_retry_s,
                chance=random.random(),
            )
            next_at = datetime.now(UTC) + timedelta(seconds=wait_s)
        return replace(webhook, attempts=attempts, next_at=next_at, error=reason[:MOST_REASON])

    async def _note(self, job: Job, webhook: Webhook) -> None:
        pause = Pause()
        for _ in range(NOTE_TRIES):
            try:
                await self._store.set_webhook(job.id, webhook)
                return
            except StockadeError as error:
                log.warning("webhook.not_noted", job_id=job.id, reason=str(error))
            await asyncio.sleep(pause.next_s())

    async def _post(self, client: httpx.AsyncClient, job: Job, url: str, attempt: int) -> None:
        """Send the message; returns once the receiver has taken it.

        Raises:
            NotDelivered, httpx.HTTPError: it has not.
        """
        try:
            target = httpx.URL(url)
        except httpx.InvalidURL:
            raise Refused("not a URL") from None
        if target.scheme not in ("http", "https") or not target.host or target.userinfo:
            raise Refused("not an http or https URL of a host")
        port = target.port or (443 if target.scheme == "https" else 80)
        address = await self._address(target.host, port)
        body = describe(job)
        request = client.build_request(
            "POST",
            target.copy_with(host=str(address), fragment=None),
            content=body,
            headers={
                "Host": target.netloc.decode("ascii"),
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": f"Stockade/{__version__}",
                "Stockade-Job": job.id,
                "Stockade-Attempt": str(attempt),
                SIGNATURE_HEADER: signature(secret_of(self._secret, job.account_id), body, at=int(time.time())),
            },
            # The certificate must be the name's although we connect to the address.
            extensions={"sni_hostname": target.host} if target.scheme == "https" else {},
        )
        response = await client.send(request, stream=True)
        with contextlib.suppress(httpx.HTTPError):  # what comes after the status is of no interest
            await response.aclose()
        client.cookies.clear()
        if not response.is_success:
            raise NotDelivered(f"the receiver answered {response.status_code}")

    async def _address(self, host: str, port: int) -> IPAddress:
        """The address to connect to; refused when *any* address of the name is not permitted."""
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError, ValueError):
            addresses = []
        if not addresses:
            raise NotDelivered("the name does not resolve")
        if not all(map(self._permitted, addresses)):
            raise Refused("the address is not a public one")
        return addresses[0]


def _whose(job: Job) -> str:
    return job.account_id or job.key_id
