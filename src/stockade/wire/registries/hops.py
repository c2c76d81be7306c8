"""Requests to a registry, and to where it leads, without lending whoever named it our place in the network.

| threat | mechanism |
|---|---|
| reaching services of this host or its network | every address of a name must be public, or in a network that the operator permits to registries |
| a public registry that leads into a permitted network | private addresses are reached only when the registry itself has one |
| DNS rebinding: a name that changes after the check | resolved once; connections go to the checked address |
| a redirect or a token service inwards | each hop is checked like the first; few hops; no way from https to http |
| credentials that follow a redirect to somebody else | sent to the origin that they are meant for alone |
| a connection that was made for one name, used for another | none is kept |
| the server's own credentials, proxies | a client without cookies, `.netrc` or proxy variables |
| an answer without end, or compressed to nothing | sizes and deadlines at whoever reads; content encodings are refused |
"""  # noqa: E501

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx

from stockade import __version__
from stockade.engine.image_sources import ImageUnavailable
from stockade.wire.fetch import IPAddress, Resolve, is_public, resolve
from stockade.wire.registries.failures import ImageRejected, RegistryNotAllowed

__all__ = ["Hops", "Landed", "host_of", "keep_location", "new_client"]

MOST_HOPS = 6
CONNECT_S = 10.0
SILENCE_S = 30.0
"""Longest time without a byte."""
MOST_URL_CHARACTERS = 16 * 1024
_LOCATION = "stockade.location"
_PORTS = {"https": 443, "http": 80}


def new_client() -> httpx.AsyncClient:
    """A client for any number of registries. Whoever makes it closes it."""
    trust = httpx.create_ssl_context(trust_env=False)
    trust.load_default_certs()  # the system's: a company's own authorities are there
    return httpx.AsyncClient(
        verify=trust,
        trust_env=False,  # a proxy would resolve the name again
        follow_redirects=False,
        timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        event_hooks={"response": [keep_location]},
    )


async def keep_location(response: httpx.Response) -> None:
    """Put aside where a redirect leads, before the library looks there and makes errors of its own of it."""
    if response.has_redirect_location:
        response.extensions[_LOCATION] = response.headers.pop("location")


@dataclass(frozen=True, kw_only=True)
class Landed:
    """An answer that is not a redirect. Whoever has it closes the response."""

    response: httpx.Response
    is_home: bool
    """Whether the registry itself gave it."""


@dataclass(kw_only=True)
class Hops:
    """Sends GET requests on behalf of one pull."""

    client: httpx.AsyncClient
    home: httpx.URL
    """Any URL of the registry."""
    permitted: Callable[[IPAddress], bool] = lambda _: False
    """Whether an address may be connected to although it is not public."""
    insecure: frozenset[str] = frozenset()
    """Those (`host:port`, or `host`) that are spoken to without TLS."""
    resolve: Resolve = resolve
    _addresses: dict[tuple[str, int], deque[IPAddress]] = field(default_factory=dict, init=False)
    _home_is_private: bool = field(default=False, init=False)

    async def get(self, url: httpx.URL, headers: Mapping[str, str], *, authorization: str = "") -> Landed:
        """What *url*, or where it leads, answers; the body is still to be read, raw.

        Args:
            authorization: for the origin of *url*; nobody else sees it.

        Raises:
            RegistryNotAllowed, ImageRejected: it, or where it leads, may not be asked, or makes no sense.
            ImageUnavailable: the name does not resolve.
            httpx.HTTPError: nothing, or no HTTP, answers there.
        """
        self._check(url)
        for _ in range(MOST_HOPS):
            own = {"Authorization": authorization} if authorization else {}
            response = await self._send(url, {**headers, **own})
            location = response.extensions.get(_LOCATION)
            if location is None:
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    await response.aclose()
                    raise ImageRejected(f"{host_of(url)} answers with a content encoding that nobody asked for")
                return Landed(response=response, is_home=_origin(url) == _origin(self.home))
            await response.aclose()
            onward = self._joined(url, location)
            if url.scheme == "https" and onward.scheme != "https":
                raise RegistryNotAllowed(f"{host_of(url)} redirects to {host_of(onward)} without TLS")
            if _origin(onward) != _origin(url):
                authorization = ""
            url = onward
        raise ImageRejected(f"{host_of(url)} redirects more than {MOST_HOPS - 1} times")

    def _joined(self, base: httpx.URL, location: str) -> httpx.URL:
        try:
            onward = base.join(location).copy_with(fragment=None)
        except (httpx.InvalidURL, ValueError):
            raise ImageRejected(f"{host_of(base)} redirects to what is no URL") from None
        self._check(onward)
        return onward

    def _check(self, url: httpx.URL) -> None:
        """Raise RegistryNotAllowed or ImageRejected unless a request could be sent there, as far as its URL tells."""
        if url.scheme not in _PORTS or not host_of(url):
            raise ImageRejected("only https and http are spoken to registries")
        if url.port is not None and not 0 < url.port < 1 << 16:
            raise ImageRejected(f"{host_of(url)} has no port {url.port}")
        if url.userinfo or len(str(url)) > MOST_URL_CHARACTERS:
            raise ImageRejected(f"a URL at {host_of(url)} holds a user, or is too long")
        if url.scheme == "http" and not {url.netloc.decode("ascii"), f"{host_of(url)}:{_port(url)}"} & self.insecure:
            raise RegistryNotAllowed(
                f"{host_of(url)} is to be spoken to without TLS, which registries.insecure does not allow"
            )

    async def _send(self, url: httpx.URL, headers: Mapping[str, str]) -> httpx.Response:
        addresses = await self._checked(url)
        request = self.client.build_request(
            "GET",
            url.copy_with(host=str(addresses[0])),
            headers={
                "Host": url.netloc.decode("ascii"),
                "Accept-Encoding": "identity",
                "User-Agent": f"Stockade/{__version__}",
                **headers,
            },
            # The certificate must be the name's although we connect to the address.
            extensions={"sni_hostname": host_of(url), "timeout": self.client.timeout.as_dict()},
        )
        try:
            response = await self.client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            addresses.rotate(-1)  # for who tries again
            raise
        self.client.cookies.clear()
        return response

    async def _checked(self, url: httpx.URL) -> deque[IPAddress]:
        """The addresses to connect to, the next one first: the same for the whole of the pull."""
        where = (host_of(url), _port(url))
        if (known := self._addresses.get(where)) is not None:
            return known
        try:
            async with asyncio.timeout(CONNECT_S):
                addresses = await self.resolve(*where)
        except (OSError, UnicodeError, ValueError):  # TimeoutError is an OSError
            addresses = []
        if not addresses:
            raise ImageUnavailable(
                f"the name {host_of(url)} does not resolve. Where no registry is in reach, `stockade image "
                "import` brings images here"
            )
        is_home = _origin(url) == _origin(self.home)
        private = [address for address in addresses if not is_public(address)]
        if not all(map(self.permitted, private)):
            raise RegistryNotAllowed(f"{host_of(url)} has an address that is not public; see registries.permit_private")
        if private and not (is_home or self._home_is_private):
            raise RegistryNotAllowed(
                f"{host_of(self.home)} leads to {host_of(url)}, which has an address that is not public"
            )
        if is_home and private:
            self._home_is_private = True
        return self._addresses.setdefault(where, deque(addresses))


def host_of(url: httpx.URL) -> str:
    """The host as it is sent; the library's own would decode an international name, and fails where it is none."""
    return url.raw_host.decode("ascii")


def _port(url: httpx.URL) -> int:
    return url.port or _PORTS[url.scheme]


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, host_of(url), _port(url)
