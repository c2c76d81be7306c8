"""Calls to gVisor's own kernel, the sentry: what `runsc exec` and `runsc kill` say to it, without a process for each.

JSON over a UNIX socket, descriptors beside it; one call at a time on a connection, so each that waits has its own.
The names and members have been the same since the first releases (`runsc/boot/controller.go`, `pkg/urpc`). What is not
known to a release is ignored there.

A tenant's program that broke out of its sandbox would be in the process that answers here: an answer is one object of
limited size, and nothing but whole numbers is taken from it.
"""

import array
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["CONTAINER", "Calls", "GuestError", "GuestGone"]

CONTAINER = "s"
"""The sandbox's name; there is one in each cell, which has a network namespace and a directory of its own."""
_LONGEST_ANSWER = 64 << 10
_ANSWER_WITHIN_S = 20.0


class GuestError(Exception):
    """The guest's kernel refused; its reason."""


class GuestGone(Exception):
    """The guest's kernel has ended, or does not speak our language."""


class Calls:
    """One connection."""

    def __init__(self, state: str) -> None:
        """Connect to the sandbox whose state lies in the directory *state*.

        Raises:
            GuestGone: nobody listens.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # Releases since 2023 make a file; those before, an abstract name with a NUL at its end.
        for address in (f"{state}/runsc-{CONTAINER}.sock", f"\0runsc-sandbox.{CONTAINER}\0"):
            try:
                self._socket.connect(address)
            except OSError:
                continue
            return
        self._socket.close()
        raise GuestGone("gVisor's control socket is not where releases known to us have it")

    def execute(
        self,
        program: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        ids: tuple[int, int],
        streams: Sequence[int],
        capabilities: int = 0,
    ) -> int:
        """Start a process; its number among the guest's processes.

        Raises:
            GuestError: it cannot be started.
            GuestGone: see there.
        """
        words = {
            "filename": program,
            "argv": list(argv),
            "envv": [f"{name}={value}" for name, value in env.items()],
            "wd": cwd,
            "KUID": ids[0],
            "KGID": ids[1],
            "Capabilities": {
                "PermittedCaps": capabilities,
                "InheritableCaps": 0,
                "EffectiveCaps": capabilities,
                "BoundingCaps": capabilities,
                "AmbientCaps": 0,
            },
            "GuestFDs": list(range(len(streams))),
            "ContainerID": CONTAINER,
        }
        return self._call("containerManager.ExecuteAsync", words, streams, most=1 << 30)

    def wait(self, pid: int) -> int:
        """Wait for the end of a process that was started so, for as long as it takes; its wait status."""
        return self._call("containerManager.WaitPID", {"PID": pid, "CID": CONTAINER}, within_s=None, most=0xFFFF)

    def _call(
        self,
        method: str,
        words: Mapping[str, Any],
        descriptors: Sequence[int] = (),
        *,
        most: int,
        within_s: float | None = _ANSWER_WITHIN_S,
    ) -> int:
        data = json.dumps({"method": method, "arg": words}).encode("utf-8", "surrogateescape")
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._socket.settimeout(within_s)
        try:
            sent = self._socket.sendmsg([data], passed)
            if sent < len(data):
                self._socket.sendall(data[sent:])
            answer = self._receive()
        except OSError as error:
            raise GuestGone(f"gVisor does not answer: {error}") from error
        if answer.get("success") is not True:
            raise GuestError(str(answer.get("err"))[:1000])
        result = answer.get("result")
        if type(result) is not int or not 0 <= result <= most:
            raise GuestGone(f"gVisor's answer to {method} is no number that it could be")
        return result

    def _receive(self) -> dict[str, Any]:
        data = b""
        while len(data) < _LONGEST_ANSWER:
            more = self._socket.recv(4096)
            if not more:
                raise GuestGone("gVisor has ended")
            data += more
            try:
                answer = json.loads(data)
            except (ValueError, RecursionError):
                continue  # not all of it yet
            if isinstance(answer, dict):
                return answer
            break
        raise GuestGone("gVisor's answer is none")

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
