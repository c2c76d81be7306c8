"""The user's terminal: its modes, its size, and the keys that let go of a process."""

import contextlib
import os
import termios
from collections.abc import Callable
from typing import Any, Self

__all__ = ["DetachKeys", "Terminal", "detachable", "parse_keys", "raw", "size"]

DEFAULT_SIZE = (24, 80)
Attributes = list[Any]
"""What `termios.tcgetattr` returns: flags of input, output, control and line, two speeds, control characters."""
INPUT, OUTPUT, CONTROL, LINE, CHARACTERS = 0, 1, 2, 3, 6


class Terminal:
    """A context in which a terminal has another mode.

    The mode is set and reset at once, without waiting for output to drain: a terminal that nobody reads any more, or
    that was stopped with Ctrl-S, would keep us from putting it in order.
    """

    def __init__(self, descriptor: int, change: Callable[[Attributes], None]) -> None:
        self._descriptor = descriptor
        self._change = change
        self._before: Attributes | None = None

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._descriptor)
        self.set()
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()

    def set(self) -> None:
        """Set the other mode, again where somebody else has changed it."""
        attributes = termios.tcgetattr(self._descriptor)
        self._change(attributes)
        termios.tcsetattr(self._descriptor, termios.TCSANOW, attributes)

    def reset(self) -> None:
        """Set the mode that the terminal had before."""
        if self._before is not None:
            with contextlib.suppress(termios.error):  # it is gone: the window was closed
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._before)


def raw(attributes: Attributes) -> None:
    """Every key goes through as it is, and nothing is echoed: the terminal inside does all that."""
    attributes[INPUT] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    attributes[OUTPUT] &= ~termios.OPOST
    attributes[LINE] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    attributes[CONTROL] = attributes[CONTROL] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    attributes[CHARACTERS][termios.VMIN] = 1
    attributes[CHARACTERS][termios.VTIME] = 0


def detachable(last_key: bytes) -> Callable[[Attributes], None]:
    """Lines are edited and echoed as ever, and *last_key* ends one too, so that we see it at once.

    For a process without a terminal of its own: raw mode would leave its user without echo and line editing.
    """

    def change(attributes: Attributes) -> None:
        attributes[INPUT] &= ~termios.IXON  # Ctrl-Q would be swallowed
        attributes[CHARACTERS][termios.VEOL] = last_key

    return change


def size(descriptor: int) -> tuple[int, int]:
    """Rows and columns of a terminal; 24 × 80 where there is none or it does not know."""
    try:
        columns, rows = os.get_terminal_size(descriptor)
    except OSError:
        return DEFAULT_SIZE
    return (rows or DEFAULT_SIZE[0], columns or DEFAULT_SIZE[1])


def parse_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` as the bytes that a terminal sends for it; none for an empty text.

    Raises:
        ValueError: it is no such list.
    """
    keys = bytearray()
    for key in text.split(",") if text else ():
        name = key.strip().lower()
        letter = name.removeprefix("ctrl-")
        if name == letter and len(key.strip()) == 1 and key.strip().isascii():
            keys += key.strip().encode()
        elif name != letter and len(letter) == 1 and letter in "abcdefghijklmnopqrstuvwxyz@[\\]^_":
            keys.append(ord(letter.upper()) & 0x1F)
        else:
            raise ValueError(f"{key!r} is no key; a list of them looks like ctrl-p,ctrl-q")
    return bytes(keys)


class DetachKeys:
    """Finds a sequence of keys in what is typed, however it comes in parts."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What of *data* is to be passed on now, and whether the sequence was typed.

        A beginning of the sequence is held back until it is clear what it becomes.
        """
        if not self._keys:
            return data, False
        text = self._held + data
        at = text.find(self._keys)
        if at >= 0:
            self._held = b""
            return text[:at], True
        held = next(n for n in range(min(len(self._keys) - 1, len(text)), -1, -1) if text.endswith(self._keys[:n]))
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def rest(self) -> bytes:
        """What is still held back, when there is no more to come."""
        held, self._held = self._held, b""
        return held
