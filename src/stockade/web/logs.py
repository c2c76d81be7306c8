"""What is kept of a main process's output, as one piece."""

import asyncio

from stockade.backends.sandboxing import Streams

__all__ = ["kept_output"]

NOTHING_MORE_S = 0.1
"""What has been printed already comes at once; after such a pause, it has all come."""
MOST_S = 5.0
"""A process that prints without a pause has no end."""
MOST_BYTES = 2 * 1024 * 1024
"""Of the end of the output: no page shows more."""


async def kept_output(source: Streams, *, is_stderr: bool) -> bytes:
    """The end of one stream, as far as it is kept.

    Raises:
        NotFound: none of it is kept any more.
        BackendLost: the warden died.
    """
    content = bytearray()
    stdout_at = stderr_at = 0
    loop = asyncio.get_running_loop()
    until = loop.time() + MOST_S
    while loop.time() < until:
        try:
            async with asyncio.timeout(NOTHING_MORE_S):
                output = await source.read(stdout_at, stderr_at)
        except TimeoutError:
            break
        content += (output.stderr if is_stderr else output.stdout).data
        del content[:-MOST_BYTES]
        if output.end is not None:
            break
        stdout_at, stderr_at = output.stdout.end, output.stderr.end
    return bytes(content)
