"""Uploads that must lie in a file before anything can be done with them."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from stockade.errors import Unavailable

__all__ = ["spooled"]

_WRITE_BYTES = 1 << 20


@asynccontextmanager
async def spooled(parts: AsyncIterator[bytes], directory: Path | None) -> AsyncIterator[Path]:
    """A path by which this process can open a file of what comes, during the block. The file has no name of its own,
    so that nothing is left of it, however the server ends.

    Args:
        directory: where it lies; `None` for where temporary files of this host go.

    Raises:
        Unavailable: there is no room for it.
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            kept = bytearray()
            async for part in parts:
                kept += part
                if len(kept) >= _WRITE_BYTES:
                    await asyncio.to_thread(file.write, bytes(kept))
                    kept.clear()
            file.write(kept)
            file.flush()
            yield Path(f"/proc/self/fd/{file.fileno()}")
    except OSError as error:
        raise Unavailable(f"the upload cannot be kept: {error.strerror}") from error
