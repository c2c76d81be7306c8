"""Fetch what a caller names, without lending the caller our place in the network.

| threat | mechanism |
|---|---|
| reaching services of this host or its network | hosts are listed by the operator; all addresses must be public |
| DNS rebinding: a name that changes after the check | resolved once; the connection goes to the checked address |
| a redirect inwards | each hop is checked like the first; few hops |
| an endless, huge or compressed answer | one deadline, a size cap, no content encodings |
| the server's own credentials, proxies | a client without cookies, `.netrc` or proxy variables |
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import httpx

from stockade.settings import ConfigError

__all__ = ["FetchError", "Fetcher", "is_public", "resolve", "within"]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[IPAddress]]]

MAX_HOPS = 5

# https://www.iana.org/assignments/iana-ipv4-special-registry and its IPv6 twin. Written out: what Python's
# `is_global` says about several of these differs between its versions.
_REFUSED_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local; cloud metadata services
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",
        ),
    )
)
# All public IPv6 space is in 2000::/3. Loopback, unique-local, link-local, multicast, IPv4-mapped and NAT64
# addresses are outside of it; these parts of it carry IPv4 addresses inside or lead nowhere.
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)


class FetchError(Exception):
    """A URL that was not fetched; the message is the reason, fit for the caller's eyes."""


def is_public(address: IPAddress) -> bool:
    """Whether *address* is one of the internet's, not one of this host, its network or its provider."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    return address in _PUBLIC_V6 and not any(address in network for network in _REFUSED_V6)


def within(networks: Iterable[str], *, setting: str) -> Callable[[IPAddress], bool]:
    """Tells whether an address is in one of *networks*, which the operator has named.

    Args:
        setting: where they are named, for the error.

    Raises:
        ConfigError: one of them is no network.
    """
    permitted = []
    for text in networks:
        try:
            permitted.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ConfigError(f"{setting}: {error} (got {text!r})") from None
    return lambda address: any(address in network for network in permitted)


async def resolve(host: str, port: int) -> Sequence[IPAddress]:
    """Addresses of *host*, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """Fetches text from hosts that the operator has listed."""

    hosts: tuple[str, ...]
    """Names that may be asked; `*.example.org` stands for all below, `*` for any. Empty: nothing is fetched."""
    max_bytes: int
    timeout_s: float
    """For one URL with its redirects."""
    permitted: Callable[[IPAddress], bool] = is_public
    resolve: Resolve = resolve

    async def text(self, url: str) -> str:
        """The body that *url* answers a GET with; invalid UTF-8 becomes U+FFFD.

        Raises:
            FetchError: it is not allowed, or did not answer 200-299 in time and size.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                return (await self._follow(url)).decode(errors="replace")
        except TimeoutError:
            raise FetchError(f"no answer within {self.timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise FetchError(f"{type(error).__name__}: {error}"[:200]) from None

    async def _follow(self, url: str) -> bytes:
        # trust_env=False: no proxies, no .netrc. A proxy would resolve the name again.
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=self.timeout_s) as client:
            target = self._parse(url)
            for _ in range(MAX_HOPS):
                answer = await self._get(client, target)
                if isinstance(answer, bytes):
                    return answer
                target = self._parse(answer, target)
        raise FetchError(f"more than {MAX_HOPS - 1} redirects")

    def _parse(self, url: str, base: httpx.URL | None = None) -> httpx.URL:
        try:
            target = httpx.URL(url) if base is None else base.join(url)
        except (httpx.InvalidURL, ValueError):
            raise FetchError("not a URL") from None
        if target.scheme not in ("http", "https"):
            raise FetchError("only http and https are fetched")
        if not target.host or target.userinfo:
            raise FetchError("the URL must name a host, and no user")
        if not self._listed(target.host):
            raise FetchError(f"this server does not fetch from {target.host[:100]}")
        return target

    def _listed(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        for entry in (one.lower() for one in self.hosts):
            if entry in ("*", name) or (entry.startswith("*.") and name.endswith(entry[1:])):
                return True
        return False

    async def _get(self, client: httpx.AsyncClient, target: httpx.URL) -> bytes | str:
        """The body, or where a redirect points."""
        port = target.port or (443 if target.scheme == "https" else 80)
        address = await self._address(target.host, port)
        request = client.build_request(
            "GET",
            target.copy_with(host=str(address)),
            headers={
                "Host": target.netloc.decode("ascii"),
                "Accept-Encoding": "identity",
            },
            # The certificate must be the name's although we connect to the address.
            extensions={"sni_hostname": target.host} if target.scheme == "https" else {},
        )
        response = await client.send(request, stream=True)
        try:
            if response.has_redirect_location:
                return response.headers["location"]
            if not response.is_success:
                raise FetchError(f"the server answered {response.status_code}")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise FetchError("the answer is compressed")
            return await self._read(response)
        finally:
            await response.aclose()

    async def _address(self, host: str, port: int) -> IPAddress:
        """The address to connect to; refused when *any* address of the name is not permitted."""
        try:
            addresses = await self.resolve(host, port)
        except (OSError, UnicodeError, ValueError):
            raise FetchError("the name does not resolve") from None
        if not addresses:
            raise FetchError("the name does not resolve")
        for address in addresses:
            if not self.permitted(address):
                raise FetchError("the address is not a public one")
        return addresses[0]

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > self.max_bytes:
                raise FetchError(f"the answer is larger than {self.max_bytes} bytes")
        return bytes(body)
