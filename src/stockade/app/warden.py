"""A warden that outlives the server: its privileges, and where sandboxes live, the server itself."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from stockade import registry
from stockade.app.engine import backend_options, load_languages
from stockade.config import Config
from stockade.errors import Unavailable

__all__ = ["keep_warden"]

UP_S = 25.0
DOWN_S = 15.0
SOCKET = "warden.sock"


@contextlib.asynccontextmanager
async def keep_warden(config: Config, *, owner: int | None = None) -> AsyncIterator[Path | None]:
    """Run a warden, and start it again whenever it ends, until the block does. The value is where it listens.

    One that an earlier server has left, because sandboxes live in it, is used as it is. `None` for backends that have
    none, and where the configuration names one that somebody else keeps.

    Args:
        owner: user id that the server will have when it connects again.

    Raises:
        Unavailable: the warden does not start; the message says why.
    """
    names = (config.sandbox.backend, *config.sandbox.backends)
    needed = any(registry.find("backends", name).has_warden for name in names)
    if not needed or config.sandbox.warden_socket is not None:
        yield None
        return
    from stockade.backends.native.launch import command

    socket = config.data_dir / SOCKET
    warden = command(backend_options(config, load_languages(config)))
    keeper = _start_keeper([str(socket), "-" if owner is None else str(owner), *warden])
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        line = await asyncio.wait_for(asyncio.to_thread(keeper.stdout.readline), UP_S)
        word = json.loads(line) if line else {"error": "it ended without a word"}
        if "error" in word:
            raise Unavailable(f"the warden cannot work on this host: {word['error']}; see `stockade doctor`")
        yield socket
    finally:
        keeper.stdin.close()  # which tells it to end
        try:
            await asyncio.to_thread(keeper.wait, DOWN_S)
        except subprocess.TimeoutExpired:
            keeper.kill()
            await asyncio.to_thread(keeper.wait)
        keeper.stdout.close()


def _start_keeper(arguments: list[str]) -> "subprocess.Popen[bytes]":
    script = str(Path(__file__).with_name("keeper.py"))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", script, *arguments],
        env={},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
