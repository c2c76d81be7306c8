"""What goes over the warden's socket.

SOCK_SEQPACKET: one message a packet, JSON in UTF-8, descriptors beside it (SCM_RIGHTS). A client numbers its
requests; answers bear the number and may come in any order.

    → {"op": "hello", "version": 1}                       ← {"re": 0, "ok": {…report…}}
    → {"op": "run", "id": 7, "image": "host", …}          ← {"re": 7, "ok": {…}} with output descriptors
    → {"op": "cancel", "id": 7}                           (its answer is that of the run)
                                                          ← {"re": 7, "error": {"kind": …, "message": …}}

A client that disconnects takes its runs with it. Nothing that a tenant wrote is in a message: programs, input and
output travel in memory files whose descriptors are passed on.
"""

import array
import json
import os
import socket
from typing import Any

__all__ = ["MOST_BYTES", "MOST_DESCRIPTORS", "VERSION", "ProtocolError", "memory_file", "receive", "send"]

VERSION = 1
MOST_BYTES = 160 * 1024
"""Longest message: what a packet socket takes with the kernel's default buffer sizes (net.core.wmem_default)."""
MOST_DESCRIPTORS = 8


class ProtocolError(Exception):
    """A message that is none."""


def send(connection: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one message. Raises BlockingIOError when the socket's buffer is full, OSError when the peer is gone."""
    data = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape")
    if len(data) > MOST_BYTES:
        raise ProtocolError(f"message of {len(data)} bytes; at most {MOST_BYTES} fit")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Receive one message and its descriptors; `None` at the end. Raises BlockingIOError when there is none yet.

    Raises:
        ProtocolError: not a JSON object, or cut off; its descriptors have been closed.
    """
    space = socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)
    data, ancillary, flags, _ = connection.recvmsg(MOST_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            descriptors.extend(numbers)
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
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
