"""What comes out of a container: Docker's frames, and in them the guest's. Neither is believed.

The guest is ours, yet it runs where the tenant does: what it says is held to the limits of the request here as well.
"""

import asyncio
import json
import struct
from dataclasses import dataclass, field
from typing import Any, Final

from stockade.backends.docker.gate import TRAILER
from stockade.backends.docker.guest import COLLECTED, ENDED, HEAD, MOST_FRAME, OUTPUT, STARTED
from stockade.errors import Fault

__all__ = ["Conversation"]

_FRAME: Final = struct.Struct(">BxxxL")  # Docker's: stream, length
_STDOUT, _STDERR = 1, 2
_MOST_COMPLAINT = 4096
_MOST_DOCKER_FRAME = 1 << 20
_COUNTS: Final = {
    "oom_kills": int, "forks_refused": int, "cpu_user_us": int, "cpu_system_us": int, "memory_peak": int,
}  # fmt: skip
_REASONS: Final = (None, "wall_time", "cpu_time", "memory", "output", "disk")


@dataclass(kw_only=True)
class Conversation:
    """What one guest has said so far."""

    most_output: int
    most_collected: int
    started: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None
    trailer: dict[str, Any] | None = None
    """What the engine says of a guest that ended without a word."""
    output: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    collected: bytearray = field(default_factory=bytearray)
    complaint: bytes = b""
    _buffer: bytearray = field(default_factory=bytearray)

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Read until the guest has told how it ended, or the streams have.

        Raises:
            Fault: what came is no conversation of a guest's.
        """
        while self.facts is None:
            try:
                stream, length = _FRAME.unpack(await reader.readexactly(_FRAME.size))
                if length > _MOST_DOCKER_FRAME:
                    raise Fault(f"the gate sent a frame of {length} bytes")
                data = await reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            if stream == TRAILER:
                self.trailer = _object(data)
            elif stream == _STDERR:
                self.complaint = (self.complaint + data)[:_MOST_COMPLAINT]
            elif stream == _STDOUT:
                self._buffer += data
                self._take()

    def _take(self) -> None:
        while len(self._buffer) >= HEAD.size and self.facts is None:
            kind, length = HEAD.unpack_from(self._buffer)
            if length > MOST_FRAME:
                raise Fault("the guest of a container sent what it never does")
            if len(self._buffer) < HEAD.size + length:
                return
            data = bytes(self._buffer[HEAD.size : HEAD.size + length])
            del self._buffer[: HEAD.size + length]
            self._hear(kind, data)

    def _hear(self, kind: bytes, data: bytes) -> None:
        if kind in OUTPUT:
            kept = self.output[OUTPUT.index(kind)]
            kept += data[: self.most_output - len(kept)]
        elif kind == COLLECTED:
            self.collected += data
            if len(self.collected) > self.most_collected:
                raise Fault("the guest of a container sent more than it may")
        elif kind == STARTED:
            self.started = _object(data)
        elif kind == ENDED:
            self.facts = _facts(_object(data))
        else:
            raise Fault("the guest of a container sent what it never does")


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Fault("the guest of a container sent what it never does")
    return value


def _facts(told: dict[str, Any]) -> dict[str, Any]:
    """The facts of which an outcome is made, each of its type."""
    try:
        status, reason = told["status"], told["reason"]
        if reason not in _REASONS:
            raise ValueError
        return {
            "reason": reason,
            "status": None if status is None else int(status) & 0xFFFF,
            "disk_full": told["disk_full"] is True,
            "collected": told["collected"] is True,
            "wall_s": max(float(told["wall_s"]), 0.0),
            "truncated": (told["truncated"][0] is True, told["truncated"][1] is True),
            **{name: max(kind(told[name]), 0) for name, kind in _COUNTS.items()},
        }
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise Fault("the guest of a container told what makes no sense") from None
