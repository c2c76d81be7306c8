"""What goes over the warden's socket.

SOCK_SEQPACKET: one message a packet, JSON in UTF-8, descriptors beside it (SCM_RIGHTS). A client numbers its
requests; answers bear the number and may come in any order.

    → {"op": "hello", "version": 6}                       ← {"re": 0, "ok": {…report…}}
    → {"op": "run", "id": 7, "image": "host", …}          ← {"re": 7, "ok": {…}} with output descriptors
    → {"op": "template", "id": 8, "kind": "fork", …}      ← {"re": 8, "ok": {"template": 0}}
    → {"op": "run", "id": 9, "template": 0, …}            ← {"re": 9, "ok": {…}}
    → {"op": "wall", "id": 9}                             ← {"re": 9, "ok": {"name": "gvisor", …}}
    → {"op": "run", "id": 10, "wall": "gvisor", …}        ← {"re": 10, "ok": {…}}
    → {"op": "cancel", "id": 7}                           (its answer is that of the run)
                                                          ← {"re": 7, "error": {"kind": …, "message": …}}

Sandboxes that live have operations of their own (`residents`); all name the sandbox, most a process of it:

    → {"op": "create", "id": 10, "sandbox": "s1", …}      ← {"re": 10, "ok": {…info…}}
    → {"op": "exec", "id": 11, "sandbox": "s1", "process": "main", …}
                                                          ← {"re": 11, "ok": {…}} with the file of its logs, stdin
    → {"op": "wait", "id": 12, …, "reader": 1, "at": [0, 0]}
                                                          ← {"re": 12, "ok": {"at": …, "ends": [6, 0], "end": null}}

A client that disconnects takes its runs with it, and leaves sandboxes that live as they are. Nothing that a tenant
wrote is in a message: programs, input and output travel in memory files whose descriptors are passed on.
"""

import array
import json
import os
import socket
from typing import Any

__all__ = ["MOST_BYTES", "MOST_DESCRIPTORS", "UNSENDABLE", "VERSION", "ProtocolError", "memory_file", "receive", "send"]

VERSION = 6
MOST_BYTES = 160 * 1024
"""Longest message: what a packet socket takes with the kernel's default buffer sizes (net.core.wmem_default)."""
MOST_DESCRIPTORS = 12


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_SPACE = socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)
# Plain numbers: the enumerations' operators take longer than the system call.
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_CUT_OFF = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_buffer = bytearray(MOST_BYTES)
"""Where messages arrive, one at a time: to make so large a one for each costs more than all the rest of `receive`."""


class ProtocolError(Exception):
    """A message that is none."""


UNSENDABLE = (ProtocolError, ValueError, RecursionError)
"""What `send` raises for a message that no socket could take: too long, half a character, too deep."""


def send(connection: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one message.

    Raises:
        BlockingIOError: the socket's buffer is full.
        OSError: the peer is gone.
        UNSENDABLE: it cannot be written as a message.
    """
    data = _ENCODER.encode(message).encode("utf-8", "surrogateescape")
    if len(data) > MOST_BYTES:
        raise ProtocolError(f"message of {len(data)} bytes; at most {MOST_BYTES} fit")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], ancillary, _NO_SIGNAL)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Receive one message and its descriptors; `None` at the end. Raises BlockingIOError when there is none yet.

    Raises:
        ProtocolError: not a JSON object, or cut off; its descriptors have been closed.
    """
    length, ancillary, flags, _ = connection.recvmsg_into([_buffer], _SPACE, _CLOSE_ON_EXEC)
    data = bytes(memoryview(_buffer)[:length])
    descriptors: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            descriptors.extend(numbers)
    try:
        if flags & _CUT_OFF:
            raise ProtocolError("message or descriptors cut off")
        if not data:
            if descriptors:
                raise ProtocolError("descriptors without a message")
            return None
        message = json.loads(data.decode("utf-8", "surrogateescape"))
        if not isinstance(message, dict):
            raise ProtocolError("message is not an object")
    except (ProtocolError, ValueError, RecursionError) as error:
        for fd in descriptors:
            os.close(fd)
        raise error if isinstance(error, ProtocolError) else ProtocolError(str(error)) from error
    return message, descriptors


def memory_file(name: str) -> int:
    """A file in memory that is gone with its last descriptor; never executable where the kernel can say so."""
    no_exec_seal = 0x0008  # MFD_NOEXEC_SEAL, Linux 6.3
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | no_exec_seal)
    except OSError:
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
