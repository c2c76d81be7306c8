"""Our standard streams, for the companion of an executor: read and written in threads, so that nothing else waits.

Threads, and not the event loop: it would make what it watches non-blocking, and others have the same terminal or pipe
open. They are daemons: a read or a write that never ends does not keep us from leaving.
"""

import asyncio
import contextlib
import os
import select
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

from stockade.cli.sandbox_conversation import STDERR, STDIN, STDOUT, Writer
from stockade.cli.sandbox_terminal import Terminal, raw, size
from stockade.model import TerminalSize

__all__ = ["StandardStreams"]

READ_BYTES = 1 << 16


class StandardStreams:
    """Satisfies `stockade.app.companion.Console`."""

    def __init__(self) -> None:
        self._has_terminal = os.isatty(STDIN) and os.isatty(STDOUT) and _is_ours(STDIN)
        self._writer: Writer | None = None

    @property
    def terminal(self) -> TerminalSize | None:
        """See `Console.terminal`."""
        return _size() if self._has_terminal else None

    def attached(self) -> AbstractContextManager[object]:
        """See `Console.attached`: every key goes to the companion's own terminal, Ctrl-C too."""
        return Terminal(STDIN, raw) if self._has_terminal else contextlib.nullcontext()

    async def input(self) -> AsyncIterator[bytes]:
        """See `Console.input`: nothing is read before what was read last has been taken."""
        loop = asyncio.get_running_loop()
        parts: asyncio.Queue[bytes] = asyncio.Queue()
        wanted = threading.Semaphore(0)

        def read() -> None:
            data = b"-"
            while data:
                wanted.acquire()
                data = _read()
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants it any more
                    loop.call_soon_threadsafe(parts.put_nowait, data)

        threading.Thread(target=read, name="input", daemon=True).start()
        while True:
            wanted.release()
            if not (data := await parts.get()):
                return
            yield data

    async def sizes(self) -> AsyncIterator[TerminalSize]:
        """See `Console.sizes`."""
        if not self._has_terminal:
            return
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        loop.add_signal_handler(signal.SIGWINCH, changed.set)
        try:
            while True:
                changed.clear()
                yield _size()
                await changed.wait()
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)

    async def write(self, data: bytes, *, is_stderr: bool) -> None:
        """See `Console.write`."""
        if self._writer is None:
            self._writer = Writer()
        await self._writer.write(STDERR if is_stderr else STDOUT, data)


def _size() -> TerminalSize:
    rows, columns = size(STDIN)
    return TerminalSize(rows=rows, columns=columns)


def _is_ours(terminal: int) -> bool:
    """Whether we are in the foreground of a terminal: whoever reads from the background is stopped."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # it is not the one that controls us, and so stops nobody
        return True


def _read() -> bytes:
    """Some of standard input, as soon as there is any; nothing at its end."""
    while True:
        try:
            select.select([STDIN], [], [])
            return b"" if os.isatty(STDIN) and not _is_ours(STDIN) else os.read(STDIN, READ_BYTES)
        except BlockingIOError:
            continue  # another process was quicker
        except (OSError, ValueError):
            return b""  # closed, or a terminal that is gone
