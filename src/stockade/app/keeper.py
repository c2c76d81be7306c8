"""A process of its own that starts the warden again whenever it ends; run as a script, standard library only.

The server gives up root's powers for good, so it cannot start a privileged warden later. This process can; it parses
nothing and listens to nobody: it ends, and the warden with it, when its standard input does, which the kernel sees to
however the server ends.

Usage: keeper SOCKET OWNER COMMAND…    (OWNER: user id that the socket is given to, or -)
"""

import os
import select
import signal
import subprocess
import sys
import time

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 10.0
STEADY_S = 30.0
"""A warden that lived so long is no part of a series of failures."""
STOP_S = 10.0
UP_S = 20.0


def main(arguments: list[str]) -> int:
    """Keep a warden running until standard input ends. The first one's word is passed to standard output."""
    socket, owner, *command = arguments
    os.setsid()  # a Ctrl-C at the terminal is for the server, which drains and then ends us
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    delay = FIRST_DELAY_S
    first = True
    while True:
        began = time.monotonic()
        process, word = _start(socket, owner, command)
        if first:
            os.write(1, word or b'{"error": "the warden ended without a word"}\n')
            first = False
        if _wait(process, None):
            return _stop(process)
        process.wait()
        if time.monotonic() - began > STEADY_S:
            delay = FIRST_DELAY_S
        if _wait(None, delay):
            return 0
        delay = min(2 * delay, LONGEST_DELAY_S)


def _start(socket: str, owner: str, command: list[str]) -> "tuple[subprocess.Popen[bytes], bytes]":
    """A warden, and what it says when it is up (or why it is not)."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [*command, "--listen", socket, "--ready-fd", str(write), *(["--allow-uid", owner] if owner != "-" else [])],
        env={},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(write,),
        restore_signals=True,
        preexec_fn=_default_signals,
    )
    os.close(write)
    word = b""
    while not word.endswith(b"\n") and select.select([read], [], [], UP_S)[0]:
        chunk = os.read(read, 65536)
        if not chunk:
            break
        word += chunk
    os.close(read)
    if owner != "-" and os.path.exists(socket):
        os.chown(socket, int(owner), -1, follow_symlinks=False)
    return process, word


def _default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _wait(process: "subprocess.Popen[bytes] | None", timeout_s: float | None) -> bool:
    """Wait until *process* has ended or the time is over; whether standard input ended first."""
    watched = [0]
    if process is not None:
        watched.append(os.pidfd_open(process.pid))
    try:
        readable = select.select(watched, [], [], timeout_s)[0]
    finally:
        for descriptor in watched[1:]:
            os.close(descriptor)
    return 0 in readable


def _stop(process: "subprocess.Popen[bytes]") -> int:
    process.terminate()
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its sandboxes' inits die with it
        return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
