"""gVisor (`runsc run`) with a bundle as somebody who means it would write it, and limits of a control group around it.

The limits are those of what it needs itself, too: its kernel runs as ordinary processes beside the program's.
"""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import anyio

from bench.enclosure import Bounds, Enclosure
from bench.measure import BenchError
from bench.peers import PATH, Attempts, Peer, command_of, deadline_of, ending_of
from bench.peers_launch import launch
from stockade.attacks import LIMITS, Attack, Ending
from stockade.model import Outcome

__all__ = ["gvisor"]

_BOUNDS: Final = Bounds(memory_bytes=256 << 20, processes=256, cpus=1.0)
_LEFT_S: Final = 5.0
_MERGED: Final = ("bin", "sbin", "lib", "lib64")
_numbers = itertools.count(1)


def _bundle(root: Path, command: tuple[str, ...], group: str) -> dict[str, Any]:
    room = [f"size={LIMITS.disk_bytes}", f"nr_inodes={LIMITS.disk_inodes}", "mode=1777", "nosuid", "nodev"]
    limits = {
        "RLIMIT_NOFILE": LIMITS.open_files,
        "RLIMIT_NPROC": LIMITS.processes,
        "RLIMIT_FSIZE": LIMITS.disk_bytes,
        "RLIMIT_CORE": 0,
    }
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 61234, "gid": 61234},
            "args": list(command),
            "env": [f"PATH={PATH}", "LANG=C.UTF-8"],
            "cwd": "/code",
            "capabilities": {},
            "noNewPrivileges": True,
            "rlimits": [{"type": name, "hard": value, "soft": value} for name, value in limits.items()],
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "sandbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["ro", "rbind", "nosuid", "nodev"]},
            *({"destination": to, "type": "tmpfs", "source": "tmpfs", "options": room} for to in ("/code", "/tmp")),
        ],
        "linux": {
            "cgroupsPath": f"/{group}",
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "resources": {"memory": {"limit": _BOUNDS.memory_bytes}, "pids": {"limit": _BOUNDS.processes}},
        },
    }


class _Gvisor(Attempts):
    def __init__(self, program: str, directory: Path) -> None:
        super().__init__("gVisor")
        self._directory = directory
        self.command = (program, "--root", str(directory / "state"), "--platform=ptrace", "--network=none")
        self._root = directory / "root"
        self._root.mkdir()
        for name in ("proc", "dev", "sys", "usr", "tmp", "code", "etc"):
            (self._root / name).mkdir()
        for name in _MERGED:
            if os.path.islink(f"/{name}"):
                (self._root / name).symlink_to(os.readlink(f"/{name}"))

    async def _step(self, attack: Attack, step: str, stdin: bytes) -> Ending:
        name = f"peer-{os.getpid()}-{next(_numbers)}"
        bundle = self._directory / name
        bundle.mkdir()

        async def end() -> None:
            await launch((*self.command, "kill", name, "KILL"), b"", deadline_s=_LEFT_S, enclosure=enclosure)

        with Enclosure(bounds=_BOUNDS) as enclosure:
            told = _bundle(self._root, command_of(attack.language, step), enclosure.name)
            (bundle / "config.json").write_text(json.dumps(told))
            command = (*self.command, "run", "--bundle", str(bundle), name)
            launched = await launch(
                command, step.encode() + stdin, deadline_s=deadline_of(attack), enclosure=enclosure, end=end
            )
            reached = enclosure.reached()
            await launch((*self.command, "delete", "--force", name), b"", deadline_s=_LEFT_S * 2)
            left = await enclosure.left(within_s=_LEFT_S)
            self._found += [f"it outlived the sandbox: {line}" for line in left]
        shutil.rmtree(bundle, ignore_errors=True)
        limit = None
        if launched.code != 0 and reached:  # its kernel dies of it, and with it all that is inside
            limit = Outcome.MEMORY if "memory" in reached[0] else Outcome.PROCESSES
        return ending_of(attack, launched, limit=limit)


@contextlib.asynccontextmanager
async def gvisor(directory: Path) -> AsyncIterator[Peer]:
    """On its ptrace platform, which runs everywhere.

    Raises:
        BenchError: it is not installed, or this is not root.
    """
    program = shutil.which("runsc")
    if program is None:
        raise BenchError("gVisor is not installed (Debian package runsc)")
    if os.geteuid() != 0:
        raise BenchError("runsc run needs root")
    version = (await anyio.run_process([program, "--version"])).stdout.decode()
    way = _Gvisor(program, directory)
    example = json.dumps(_bundle(Path("ROOT"), ("PROGRAM",), "GROUP"))
    yield Peer(
        way=way,
        version=" ".join(version.split("\n")[0].split()),
        flags=f"runsc --platform=ptrace --network=none run, with the bundle\n{example}",
    )
