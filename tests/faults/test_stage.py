"""What faults are made of does what it says: a rehearsal in which nothing breaks would prove nothing."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench.faults_ledger import PATIENCE_S, Ledger
from bench.faults_stage import Relay
from bench.faults_units import Shim

pytestmark = pytest.mark.anyio
TELL = """
import os, sys, time
from datetime import datetime
while sys.stdin.readline():
    began = time.monotonic()
    with open(sys.argv[1], "wb") as file:
        os.fsync(file.fileno())
    print(time.time(), datetime.now().timestamp(), time.monotonic() - began, flush=True)
"""


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    shim = Shim(tmp_path)
    if shim.problem:
        pytest.skip(f"nothing can be loaded into programs: {shim.problem}")
    return shim


def test_a_clock_is_set_and_a_disk_is_slow_while_the_program_runs(shim: Shim, tmp_path: Path) -> None:
    """Its own only, and the clock that counts from the boot stays as it is."""
    with subprocess.Popen(
        [sys.executable, "-c", TELL, str(tmp_path / "file")],
        env=shim.environment("one"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask() -> tuple[float, float, float]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            wall, date, took = map(float, process.stdout.readline().split())
            return wall - time.time(), date - time.time(), took

        for offset_s in (3600.0, -7200.25, 0.0):
            shim.set("one", clock_s=offset_s)
            wall, date, took = ask()
            assert abs(wall - offset_s) < 30
            assert abs(date - offset_s) < 30
            assert took < 30
        shim.set("one", sync_s=0.7)
        assert ask()[2] >= 0.7
        process.stdin.close()


async def test_a_relay_passes_stalls_cuts_and_mends(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, within_s: float = 30.0) -> bytes:
        writer.write(b"hello")
        async with asyncio.timeout(within_s):
            return await reader.read(100)

    async with await asyncio.start_unix_server(echo, tmp_path / "real"):
        relay = Relay(tmp_path / "relayed", tmp_path / "real")
        await relay.start()
        reader, writer = await asyncio.open_unix_connection(tmp_path / "relayed")
        assert await answer(reader, writer) == b"hello"
        relay.stall()
        assert not relay.is_passing
        with pytest.raises(TimeoutError):
            await answer(reader, writer, 0.2)
        relay.mend()
        assert await answer(reader, writer) in (b"hello", b"hellohello")
        relay.cut()
        with pytest.raises((ConnectionError, AssertionError)):
            assert await answer(reader, writer)
        again, way = await asyncio.open_unix_connection(tmp_path / "relayed")
        with pytest.raises((ConnectionError, AssertionError)):
            assert await answer(again, way)
        relay.mend()
        reader, last = await asyncio.open_unix_connection(tmp_path / "relayed")
        assert await answer(reader, last) == b"hello"
        for one in (writer, way, last):
            one.transport.abort()
        await relay.close()


def test_a_failure_counts_as_a_violation_when_nothing_was_wrong_from_beginning_to_end() -> None:
    ledger = Ledger()
    began = time.monotonic()
    ledger.calm()
    ledger.failed("run", "503", began)  # it began before all was quiet
    assert not ledger.violations
    ledger.failed("run", "503", time.monotonic())
    assert len(ledger.violations) == 1
    ledger.begin("kill -9 server")
    ledger.failed("run", "503", time.monotonic())
    assert len(ledger.violations) == 1
    ledger.took("run", time.monotonic() - PATIENCE_S - 1)
    assert "during kill -9 server: run was answered after" in ledger.violations[1]
