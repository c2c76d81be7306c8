"""Boxes of the BoxLite protocol: an execution, its output over a WebSocket."""

import asyncio
import contextlib
import io
import json
import tarfile
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from websockets.exceptions import WebSocketException

from stockade.attacks.corpus import LIMITS, Attack
from stockade.attacks.verdicts import Ending
from stockade.attacks.wire_ways_server import STARTED_BY, Kept, WireServer, fed, life_of
from stockade.errors import Fault, StockadeError, Unavailable, Unsupported
from stockade.model import Outcome

__all__ = ["BoxExec"]

_FOLDER: Final = "/code"
_PIECE: Final = 1 << 16
_GRACE_S: Final = 30.0
_NOT_THERE: Final = 127
_FLOODS: Final = frozenset({"inode-flood", "link-flood"})
"""What a disk takes slowly, a few thousand names a second, until its size ends it."""
_FLOOD_S: Final = 8.0


@dataclass(frozen=True, kw_only=True)
class BoxExec:
    """An execution in a box of its own, which has a disk and is started for it."""

    server: WireServer
    name: str
    gives: frozenset[str]
    user: str

    def refuses(self, attack: Attack) -> str:
        return "" if attack.language in STARTED_BY else f"no {attack.language} in a box's own files"

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        ending = None
        for step in attack.steps:
            async with self._box() as path:
                ending = await self._run(path, attack, step, stdin)
        assert ending is not None, "an attack has steps"
        return ending

    @contextlib.asynccontextmanager
    async def _box(self) -> Any:
        body = {
            "image": "host",
            "cpus": max(1, round(LIMITS.cpus or 1)),
            "memory_mib": (LIMITS.memory_bytes or 0) >> 20,
            "working_dir": _FOLDER,
            "user": self.user,
            "network": {"mode": "disabled"},
        }
        box = await self.server.ask("POST", "/v1/boxes", json=body)
        path = f"/v1/boxes/{quote(box['box_id'])}"
        try:
            yield path
        finally:
            with contextlib.suppress(StockadeError):
                await self.server.ask("DELETE", path, params={"force": "true"})

    async def _run(self, path: str, attack: Attack, code: str, stdin: bytes) -> Ending:
        file, argv = STARTED_BY[attack.language]
        await self.server.ask(
            "PUT",
            f"{path}/files",
            params={"path": _FOLDER},
            content=_packed(file, code.encode()),
            headers={"Content-Type": "application/x-tar"},
        )
        life_s = _FLOOD_S if attack.name in _FLOODS else life_of(attack)
        started = await self.server.ask(
            "POST",
            f"{path}/exec",
            json={
                "command": argv[0],
                "args": list(argv[1:]),
                "working_dir": _FOLDER,
                "user": self.user,
                "timeout_seconds": life_s,
            },
        )
        execution = f"{path}/executions/{quote(started['execution_id'])}"
        stdout, stderr = Kept(), Kept()
        try:
            async with asyncio.timeout(life_s + _GRACE_S):
                await self._told(f"{execution}/attach", stdin, stdout, stderr)
                told = await self.server.ask("GET", execution)
        except TimeoutError:
            raise Fault(f"{self.name}: no end was told within {life_s + _GRACE_S:g} s") from None
        except Unsupported as error:
            raise Fault(f"{self.name}: the execution is gone: {error}") from error
        if told["exit_code"] == _NOT_THERE and attack.language == "c":
            raise Unsupported("no C compiler in the box")
        if told["status"] == "running":
            raise Fault(f"{self.name}: it is said to have ended, and to run: {told}")
        return Ending(
            outcome=Outcome(told["outcome"]),
            exit_code=told["exit_code"],
            stdout=stdout.text(),
            stderr=stderr.text(),
        )

    async def _told(self, path: str, stdin: bytes, stdout: Kept, stderr: Kept) -> None:
        """Read until the exit is told."""
        socket = await self.server.socket(path)
        pieces: list[bytes | str] = [stdin[at : at + _PIECE] for at in range(0, len(stdin), _PIECE)]
        feeding = asyncio.create_task(fed(socket, [*pieces, json.dumps({"type": "stdin_eof"})]))
        try:
            async for message in socket:
                if isinstance(message, bytes):
                    (stdout if message[:1] == b"\x01" else stderr).add(message[1:])
                elif json.loads(message).get("type") == "exit":
                    return
        except WebSocketException as error:
            raise Unavailable(f"{self.name}: the connection broke: {error}") from error
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            with contextlib.suppress(WebSocketException, OSError):
                await socket.close()
        raise Fault(f"{self.name}: the connection ended without an exit")


def _packed(name: str, content: bytes) -> bytes:
    """A tar with one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
