"""The event loop in which everything of the library happens: one for a process, in a thread of its own.

Programs that know no event loop, and those with several, thereby use the same sandboxes. It ends with the process, and
before the interpreter does: threads cannot be started any more once that has begun.

| after `fork` | |
|---|---|
| the child has our objects, but neither the thread nor the sandboxes | what is used in it says so (`Conflict`) |
| the child makes sandboxes of its own | it gets a loop, and an engine, of its own |
| the child ends | it leaves what is its parent's alone |
"""

import asyncio
import atexit
import importlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from stockade.errors import Conflict, Unavailable

__all__ = ["Background", "background"]

T = TypeVar("T")

_START_S = 10.0
_END_S = 30.0
"""Time for all to be cleaned up at the end of the process."""


class Background:
    """A running event loop. Made by `background`."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._closing: list[Callable[[], Awaitable[None]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False
        begun = threading.Event()
        # Not waited for by the interpreter, which would wait before it tells us that it ends.
        self._thread = threading.Thread(target=self._run, args=(begun,), name="stockade", daemon=True)
        self._thread.start()
        if not begun.wait(_START_S):
            raise Unavailable(f"the thread of the sandboxes did not start within {_START_S:g} s")

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do *work* in the loop, and wait for it.

        Raises:
            Conflict: this is a fork of the process that made the loop, or a call from within the loop.
        """
        future = self._begin(work)
        try:
            return future.result()
        except BaseException:  # also Ctrl-C, while we wait
            future.cancel()
            raise

    async def acall(self, work: Coroutine[Any, Any, T]) -> T:
        """As `call`, without holding up the caller's own event loop; cancelled with the caller."""
        return await asyncio.wrap_future(self._begin(work))

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Have *work* done some time; nobody is told how it went. In a fork, or after the end, it is dropped."""
        if self._loop is None or self._is_closed or self.pid != os.getpid():
            work.close()
            return
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed
            work.close()

    def at_end(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have *close* called before the loop ends; what is told last comes first."""
        self._closing.append(close)

    def close(self) -> None:
        """Clean up and end the thread. Idempotent; nothing happens in a fork."""
        if self._is_closed or self.pid != os.getpid() or self._loop is None:
            return
        self._is_closed = True
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(_END_S)

    def _begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        try:
            if self.pid != os.getpid():
                raise Conflict(
                    f"this sandbox belongs to process {self.pid}, of which this one is a fork; make another one here"
                )
            if self._loop is None or self._is_closed:
                raise Conflict("the process is ending, and its sandboxes with it")
            if threading.current_thread() is self._thread:
                raise Conflict("this would wait for itself: call it from a thread of your own")
        except Conflict:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, begun: threading.Event) -> None:
        asyncio.run(self._serve(begun))

    async def _serve(self, begun: threading.Event) -> None:
        self._ending = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        begun.set()
        await self._ending.wait()
        for close in reversed(self._closing):
            try:
                async with asyncio.timeout(_END_S):
                    await close()
            except Exception:
                continue


_lock = threading.Lock()
_made: Background | None = None


def background() -> Background:
    """The loop of this process, started where there is none."""
    global _made
    with _lock:
        if _made is None or _made.pid != os.getpid() or _made._is_closed:
            _made = Background()
            # Before executors are told that the interpreter ends, after which they take no more work: who asks last is
            # called first, and they ask when their module is imported. There is no public way to be called then.
            importlib.import_module("concurrent.futures.thread")
            register = getattr(threading, "_register_atexit", atexit.register)
            register(_made.close)
        return _made


def _forked() -> None:
    """In a child another thread may have held the lock, which nobody there gives back."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)
