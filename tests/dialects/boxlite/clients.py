"""The published `boxlite` packages, oldest and newest, each in an environment of its own (`make setup` makes them)."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

__all__ = ["VERSIONS", "drive"]

VERSIONS = ("0.9.0", "0.10.8")
WITHIN_S = 120.0
_HERE = Path(__file__).parent


async def drive(version: str, script: str, *arguments: str) -> dict[str, Any]:
    """What a script beside this file, run with that version of the package, printed as JSON."""
    folder = Path(sys.prefix, "clients", f"boxlite-{version}")
    if not (folder / ".installed").exists():
        pytest.skip(f"boxlite {version} is not installed: `make setup` does that")
    process = await asyncio.create_subprocess_exec(
        folder / "bin" / "python",
        _HERE / script,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "NO_PROXY": "*"},
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            printed, told = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, told.decode()[-4000:]
    seen: dict[str, Any] = json.loads(printed)
    return seen
