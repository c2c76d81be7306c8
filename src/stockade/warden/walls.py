"""Second walls: what the warden knows of gVisor on this host, and what a maker is told of it."""

import os
import select
import signal
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .fields import Refused
from .gvisor import Shape
from .image import Image

__all__ = ["GVISOR", "MEMORY_BYTES", "WALLS", "Walls", "processes_behind", "wall_of"]

GVISOR = "gvisor"
WALLS = ("", GVISOR)
MEMORY_BYTES = 24 << 20
"""What gVisor may take for itself, while a program runs, beside its limit: it is in the same control group."""
_THREADS = 256
_THREADS_EACH = 40
_PLACES = ("usr/bin/runsc", "usr/local/bin/runsc", "usr/sbin/runsc", "usr/local/sbin/runsc")
_PLATFORMS = ("systrap", "ptrace")
"""The best first. Not kvm: its device is the host's, and a cell has none of those."""
_WITHIN_S = 10.0
_REMEDY = "install it below /usr (on Debian: apt-get install runsc)"


def wall_of(message: Mapping[str, Any]) -> str:
    """Behind which further wall a sandbox is to be; empty for none. Raises Refused."""
    wall = message.get("wall", "")
    if wall not in WALLS:
        raise Refused("unsupported", f"wall: there is no {wall!r}; known: {', '.join(WALLS[1:])}")
    return str(wall)


def processes_behind(processes: int) -> int:
    """How many threads of the host's gVisor may have when its programs may have *processes*.

    Each of those takes several, and its kernel takes some for itself.
    """
    return _THREADS + _THREADS_EACH * processes


@dataclass(frozen=True, kw_only=True)
class Found:
    """gVisor, as this host has it."""

    program: str
    version: str
    platform: str
    options: tuple[str, ...]


class Walls:
    """Looks for gVisor when it is first asked for."""

    def __init__(self, image: Image, *, own_ids: bool) -> None:
        self._image = image
        self._own_ids = own_ids
        self._found: Found | None = None

    def find(self) -> Found:
        """What there is.

        Raises:
            Refused: (`unsupported`, `unavailable`) none that works here; the message says what to do.
        """
        if not self._own_ids:
            why = "behind gVisor: a sandbox there takes user ids of its own, which only root's warden can give"
            raise Refused("unsupported", why)
        if self._found is None:
            self._found = _look(_candidates(self._image))
        return self._found

    def order(self, shape: Shape) -> dict[str, Any]:
        """What a maker is told. Raises as `find`."""
        found = self.find()
        return {
            "program": found.program, "platform": found.platform, "options": found.options, "shape": asdict(shape)
        }  # fmt: skip

    def report(self) -> dict[str, str]:
        """Facts for humans. Raises as `find`."""
        found = self.find()
        return {"name": GVISOR, "version": found.version, "platform": found.platform, "program": found.program}


def _candidates(image: Image) -> Iterable[str]:
    for source, target in image.binds:
        for place in _PLACES:
            if place.startswith(f"{target}/"):
                path = source + place[len(target) :]
                if os.access(path, os.X_OK):
                    yield path


def _look(paths: Iterable[str]) -> Found:
    for path in paths:
        version, options = _ask(path, "--version"), _ask(path, "flags")
        platform = next((name for name in _PLATFORMS if name in _line_of(options, "platform")), _PLATFORMS[-1])
        chosen = []
        if "-overlay2" in options:
            chosen.append("--overlay2=none")  # the cell's own overlay is the one with a limit
        if "-directfs" in options:
            chosen.append("--directfs=false")  # files are opened by another process than the tenant's kernel
        if "-host-uds" in options:
            chosen.append("--host-uds=none")
        words = version.split()
        name = words[2] if len(words) > 2 else "unknown"
        return Found(program=path, version=name, platform=platform, options=tuple(chosen))
    raise Refused("unavailable", f"this host has no gVisor (runsc): {_REMEDY}")


def _line_of(options: str, name: str) -> str:
    """What the list of options says of one."""
    _, _, rest = options.partition(f"\n  -{name} ")
    return rest.partition("\n  -")[0]


def _ask(path: str, word: str) -> str:
    """What it prints, to either stream."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        process = subprocess.Popen(
            [path, word], env={}, stdin=subprocess.DEVNULL, stdout=write, stderr=write, close_fds=True
        )
    except OSError as error:
        os.close(read)
        os.close(write)
        raise Refused("unavailable", f"{path} cannot be started: {error.strerror}; {_REMEDY}") from error
    os.close(write)
    text = b""
    try:
        while select.select([read], [], [], _WITHIN_S)[0] and (more := os.read(read, 65536)):
            text += more
    finally:
        os.close(read)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return text.decode(errors="replace")
