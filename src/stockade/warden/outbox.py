"""Messages to a process of ours that it may be too slow to take: sent, or kept in order until there is room again."""

import os
import socket
from collections import deque
from typing import Any

from . import protocol
from .journal import say_traceback

__all__ = ["Outbox", "close_all"]


class Outbox:
    """What is still to be sent over a channel; nothing here waits."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._waiting: deque[tuple[dict[str, Any], tuple[int, ...]]] = deque()

    def __len__(self) -> int:
        """How many messages wait."""
        return len(self._waiting)

    def put(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> bool:
        """Send a message, or keep it for later; its descriptors are ours from here. As `flush`."""
        self._waiting.append((message, descriptors))
        return self.flush()

    def flush(self) -> bool:
        """Send what the channel has room for; False when there is nobody at its other end any more."""
        while self._waiting:
            message, descriptors = self._waiting[0]
            try:
                protocol.send(self._channel, message, descriptors)
            except BlockingIOError:
                return True  # it has messages to answer: there is room again when it has
            except protocol.UNSENDABLE:  # ours to mend; were it kept, nothing behind it would ever be sent
                say_traceback()
            except OSError:
                return False
            self._waiting.popleft()
            close_all(descriptors)
        return True

    def clear(self) -> None:
        """Send none of it."""
        while self._waiting:
            close_all(self._waiting.popleft()[1])


def close_all(descriptors: tuple[int, ...]) -> None:
    for fd in descriptors:
        os.close(fd)
