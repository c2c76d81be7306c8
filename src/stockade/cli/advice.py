"""Which backend `stockade doctor` recommends."""

import os
import shutil
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Surroundings", "advice", "look_around"]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What this host has beside the kernel."""

    is_root: bool
    runsc: bool
    """gVisor is installed."""
    docker: bool
    """A Docker engine listens, and we may talk to it."""


def look_around(docker_socket: Path) -> Surroundings:
    """See what is here; nothing is started."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(docker_socket))
        except OSError:
            docker = False
        else:
            docker = True
    return Surroundings(is_root=os.geteuid() == 0, runsc=shutil.which("runsc") is not None, docker=docker)


def advice(missing: Collection[str], around: Surroundings) -> tuple[str, str]:
    """The backend to use as the usual one, and why; what else there is to have is in the words.

    Args:
        missing: what the native backend would have to enforce here, and cannot.
    """
    lacks = ", ".join(missing)
    if missing and around.docker:
        return "docker", f"native cannot enforce {lacks} here, and a Docker engine has the rights that it takes"
    if missing:
        return "native", f"once it can enforce {lacks}: see above; there is no Docker engine here to do it instead"
    if not around.is_root:
        return "native", "all of it is enforced; a second wall (gvisor) takes a warden that root started"
    if around.runsc:
        why = (
            "all of it is enforced. gVisor is installed: for tenants to whom a hole in the kernel is worth something, "
            'offer a second wall by sandbox.backends = ["gvisor"], for all by sandbox.backend = "gvisor"'
        )
        return "native", why
    return "native", "all of it is enforced. For a second wall install gVisor (apt-get install runsc): backend gvisor"
