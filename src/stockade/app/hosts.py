"""Which names in a request's `Host` header a listener answers to."""

import ipaddress
from collections.abc import Collection

__all__ = ["is_answered", "name_of"]


def name_of(host: bytes) -> str:
    """The name or address in a `Host` header, without its port and brackets, in lower case."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def is_answered(host: bytes, names: Collection[str] | None) -> bool:
    """Whether one of *names* is in the `Host` header, or an IP address, which cannot be rebound; `None`: any is.

    So is a header that is not there: no browser leaves it out.
    """
    name = name_of(host)
    return names is None or not name or name in names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
