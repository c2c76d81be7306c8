"""A process and the user: what it writes goes out, what is typed goes in, until it ends or the user leaves."""

import asyncio
import contextlib
import os
import queue
import select
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import typer

from stockade.cli.sandbox_terminal import DetachKeys, Terminal, size

if TYPE_CHECKING:
    from stockade.sdk import AsyncProcess, Chunk

__all__ = ["STDERR", "STDIN", "STDOUT", "Writer", "converse", "standard_input"]

STDIN, STDOUT, STDERR = 0, 1, 2
READ_BYTES = 1 << 16


async def converse(
    process: "AsyncProcess",
    *,
    takes_input: bool,
    keys: DetachKeys | None = None,
    terminal: Terminal | None = None,
    follows_size: bool = False,
) -> int | None:
    """Connect a process with our standard streams; its exit code at the end, or None when *keys* were typed.

    Args:
        takes_input: pass our standard input on; its end is the end of the process's.
        terminal: has its mode as long as it lasts.
        follows_size: tell the process when our terminal's size changes.

    Raises:
        SdkError: the stream is lost.
        BrokenPipeError: nobody reads our output any more.
    """
    writer = Writer()
    listening = asyncio.create_task(_listen(process, writer, is_raw=follows_size and terminal is not None))
    typing = asyncio.create_task(_type(process, keys or DetachKeys(b""))) if takes_input else None
    others = [asyncio.create_task(_follow_size(process))] if follows_size else []
    tasks = [listening, *([typing] if typing else []), *others]
    with contextlib.ExitStack() as stack:
        if terminal is not None:
            stack.enter_context(terminal)
            stack.enter_context(_stops_in_order(terminal))
        try:
            if typing is not None:
                await asyncio.wait({listening, typing}, return_when=asyncio.FIRST_COMPLETED)
                if typing.done() and not listening.done() and typing.result():
                    return None
            await listening
            return process.exit_code
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()


async def _listen(process: "AsyncProcess", writer: "Writer", *, is_raw: bool) -> None:
    from stockade.sdk import Source, StreamFailed

    told, complaint = "", b""
    try:
        async for chunk in process:
            if chunk.source is not Source.NOTICE:
                complaint = chunk.data if chunk.source is Source.STDERR else b""
                await writer.write(STDOUT if chunk.source is Source.STDOUT else STDERR, chunk.data)
            elif chunk.data.strip() != complaint.strip():  # else: why it did not start, which is on its own stderr too
                told = chunk.text
                await writer.write(STDERR, _notice(chunk, "\r\n" if is_raw else "\n"))
    except StreamFailed as error:
        if str(error) != told:
            raise
        raise typer.Exit(1) from None  # one line does it


def _notice(chunk: "Chunk", end: str) -> bytes:
    # The server's text may quote what a tenant chose: control characters do not belong on a terminal.
    text = "".join(one if one.isprintable() else "\ufffd" for one in chunk.text.strip())
    return f"stockade: {text}{end}".encode()


async def _type(process: "AsyncProcess", keys: DetachKeys) -> bool:
    """Pass standard input on to its end; whether the keys were typed before."""
    async for data in standard_input():
        passed, is_detached = keys.feed(data)
        is_read = await process.write(passed)
        if is_detached:
            return True
        if not is_read:
            return False
    await process.write(keys.rest())
    await process.close_stdin()
    return False


async def standard_input() -> AsyncIterator[bytes]:
    """Our standard input as it comes. It is never made non-blocking: others have the same terminal or pipe open."""
    while True:
        try:
            await _readable(STDIN)
            data = os.read(STDIN, READ_BYTES)
        except BlockingIOError:
            continue  # another process was quicker
        except OSError:
            return  # closed, or a terminal that is gone
        if not data:
            return
        yield data


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(descriptor, _tell, ready, None)
    except PermissionError:
        return  # a regular file: it cannot be polled, and never makes us wait
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def _follow_size(process: "AsyncProcess") -> None:
    """Tell the process our terminal's size now, and whenever it changes."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    changed.set()  # since the process was started with the size that we had then
    loop.add_signal_handler(signal.SIGWINCH, changed.set)
    told: tuple[int, int] | None = None
    try:
        while True:
            await changed.wait()
            changed.clear()
            now = size(STDIN if os.isatty(STDIN) else STDOUT)
            if now != told:
                told = now
                await process.resize(*now)
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


@contextlib.contextmanager
def _stops_in_order(terminal: Terminal) -> Iterator[None]:
    """While we are stopped (`kill -TSTP`) the terminal is as the shell wants it; when we go on, as we do."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        terminal.reset()
        os.kill(os.getpid(), signal.SIGSTOP)

    handlers: dict[int, Callable[[], None]] = {signal.SIGTSTP: stop, signal.SIGCONT: terminal.set}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


class Writer:
    """Writes in a thread of its own, so that a reader of ours who rests (`| less`) does not keep us from hearing.

    The thread is a daemon: a write that never ends does not keep us from leaving either.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wanted: queue.SimpleQueue[tuple[int, bytes, asyncio.Future[None]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="output", daemon=True).start()

    async def write(self, descriptor: int, data: bytes) -> None:
        """Write all of *data*. Raises BrokenPipeError, OSError."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._wanted.put((descriptor, data, done))
        await done

    def close(self) -> None:
        """Let the thread end; it is not waited for."""
        self._wanted.put(None)

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            descriptor, data, done = wanted
            error: OSError | None = None
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[_write(descriptor, rest) :]
            except OSError as caught:
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(_tell, done, error)


def _write(descriptor: int, data: memoryview) -> int:
    try:
        return os.write(descriptor, data)
    except BlockingIOError:
        # Whoever shares it with us has made it non-blocking.
        select.select([], [descriptor], [])
        return 0


def _tell(done: "asyncio.Future[None]", error: OSError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
