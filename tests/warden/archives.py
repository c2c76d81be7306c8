"""Archives for the tests of whatever reads them."""

import io
import tarfile
from collections.abc import AsyncIterator

__all__ = ["DIRECTORY", "HARD_LINK", "LINK", "archive", "pieces", "whole"]

LINK, HARD_LINK, DIRECTORY = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}, {"type": tarfile.DIRTYPE}


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def whole(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


def archive(*members: tuple[str, dict[str, object], bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of (name, attributes of its TarInfo, content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as target:
        for name, attributes, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in attributes.items():
                setattr(member, key, value)
            target.addfile(member, io.BytesIO(content))
    return out.getvalue()
