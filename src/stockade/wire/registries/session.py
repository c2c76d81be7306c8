"""One pull's conversation with a registry: proving who asks, trying again, and what the registry said when it refused.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md
https://distribution.github.io/distribution/spec/auth/token/
"""

import asyncio
import base64
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from stockade.engine.image_references import DOCKER_HUB, Reference
from stockade.engine.image_sources import ImageUnavailable
from stockade.model.registries import Login
from stockade.wire.registries.challenges import Challenge, Token, challenges, token
from stockade.wire.registries.failures import ImageMissing, ImageRejected
from stockade.wire.registries.hops import Hops, Landed, host_of

__all__ = ["Deadline", "Session", "read", "reason", "registry_url"]

TRIES = 4
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 20.0
"""That a registry may ask for before another try; who asks for more is told as having refused."""
MOST_TOKEN_BYTES = 256 * 1024
MOST_ERROR_BYTES = 16 * 1024
MOST_SAID = 300
"""Characters of what a registry says that are passed on."""
_LIVES_ON_S = 10.0
"""A token is renewed so long before its end."""
_PASSING = (408, 429, 500, 502, 503, 504)
_HUB = "registry-1.docker.io"


class Deadline:
    """A moment by which all must be done."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._at = time.monotonic() + within_s

    def left_s(self) -> float:
        """Seconds until then; 0 when it is past."""
        return max(0.0, self._at - time.monotonic())

    @contextlib.asynccontextmanager
    async def limiting(self, what: str) -> AsyncIterator[None]:
        """End the block with ImageUnavailable once the moment has come."""
        try:
            async with asyncio.timeout(self.left_s()):
                yield
        except TimeoutError:
            raise self.missed(what) from None

    def missed(self, what: str) -> ImageUnavailable:
        """The error for what was not done by then."""
        return ImageUnavailable(f"{what}: not done within {self._within_s:g} s (registries.pull_time_s)")


def registry_url(registry: str, *, insecure: Collection[str]) -> httpx.URL:
    """Where a registry answers, by its name in references.

    Raises:
        ImageRejected: its port is none.
    """
    host = _HUB if registry == DOCKER_HUB else registry
    try:
        return httpx.URL(f"{'http' if registry in insecure else 'https'}://{host}/")
    except httpx.InvalidURL:
        raise ImageRejected(f"{registry!r} is no registry's host") from None


async def read(response: httpx.Response, most: int) -> bytes:
    """The body of an answer, which is closed then.

    Raises:
        ImageRejected: it is longer than *most* bytes.
        httpx.HTTPError: it broke off.
    """
    body = bytearray()
    try:
        async for part in response.aiter_raw():
            body += part
            if len(body) > most:
                raise ImageRejected(f"{response.request.headers['host']} answers with more than {most} bytes")
    finally:
        await response.aclose()
    return bytes(body)


@dataclass(kw_only=True)
class Session:
    """Asks a registry about one repository."""

    hops: Hops
    reference: Reference
    login: Login | None
    deadline: Deadline
    _authorization: str = field(default="", init=False, repr=False)
    _valid_until: float = field(default=0.0, init=False)
    _challenge: Challenge | None = field(default=None, init=False)
    _proving: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def get(
        self, path: str, *, headers: Mapping[str, str] | None = None, expected: tuple[int, ...] = (200,)
    ) -> httpx.Response:
        """The registry's answer to a GET below `/v2/<repository>/`, its body still to be read.

        What passes (a broken connection, 429, 5xx) is tried again a few times, as late as the registry asks for.

        Raises:
            ImageMissing, ImageRejected, RegistryNotAllowed, ImageUnavailable.
        """
        url = self.hops.home.join(f"/v2/{self.reference.repository}/{path}")
        what = f"{self.reference}: {host_of(self.hops.home)}"
        has_proved = False
        tries = 0
        while True:
            tries += 1
            pause_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1))
            try:
                async with self.deadline.limiting(what):
                    authorization = await self._current()
                    landed = await self.hops.get(url, headers or {}, authorization=authorization)
                    response = landed.response
                    if response.status_code in expected:
                        return response
                    said = await _said(landed)
                    if response.status_code == 401 and landed.is_home and not has_proved:
                        has_proved = True
                        tries -= 1
                        offered = challenges(response.headers.get_list("www-authenticate"))
                        await self._prove(offered, authorization, said)
                        continue
            except httpx.HTTPError as error:
                if tries >= TRIES or _is_about_certificate(error):
                    raise ImageUnavailable(f"{what} does not answer: {reason(error)}") from error
            else:
                asked_for_s = _retry_after(response)
                # Where a registry sends us may have been meant for a while only: it is asked again, too.
                passes = response.status_code in _PASSING or not landed.is_home
                if not passes or tries >= TRIES or (asked_for_s or 0.0) > LONGEST_WAIT_S:
                    raise self._refusal(response.status_code, said, asked_for_s, is_home=landed.is_home)
                pause_s = pause_s if asked_for_s is None else asked_for_s
            await self._wait(pause_s, what)

    async def _wait(self, for_s: float, what: str) -> None:
        if for_s >= self.deadline.left_s():
            raise self.deadline.missed(what)
        await asyncio.sleep(for_s)

    def _refusal(self, status: int, said: str, asked_for_s: float | None, *, is_home: bool = True) -> Exception:
        answered = f"{self.reference}: the registry answered {status}{said}"
        if status in _PASSING or not is_home:
            return ImageUnavailable(answered, retry_after_s=asked_for_s or 5.0)
        if status == 404:
            return ImageMissing(f"{self.reference}: the registry has no such image{said}")
        if status in (401, 403):
            how = (
                f"does not let {self.login.username!r} in, or has no such image"
                if self.login is not None
                else "has no such image, or none without credentials"
            )
            return ImageMissing(f"{self.reference}: the registry {how}{said}")
        return ImageRejected(answered)

    async def _current(self) -> str:
        """What proves who asks, made anew where it is about to end; empty where nothing was asked for yet."""
        if self._challenge is not None and time.monotonic() >= self._valid_until:
            await self._prove((self._challenge,), self._authorization, "")
        return self._authorization

    async def _prove(self, offered: tuple[Challenge, ...], refused: str, said: str) -> None:
        """Get what the registry asks for, unless somebody else has done so meanwhile.

        Args:
            refused: what it was shown, and did not take.
            said: what it said then.

        Raises:
            ImageMissing, ImageRejected, RegistryNotAllowed: it cannot be had.
            ImageUnavailable, httpx.HTTPError: not now.
        """
        async with self._proving:
            if self._authorization != refused:
                return  # another layer's request has renewed it
            bearer = next((one for one in offered if one.scheme == "bearer" and one.parameters.get("realm")), None)
            if bearer is not None:
                given = await self._token(bearer)
                self._challenge = bearer
                self._authorization = f"Bearer {given.text}"
                self._valid_until = time.monotonic() + max(given.life_s - _LIVES_ON_S, 1.0)
                return
            if any(one.scheme == "basic" for one in offered):
                if self.login is None or refused:
                    raise self._refusal(401, said, None)
                self._authorization = _basic(self.login)
                return
            raise ImageRejected(f"{self.reference}: the registry wants a proof of who asks that is not known here")

    async def _token(self, bearer: Challenge) -> Token:
        realm = bearer.parameters["realm"]
        try:
            url = httpx.URL(realm)
            # For this repository, and to read only: whatever scope the registry proposes.
            query = {"scope": f"repository:{self.reference.repository}:pull"}
            if (service := bearer.parameters.get("service")) is not None:
                query["service"] = service
            url = url.copy_merge_params(query)
        except (httpx.InvalidURL, ValueError):
            raise ImageRejected(f"{self.reference}: the registry sends us for a token to what is no URL") from None
        landed = await self.hops.get(url, {}, authorization=_basic(self.login) if self.login is not None else "")
        status = landed.response.status_code
        if status in (401, 403):
            raise self._refusal(status, await _said(landed), None)
        body = b""
        if status == 200:
            body = await read(landed.response, MOST_TOKEN_BYTES)
        else:
            await landed.response.aclose()
        if status in _PASSING:
            raise ImageUnavailable(
                f"{self.reference}: the token service {host_of(url)} answered {status}",
                retry_after_s=_retry_after(landed.response) or 5.0,
            )
        if (given := token(body)) is None:
            raise ImageRejected(
                f"{self.reference}: the token service {host_of(url)} gave no token (it answered {status})"
            )
        return given


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.username}:{login.password}".encode()).decode("ascii")


async def _said(landed: Landed) -> str:
    """What a refusal says, to be put behind our own words; closes it. Of others than the registry: nothing."""
    response = landed.response
    if not landed.is_home:
        await response.aclose()
        return f" (at {response.request.headers['host']})"
    try:
        document = json.loads(await read(response, MOST_ERROR_BYTES))
        errors = [one for one in document["errors"] if isinstance(one, dict)]
    except (ImageRejected, httpx.HTTPError, ValueError, RecursionError, LookupError, TypeError):
        return ""
    texts = [" ".join(str(one[name]) for name in ("code", "message") if one.get(name)) for one in errors]
    text = "".join(one if one.isprintable() else " " for one in "; ".join(filter(None, texts)))
    return f": {text[:MOST_SAID]}" if text else ""


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that an answer asks to wait for; `None` when it does not."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _is_about_certificate(error: BaseException | None) -> bool:
    """Whether somebody else answers than should, or nobody vouches for them: that stays so."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def reason(error: httpx.HTTPError) -> str:
    """What went wrong, in few words."""
    return f"{type(error).__name__}{f': {error}' if str(error) else ''}"[:MOST_SAID]
