"""A process of its own that starts the warden again whenever it ends; run as a script, standard library only.

The server gives up root's powers for good, so it cannot start a privileged warden later. This process can; it listens
to nobody and ends when its standard input does, which the kernel sees to however the server ends. The warden then goes
by itself, once no sandbox lives any more: the next server finds it, and them, where it left them.

Usage: keeper SOCKET OWNER COMMAND…    (OWNER: user id that the socket is given to, or -)
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 10.0
STEADY_S = 30.0
"""A warden that lived so long is no part of a series of failures."""
STOP_S = 10.0
UP_S = 20.0
ANSWER_S = 5.0
LOG = "warden.log"
"""Beside the socket: what the warden says, which outlives our server and whoever reads its standard error."""
MOST_LOG = 1 << 20


def main(arguments: list[str]) -> int:
    """Keep a warden running until standard input ends. The first one's word is passed to standard output."""
    path, owner, *command = arguments
    os.setsid()  # a Ctrl-C at the terminal is for the server, which drains and then ends us
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    delay = FIRST_DELAY_S
    first = True
    while True:
        began = time.monotonic()
        word = b'{"ok": true}\n'
        process = None
        warden = _connect(path)  # an earlier server's, with sandboxes that live
        if warden is None:
            process, word = _start(path, owner, command)
            warden = _connect(path)
        _hand_over(path, owner)
        if first:
            os.write(1, word or b'{"error": "the warden ended without a word"}\n')
            first = False
        if warden is not None:
            # We are a client, too, so that it does not end before there is another, or between two.
            if _wait(warden, None):
                _leave(warden)
                return 0
            warden.close()
        if process is not None:
            process.wait()
        if time.monotonic() - began > STEADY_S:
            delay = FIRST_DELAY_S
        if _wait(None, delay):
            return 0
        delay = min(2 * delay, LONGEST_DELAY_S)


def _connect(path: str) -> "socket.socket | None":
    """A connection to the warden that listens there, or `None`."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        return None
    return connection


def _start(path: str, owner: str, command: list[str]) -> "tuple[subprocess.Popen[bytes], bytes]":
    """A warden, and what it says when it is up (or why it is not)."""
    read, write = os.pipe()
    log = _open_log(os.path.join(os.path.dirname(path), LOG))
    process = subprocess.Popen(
        [
            *command,
            *("--listen", path, "--ready-fd", str(write), "--until-unused"),
            *(["--allow-uid", owner] if owner != "-" else []),
        ],
        env={},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        pass_fds=(write,),
        restore_signals=True,
        preexec_fn=_default_signals,
    )
    os.close(write)
    os.close(log)
    word = b""
    while not word.endswith(b"\n") and select.select([read], [], [], UP_S)[0]:
        chunk = os.read(read, 65536)
        if not chunk:
            break
        word += chunk
    os.close(read)
    return process, word


def _open_log(path: str) -> int:
    """A descriptor to append to; of /dev/null where that cannot be had, for a full disk stops no warden."""
    try:
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if os.fstat(log).st_size > MOST_LOG:
            os.ftruncate(log, 0)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    return log


def _hand_over(path: str, owner: str) -> None:
    if owner != "-":
        with contextlib.suppress(FileNotFoundError):
            os.chown(path, int(owner), -1, follow_symlinks=False)


def _default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _wait(warden: "socket.socket | None", timeout_s: float | None) -> bool:
    """Wait until the warden hangs up or the time is over; whether standard input ended first."""
    watched = [0] if warden is None else [0, warden.fileno()]
    return 0 in select.select(watched, [], [], timeout_s)[0]


def _leave(warden: socket.socket) -> None:
    """Our server is gone. Where no sandbox lives, the warden ends with it: see that it does."""
    pid, _, _ = struct.unpack("iII", warden.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    lives = _count_of_living(warden)
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    warden.close()
    if lives == 0 and not select.select([process], [], [], STOP_S)[0]:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)  # its sandboxes' inits die with it
    os.close(process)


def _count_of_living(warden: socket.socket) -> int:
    """How many sandboxes live, as the warden says; -1 when it does not."""
    warden.settimeout(ANSWER_S)
    try:
        warden.send(json.dumps({"op": "living", "id": 0}).encode())
        return int(json.loads(warden.recv(65536))["ok"]["living"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
