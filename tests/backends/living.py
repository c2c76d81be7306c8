"""What the suites on sandboxes that live share."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from stockade.backends.sandboxing import LiveExec, LiveSpec, ProcessEnd, Sandboxing, Streams
from tests.backends.sandboxes import limits

__all__ = ["ENV", "collect", "eventually", "living", "ran", "start"]

ENV = {"PATH": "/usr/bin:/bin", "HOME": "/home/user"}
_names = itertools.count(1)


def live_spec(**changes: Any) -> LiveSpec:
    members = {
        name: changes.pop(name)
        for name in (
            "network",
            "layer",
            "log_bytes",
            "kept_bytes",
            "keep_s",
            "layers",
            "disk",
            "mounts",
            "drop_capabilities",
        )
        if name in changes
    }
    lifetime_s = changes.pop("lifetime_s", 60.0)
    cwd = changes.pop("cwd", "/home/user")
    return LiveSpec(image="host", limits=limits(**changes), cwd=cwd, lifetime_s=lifetime_s, **members)


@contextlib.asynccontextmanager
async def living(sandboxing: Sandboxing, **changes: Any) -> AsyncIterator[str]:
    """A sandbox without a main process; gone at the end."""
    name = f"test-{next(_names)}"
    await sandboxing.create(name, live_spec(**changes))
    try:
        yield name
    finally:
        await sandboxing.remove(name)


async def start(sandboxing: Sandboxing, name: str, *argv: str, process: str = "", **members: Any) -> Streams:
    """Start a process under a name of its own."""
    spec = LiveExec(argv=argv, env=members.pop("env", ENV), cwd=members.pop("cwd", "/home/user"), **members)
    return await sandboxing.exec(name, process or f"p{next(_names)}", spec)


async def collect(streams: Streams, out: int = 0, err: int = 0) -> tuple[bytes, bytes, ProcessEnd]:
    """Everything from these offsets to the end."""
    stdout, stderr = bytearray(), bytearray()
    while True:
        output = await asyncio.wait_for(streams.read(out, err), 60)
        assert not output.stdout.dropped
        stdout += output.stdout.data
        stderr += output.stderr.data
        out, err = output.stdout.end, output.stderr.end
        if output.end is not None:
            return bytes(stdout), bytes(stderr), output.end


async def ran(sandboxing: Sandboxing, name: str, *argv: str, stdin: bytes = b"", **members: Any) -> tuple[Any, ...]:
    """Run a process to its end: standard output, standard error, exit code."""
    streams = await start(sandboxing, name, *argv, **members)
    try:
        if stdin:
            await asyncio.wait_for(streams.write(stdin), 60)
        await streams.close_stdin()
        out, err, end = await collect(streams)
        return out, err, end.exit_code
    finally:
        streams.close()


async def eventually(condition: Callable[[], Awaitable[Any]], within_s: float = 60.0) -> Any:
    """Wait until *condition* gives something true; the test fails when it does not come to."""
    deadline = time.monotonic() + within_s
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"not so within {within_s:g} s"
        await asyncio.sleep(0.01)
    return found
