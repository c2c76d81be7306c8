"""A server of one's own to be attacked: this host and its configuration, and nothing that anybody else uses."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from stockade.attacks import LIMITS
from stockade.attacks.remains import Remains
from stockade.errors import Unavailable

if TYPE_CHECKING:
    from stockade.config import Config

__all__ = ["OwnServer", "own_server", "settings_of", "toml"]

UP_S: Final = 60.0
DOWN_S: Final = 45.0
CLEAN_S: Final = 20.0
_LOOK_S: Final = 0.1
_SHOWN: Final = 12
_MIB: Final = 1 << 20

_AS_CONFIGURED: Final = ("sandbox", "network", "disks", "boxes", "live", "cache")
"""Sections that decide how sandboxes are made. Others say who may come in and where everything is kept: the server to
be attacked has keys, a database and a queue of its own.
"""
_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "SSL_CERT_FILE")


@dataclass(kw_only=True)
class OwnServer:
    """A server that runs."""

    url: str
    key: str
    process: "subprocess.Popen[bytes]"
    remains: Remains


@contextlib.asynccontextmanager
async def own_server(config: "Config", *, left: list[str], backend: str = "") -> AsyncIterator[OwnServer]:
    """Serve on a free loopback port, from a directory that is gone afterwards; sandboxes are made as *config* says.

    Args:
        left: gets a line for whatever is on the host after the server's end.
        backend: instead of the configuration's.

    Raises:
        Unavailable: it does not start; the message has the end of its log.
    """
    directory = Path(tempfile.mkdtemp(prefix="attack-", dir=config.data_dir))
    remains = Remains(directory)
    try:
        key = f"sk_attack_{secrets.token_hex(16)}"
        settings = directory / "attack.toml"
        settings.touch(mode=0o600)
        settings.write_text(toml_document(settings_of(config, backend)), "utf-8")
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment |= {"STOCKADE_SERVER_API_KEY": key}
        if canary := os.environ.get("STOCKADE_BAIT"):
            environment["STOCKADE_BAIT"] = canary  # a secret of the server's, which no program is to find
        with (directory / "log").open("w+b") as log:
            process = _start(directory, settings, environment, log)
            try:
                url = await asyncio.to_thread(_address, process, log)
                server = OwnServer(url=url, key=key, process=process, remains=remains)
                remains.look()
                try:
                    yield server
                finally:
                    remains.look()
            finally:
                await asyncio.to_thread(_end, process)
            left += await _left(remains)
    finally:
        remains.close()
        shutil.rmtree(directory, ignore_errors=True)


def settings_of(config: "Config", backend: str = "") -> dict[str, Any]:
    """The settings of a server to be attacked: *config*'s of sandboxes, and the corpus's limits as their defaults."""
    document: dict[str, Any] = {name: _plain(getattr(config, name)) for name in _AS_CONFIGURED}
    sandbox = document["sandbox"]
    sandbox["defaults"] |= LIMITS.given()
    # A protocol that has no word for a limit takes the most that there is.
    sandbox["maximum"] |= {"disk_inodes": LIMITS.disk_inodes}
    if backend:
        sandbox["backend"] = backend
    document["boxes"]["default_disk_bytes"] = LIMITS.disk_bytes
    document["server"] = {"max_body_bytes": 16 * _MIB}
    live = {"processes": LIMITS.processes, "open_files": LIMITS.open_files}
    document["dialects"] = {
        "execbox": live,
        "boxlite": live,
        "executor": {"max_output_bytes": _MIB},
        "code-sandbox": {"max_body_bytes": 16 * _MIB},
    }
    document["portal"] = {"enabled": False}
    return document


def _plain(value: Any) -> Any:
    """What TOML can say of a setting; without those that are not set."""
    if is_dataclass(value):
        pairs = {one.name: getattr(value, one.name) for one in fields(value)}
        return {name: _plain(one) for name, one in pairs.items() if one is not None}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, frozenset, set)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (bool, int, float)) else str(value)


def toml_document(document: Mapping[str, Any]) -> str:
    """*document* as TOML, a line for each section."""
    return "".join(f"{json.dumps(name)} = {toml(value)}\n" for name, value in document.items())


def toml(value: Any) -> str:
    """One value, inline. JSON's texts and numbers are TOML's, too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _start(
    directory: Path, settings: Path, environment: Mapping[str, str], log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    arguments = ["serve", "--host", "127.0.0.1", "--port", "0"]
    arguments += ["--data-dir", str(directory), "--config", str(settings)]
    return subprocess.Popen(
        [sys.executable, "-m", "stockade", *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # by which `Remains` knows it; and Ctrl-C is for us: we end it, in order
    )


def _address(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> str:
    """Where it answers, once it says so."""
    assert process.stdout is not None
    timer = _Timer(process, UP_S)
    with timer:
        for line in process.stdout:
            if line.startswith(b"Stockade answers at"):
                return line.split()[-1].decode()
    log.seek(0)
    said = "\n".join(log.read().decode(errors="replace").strip().splitlines()[-_SHOWN:])
    raise Unavailable(f"the server to be attacked does not start: {said or 'it said nothing'}")


class _Timer:
    """Kills a process that says nothing for too long, which ends whoever reads what it says."""

    def __init__(self, process: "subprocess.Popen[bytes]", seconds: float) -> None:
        import threading

        self._timer = threading.Timer(seconds, process.kill)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(DOWN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


async def _left(remains: Remains) -> list[str]:
    """What is there even after its last processes have had their time."""
    deadline = time.monotonic() + CLEAN_S
    while (left := await asyncio.to_thread(remains.left)) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)  # /proc sends no events
    return left
