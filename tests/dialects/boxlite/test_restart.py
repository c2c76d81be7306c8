"""What a restart of the server leaves of executions: all but how far those were who were attached."""

import pytest

from stockade.backends.native.backend import NativeBackend
from tests.dialects.boxlite.executing import backend, engine_of, serving

__all__ = ["backend"]

pytestmark = pytest.mark.anyio


async def test_an_execution_outlives_the_server(
    backend: NativeBackend, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Who asks the next one finds it running, reads all of it, and writes to it."""
    engine = engine_of(backend, tmp_path_factory)
    async with serving(engine) as before:
        id = await before.sh("echo begun; read line; echo got $line", timeout_seconds=500)
        async with before.attach(id) as socket:
            await before.hear(socket, until=b"begun\n")
    async with serving(engine, rows=before.boxes.rows) as after:
        found = await after.status(id)
        assert (found["status"], found["attached"], found["command"]) == ("running", False, "sh")
        async with after.attach(id) as socket:
            await socket.send(b"it\n")
            heard = await after.hear(socket)
        assert (heard.stdout, heard.exits) == (b"begun\ngot it\n", [0])
        assert (await after.told(id)).stdout == "begun\ngot it\n"
        assert (await after.write(id, b"", close=True)).status_code == 204
        await after.stop()


async def test_a_time_limit_is_kept_by_the_next_server(
    backend: NativeBackend, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Though nobody asks it about the execution before."""
    engine = engine_of(backend, tmp_path_factory)
    async with serving(engine) as before:
        id = await before.exec("sleep", "60", timeout_seconds=0.5)
    async with serving(engine, rows=before.boxes.rows) as after:
        found = await after.ended(id)
        assert (found["status"], found["exit_code"]) == ("timed_out", 137)
        assert (await after.told(id)).exit["error"] == "timed out after 0.5 s"
        await after.stop()
