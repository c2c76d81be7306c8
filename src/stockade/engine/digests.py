"""Names for content: SHA-256 over members that cannot run into each other."""

import hashlib
from collections.abc import Iterable

__all__ = ["digest"]


def digest(domain: str, members: Iterable[str | bytes]) -> str:
    """The hexadecimal SHA-256 of *members* in their order, each with its length before it.

    Args:
        domain: what the digest is for; two purposes never share a digest, whatever their members.
    """
    total = hashlib.sha256()
    for member in (domain, *members):
        data = member.encode(errors="surrogatepass") if isinstance(member, str) else member
        total.update(len(data).to_bytes(8, "big"))
        total.update(data)
    return total.hexdigest()
