"""Checks on the URLs that an operator configures."""

import httpx

from stockade.config import is_loopback
from stockade.errors import Invalid

__all__ = ["require_https"]


def require_https(name: str, url: str) -> str:
    """*url* itself, when nobody on the way can read or change what it answers; also when it is empty.

    Raises:
        Invalid: it is neither https nor on this machine. The message begins with *name*.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise Invalid(f"{name}: not a URL (got {url!r})") from None
    if not url or parsed.scheme == "https" or (parsed.scheme == "http" and is_loopback(parsed.host)):
        return url
    raise Invalid(f"{name}: must begin with https:// (got {url!r})")
