"""File agents that have nothing to do just now, kept for a moment: to start one takes longer than what it then does.

What is kept is our end of the channel; the agent inside waits for its next request, and ends when we hang up. It counts
as one of the sandbox's processes, takes 2 MB of its memory, and its tenant may stop or kill it: so few are kept, for
seconds, and one that is handed out again is asked first whether it is there (`NativeFiles.is_awake`).
"""

import asyncio
import socket
import weakref

from stockade.model import Limits

__all__ = ["EACH", "KEEP_S", "LEAST_MEMORY", "LEAST_PROCESSES", "MOST", "IdleAgents", "Place"]

EACH = 2
"""Kept of one sandbox and user."""
MOST = 256
"""Kept of all sandboxes together; each is a descriptor of ours."""
KEEP_S = 3.0
"""For which each is kept."""
LEAST_PROCESSES = 16
LEAST_MEMORY = 64 << 20
"""Bytes. Nothing is kept of a sandbox that has less of either: it needs what there is for itself."""


class _Home:
    """One life of a sandbox: those of another of the same name have nothing to do with it."""

    def __init__(self) -> None:
        self.is_left = False
        """Nothing more is kept."""
        self.idle: dict[str, list[socket.socket]] = {}
        """By user, the one that was kept last at the end."""


class Place:
    """Where idle agents of one sandbox and user are kept, as long as that is the sandbox it was."""

    def __init__(self, agents: "IdleAgents", home: _Home, user: str) -> None:
        self._agents = agents
        self._home = home
        self._user = user

    def take(self) -> socket.socket | None:
        """A channel that is open and has nothing to be read; the caller's to close. The one that was used last."""
        return self._agents._take(self._home, self._user)

    def keep(self, connection: socket.socket) -> None:
        """Take over *connection*, a channel on which nothing is under way. It is closed where there is no room."""
        self._agents._keep(self._home, self._user, connection)

    def leave(self) -> None:
        """Hang up on all that is kept of the sandbox, and keep nothing more of what is in use at this moment."""
        self._agents._leave(self._home)


class IdleAgents:
    """All that are kept. Close it. The event loop that calls it is always the same."""

    def __init__(self, *, keep_s: float = KEEP_S, most: int = MOST) -> None:
        self._keep_s = keep_s
        self._most = most
        # A home is there for as long as something of it is kept or in use.
        self._homes: weakref.WeakValueDictionary[str, _Home] = weakref.WeakValueDictionary()
        self._small: set[str] = set()
        """Names of sandboxes of which nothing is kept. After a restart they are not known, and it is."""
        self._idle: dict[socket.socket, tuple[_Home, str, float]] = {}
        """Whose it is, and until when it is kept; the oldest first."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def place(self, name: str, user: str) -> Place:
        """That of sandbox *name* and *user*, `user` or `root`."""
        home = self._homes.get(name)
        if home is None:
            home = self._homes[name] = _Home()
            home.is_left = name in self._small or self._is_closed
        return Place(self, home, user)

    def begin(self, name: str, limits: Limits) -> None:
        """A sandbox is made: whatever is kept by its name is another's."""
        self.forget(name)
        if limits.processes < LEAST_PROCESSES or limits.memory_bytes < LEAST_MEMORY:
            self._small.add(name)

    def leave(self, name: str) -> None:
        """Hang up on all that is kept of a sandbox, and keep nothing more of what is in use at this moment."""
        home = self._homes.pop(name, None)
        if home is not None:
            self._leave(home)

    def forget(self, name: str) -> None:
        """A sandbox has ended, or is no more."""
        self.leave(name)
        self._small.discard(name)

    def close(self) -> None:
        """Hang up on all. What is in use is not kept afterwards. Idempotent."""
        self._is_closed = True
        for home in list(self._homes.values()):
            self._leave(home)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take(self, home: _Home, user: str) -> socket.socket | None:
        waiting = home.idle.get(user, [])
        while waiting:
            connection = waiting.pop()
            del self._idle[connection]
            if _is_at_rest(connection):
                return connection
            connection.close()
        return None

    def _keep(self, home: _Home, user: str, connection: socket.socket) -> None:
        waiting = home.idle.setdefault(user, [])
        if home.is_left or self._is_closed or len(waiting) >= EACH or not _is_at_rest(connection):
            connection.close()
            return
        if len(self._idle) >= self._most:
            self._hang_up(next(iter(self._idle)))
        loop = asyncio.get_running_loop()
        waiting.append(connection)
        self._idle[connection] = (home, user, loop.time() + self._keep_s)
        if self._timer is None:
            self._timer = loop.call_later(self._keep_s, self._expire)

    def _leave(self, home: _Home) -> None:
        home.is_left = True
        for waiting in home.idle.values():
            while waiting:
                self._hang_up(waiting[-1])

    def _hang_up(self, connection: socket.socket) -> None:
        home, user, _ = self._idle.pop(connection)
        home.idle[user].remove(connection)
        connection.close()

    def _expire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._idle:
            connection, (_, _, until) = next(iter(self._idle.items()))
            if until > loop.time():
                self._timer = loop.call_at(until, self._expire)
                return
            self._hang_up(connection)


def _is_at_rest(connection: socket.socket) -> bool:
    """Whether the other end is there and has said nothing."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
