"""The engine's API without HTTP: what a sandbox itself costs, and to let one stand still."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

from bench.measure import BenchError, Sample
from bench.programs import TRUE
from stockade import registry
from stockade.backends.base import Backend, BackendOptions, SandboxSpec
from stockade.backends.sandboxing import MAIN, LiveExec, LiveSpec, Sandboxing
from stockade.config import Config
from stockade.model import Outcome, ProcessSpec

__all__ = ["pausing", "sandboxed_true"]

# What an ordinary user without delegated control groups goes without; root goes without nothing.
_AS_USER = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids")

_PAUSED = "paused"


@contextlib.contextmanager
def sandboxed_true(data_dir: Path) -> Iterator[Sample]:
    """`Backend.run` of /usr/bin/true under the default limits: call to result, seconds."""
    options = BackendOptions(data_dir=data_dir, allow_unenforced=_AS_USER if os.geteuid() else (), embedded=True)
    backend: Backend = registry.find("backends", "native").make(options)
    sandbox = SandboxSpec(image="host", limits=Config().sandbox.defaults)
    process = ProcessSpec(argv=(TRUE,), cwd="/code", env={"PATH": "/usr/bin:/bin"}, files={})

    async def run() -> float:
        began = time.perf_counter()
        result = await backend.run(sandbox, process)
        seconds = time.perf_counter() - began
        if result.outcome is not Outcome.EXITED or result.exit_code != 0:
            raise BenchError(f"true in a sandbox: {result}")
        return seconds

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(backend.start())
        try:
            yield lambda: runner.run(run())
        finally:
            runner.run(backend.close())


@contextlib.contextmanager
def pausing(data_dir: Path) -> Iterator[tuple[Sample, Sample]]:
    """`pause` and `resume` of a sandbox in which a loop runs: call to answer, seconds. To be taken in turns."""
    options = BackendOptions(data_dir=data_dir, allow_unenforced=_AS_USER if os.geteuid() else (), embedded=True)
    backend: Any = registry.find("backends", "native").make(options)
    spec = LiveSpec(image="host", limits=Config().sandbox.defaults, cwd="/home/user", lifetime_s=600.0)
    loop = LiveExec(argv=("/bin/sh", "-c", "while :; do :; done"), env={"PATH": "/usr/bin:/bin"}, cwd="/home/user")

    async def timed(work: Callable[[str], Awaitable[None]]) -> float:
        began = time.perf_counter()
        await work(_PAUSED)
        return time.perf_counter() - began

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(backend.start())
        try:
            sandboxing = backend.sandboxing
            runner.run(sandboxing.create(_PAUSED, spec))
            runner.run(_started(sandboxing, loop))
            yield (lambda: runner.run(timed(sandboxing.pause))), (lambda: runner.run(timed(sandboxing.resume)))
            runner.run(sandboxing.remove(_PAUSED))
        finally:
            runner.run(backend.close())


async def _started(sandboxing: Sandboxing, spec: LiveExec) -> None:
    streams = await sandboxing.exec(_PAUSED, MAIN, spec)
    streams.close()
