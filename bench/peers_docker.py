"""`docker run`: as it is, and with every flag that somebody who means it would give.

The engine is one of our own (`bench.docker`), in namespaces of its own: what its containers reach of "the host's"
network is the engine's. Containers' control groups are put below an enclosure of ours by `--cgroup-parent`.
"""

import asyncio
import contextlib
import itertools
import json
import shlex
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from bench.docker import Docker, docker
from bench.enclosure import Enclosure
from bench.measure import BenchError
from bench.peers import Attempts, Peer, command_of, deadline_of, ending_of
from bench.peers_image import add_packages
from bench.peers_launch import launch
from stockade.attacks import LIMITS, Attack, Ending
from stockade.model import Outcome

__all__ = ["docker_default", "docker_hardened"]

_ASK_S: Final = 60.0
_LEFT_S: Final = 5.0
_names = itertools.count(1)

_DEFAULT: Final = ("--interactive", "--workdir", "/code")


def _hardened() -> tuple[str, ...]:
    room = f"rw,exec,nosuid,nodev,size={LIMITS.disk_bytes},nr_inodes={LIMITS.disk_inodes},mode=1777"
    memory = str(LIMITS.memory_bytes)
    return (
        *_DEFAULT, "--init", "--network", "none", "--user", "61234:61234", "--cap-drop", "ALL",
        "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", f"/code:{room}", "--tmpfs", f"/tmp:{room}",
        "--shm-size", str(LIMITS.disk_bytes), "--memory", memory, "--memory-swap", memory,
        "--pids-limit", str(LIMITS.processes), "--cpus", f"{LIMITS.cpus:g}", "--ulimit", f"nofile={LIMITS.open_files}",
        "--ulimit", f"cpu={LIMITS.cpu_s:.0f}", "--ulimit", "core=0",
        "--ulimit", f"fsize={LIMITS.disk_bytes}", "--cgroupns", "private", "--log-driver", "none",
    )  # fmt: skip


class _Docker(Attempts):
    def __init__(self, name: str, engine: Docker, options: tuple[str, ...]) -> None:
        super().__init__(name)
        self._engine = engine
        self._options = options

    async def _step(self, attack: Attack, step: str, stdin: bytes) -> Ending:
        container = f"peer-{next(_names)}"

        async def end() -> None:
            await self._ask("kill", container)

        with Enclosure() as enclosure:
            command = (
                *self._engine.client, "run", "--name", container, "--cgroup-parent", f"/{enclosure.name}",
                *self._options, self._engine.image, *command_of(attack.language, step),
            )  # fmt: skip
            launched = await launch(command, step.encode() + stdin, deadline_s=deadline_of(attack), end=end)
            state = json.loads(await self._ask("inspect", "--format", "{{json .State}}", container) or "{}")
            bounds = enclosure.reached()
            if state.get("OOMKilled") and "--memory" not in self._options and not any("memory" in it for it in bounds):
                bounds.append(f"{enclosure.bounds.memory_bytes >> 20} MiB of memory")
            await self._ask("rm", "--force", "--volumes", container)
            self._found += [f"it took {bound}" for bound in bounds]
            self._found += [f"it outlived the container: {line}" for line in await enclosure.left(within_s=_LEFT_S)]
        is_oom = bool(state.get("OOMKilled")) and launched.code not in (None, 0)
        return ending_of(attack, launched, limit=Outcome.MEMORY if is_oom else None)

    async def _ask(self, *words: str) -> str:
        """What the engine answers; nothing when it complains."""
        process = await asyncio.create_subprocess_exec(
            *self._engine.client, *words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        async with asyncio.timeout(_ASK_S):
            out, _ = await process.communicate()
        return out.decode() if process.returncode == 0 else ""


@contextlib.asynccontextmanager
async def docker_default(directory: Path) -> AsyncIterator[Peer]:
    """No flag but those for input and a working directory.

    Raises:
        BenchError: no engine can be had.
    """
    async with _peer(directory, "docker", _DEFAULT) as peer:
        yield peer


@contextlib.asynccontextmanager
async def docker_hardened(directory: Path) -> AsyncIterator[Peer]:
    """All walls and limits that it has flags for, on the default runtime and system call filter.

    Raises:
        BenchError: no engine can be had.
    """
    async with _peer(directory, "docker, hardened", _hardened()) as peer:
        yield peer


@contextlib.asynccontextmanager
async def _peer(directory: Path, name: str, options: tuple[str, ...]) -> AsyncIterator[Peer]:
    with docker(directory, fill=add_packages) as engine:
        if "of our own" not in engine.about:
            raise BenchError("attacks are tried on an engine of our own only, which needs root and dockerd")
        yield Peer(
            way=_Docker(name, engine, options),
            version=f"Docker Engine {engine.version}, runc",
            flags=shlex.join(("docker", "run", *options, "IMAGE")),
        )
