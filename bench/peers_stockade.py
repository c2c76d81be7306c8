"""Stockade's own backends, by the same way in as others: one run, from nothing, of the same commands."""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import stockade
from bench.measure import BenchError
from bench.peers import PATH, TIME, TIME_S, Attempts, Making, Peer
from stockade import registry
from stockade.attacks import LIMITS, Attack, Ending
from stockade.backends.base import Backend, BackendOptions, SandboxSpec
from stockade.config import Config
from stockade.errors import StockadeError
from stockade.model import Limits, ProcessSpec

__all__ = ["of_backend"]

_ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": PATH, "HOME": "/home/user", "LANG": "C.UTF-8"}
_COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "python": ("main.py", "exec python3 main.py"),
    "bash": ("main.sh", "exec bash main.sh"),
    "c": ("main.c", "gcc main.c -o main && exec ./main"),
}
"""What the program's file is called, and what runs it."""


class _Stockade(Attempts):
    def __init__(self, name: str, backend: Backend) -> None:
        super().__init__(name)
        self._backend = backend
        given: dict[str, Any] = LIMITS.given()
        self._limits: Limits = replace(Config().sandbox.defaults, **given)

    async def _step(self, attack: Attack, step: str, stdin: bytes) -> Ending:
        limits = replace(self._limits, wall_s=TIME_S) if attack.accept & TIME else self._limits
        sandbox = SandboxSpec(image="host", limits=limits)
        process = ProcessSpec(
            argv=("/bin/sh", "-c", _COMMANDS[attack.language][1]),
            cwd="/code",
            env=_ENVIRONMENT,
            files={_COMMANDS[attack.language][0]: step.encode()},
            stdin=stdin,
        )
        result = await self._backend.run(sandbox, process)
        return Ending(outcome=result.outcome, exit_code=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def of_backend(name: str) -> Making:
    """Sets up the backend of that name."""

    @contextlib.asynccontextmanager
    async def making(directory: Path) -> AsyncIterator[Peer]:
        if os.geteuid() != 0:
            raise BenchError("the backends are compared with all their limits in force, for which they need root")
        options = BackendOptions(data_dir=directory / f"stockade-{name}", embedded=True)
        try:
            backend: Backend = registry.find("backends", name).make(options)
            await backend.start()
        except StockadeError as error:
            raise BenchError(f"backend {name}: {error}") from error
        try:
            label = "Stockade" if name == "native" else f"Stockade, {name}"
            yield Peer(
                way=_Stockade(label, backend),
                version=f"stockade {stockade.__version__}",
                flags=f"backend {name}; {', '.join(f'{key}={value:,}' for key, value in LIMITS.given().items())}",
            )
        finally:
            await backend.close()

    return making
