"""The engine's API without HTTP: what a sandbox itself costs."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from bench.measure import BenchError, Sample
from bench.programs import TRUE
from stockade import registry
from stockade.backends.base import Backend, BackendOptions, SandboxSpec
from stockade.config import Config
from stockade.model import Outcome, ProcessSpec

__all__ = ["sandboxed_true"]

# What an ordinary user without delegated control groups goes without; root goes without nothing.
_AS_USER = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids")


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
