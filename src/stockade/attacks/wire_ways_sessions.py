"""Sandboxes that live, by two protocols: processes over a WebSocket, and the executor's commands."""

import asyncio
import base64
import contextlib
import shlex
import struct
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

from websockets.exceptions import WebSocketException

from stockade.attacks.corpus import LIMITS, Attack
from stockade.attacks.verdicts import Ending
from stockade.attacks.wire_ways_server import STARTED_BY, WITHIN_S, Kept, WireServer, fed, life_of
from stockade.errors import Fault, StockadeError, Unavailable, Unsupported
from stockade.model import Outcome

__all__ = ["Executor", "SessionExec"]

_FOLDER: Final = "/code"
_PIECE: Final = 1 << 16
_GRACE_S: Final = 30.0
"""Time beyond its life in which a sandbox's end is to be told."""
_STDIN, _STDOUT, _STDERR, _EXIT, _ERROR, _STDIN_CLOSE = range(1, 7)
_NOT_THERE: Final = 127
_ANSWERED_S: Final = 15.0
"""Life of an executor's sandbox: a command is answered when nothing holds its output open any more, and some do."""
_FULL: Final = 0.95
"""Share of its memory that a sandbox has used when one of its processes is killed for want of it."""


@dataclass(frozen=True, kw_only=True)
class SessionExec:
    """A process of an execbox session without a main one."""

    server: WireServer
    name: str
    gives: frozenset[str]
    user: str = "user"
    terminal: bool = False
    network: str = "none"

    def refuses(self, attack: Attack) -> str:
        return "" if attack.language in STARTED_BY else f"no {attack.language} in a sandbox's own files"

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        ending = None
        for step in attack.steps:
            async with _session(self.server, attack, network=self.network) as session:
                ending = await self._run(session["id"], attack, step, stdin)
        assert ending is not None, "an attack has steps"
        return ending

    async def _run(self, session: str, attack: Attack, code: str, stdin: bytes) -> Ending:
        file, argv = STARTED_BY[attack.language]
        path = f"/v1/sessions/{session}"
        with _unless_over():
            await self.server.ask(
                "POST",
                f"{path}/files",
                params={"path": f"{_FOLDER}/{file}", "user": self.user},
                content=code.encode(),
            )
        query = [("cmd", word) for word in argv] + [("workdir", _FOLDER), ("user", self.user)]
        if self.terminal:
            query += [("tty", "true"), ("rows", "24"), ("cols", "80")]
        stdout, stderr = Kept(), Kept()
        try:
            async with asyncio.timeout(life_of(attack) + _GRACE_S):
                status = await self._told(f"{path}/exec?{urlencode(query)}", stdin, stdout, stderr)
        except TimeoutError:
            raise Fault(f"{self.name}: no end was told within {life_of(attack) + _GRACE_S:g} s") from None
        if status == _NOT_THERE and attack.language == "c":
            raise Unsupported("no C compiler in the sandbox")
        outcome = await _outcome(self.server, session, status)
        return Ending(outcome=outcome, exit_code=status, stdout=stdout.text(), stderr=stderr.text())

    async def _told(self, path: str, stdin: bytes, stdout: Kept, stderr: Kept) -> int:
        socket = await self.server.socket(path)
        typed = stdin + b"\n" if self.terminal else stdin
        pieces = [typed[at : at + _PIECE] for at in range(0, len(typed), _PIECE)]
        frames: list[bytes | str] = [struct.pack(">BI", _STDIN, len(piece)) + piece for piece in pieces]
        feeding = asyncio.create_task(fed(socket, [*frames, bytes([_STDIN_CLOSE])]))
        try:
            async for message in socket:
                assert isinstance(message, bytes), "every frame is binary"
                if message[0] == _EXIT:
                    return int(struct.unpack_from(">i", message, 1)[0])
                if message[0] in (_STDOUT, _STDERR, _ERROR):
                    (stdout if message[0] == _STDOUT else stderr).add(message[5:])
        except WebSocketException as error:
            raise Unavailable(f"{self.name}: the connection broke: {error}") from error
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            with contextlib.suppress(WebSocketException, OSError):
                await socket.close()
        raise Fault(f"{self.name}: the connection ended without an exit")


@dataclass(frozen=True, kw_only=True)
class Executor:
    """`POST /run` of the executor protocol: a command of the shell, in a session that a secret opens."""

    server: WireServer
    gives: frozenset[str]
    name: str = "executor"

    def refuses(self, attack: Attack) -> str:
        return "" if attack.language in STARTED_BY else f"no {attack.language} in a sandbox's own files"

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        ending = None
        for step in attack.steps:
            async with _session(self.server, attack, within_s=_ANSWERED_S, executor=True) as session:
                ending = await self._run(session, attack, step, stdin)
        assert ending is not None, "an attack has steps"
        return ending

    async def _run(self, session: dict[str, Any], attack: Attack, code: str, stdin: bytes) -> Ending:
        file, argv = STARTED_BY[attack.language]
        for name, content in ((file, code.encode()), ("given-input", stdin)):
            written = await self._ask(session, "write_file", path=f"{_FOLDER}/{name}", content=content)
            if "error" in written:
                raise Fault(f"executor: {name}: {written['error']}")
        # The input is open and its file gone when the program begins: it is to find nothing but its own.
        command = f"exec <given-input; rm given-input; exec {shlex.join(argv)}"
        answer = await self._ask(session, "run", cmd=command, cwd=_FOLDER)
        code_told = answer["code"]
        outcome = await _outcome(self.server, session["id"], code_told)
        stdout, stderr = Kept(), Kept()
        stdout.add(answer["stdout"].encode())
        stderr.add(answer["stderr"].encode())
        # -1 is the protocol's word for a signal, or for its own limit on output.
        if code_told < 0 and "printed more" in answer.get("error", ""):
            outcome = Outcome.OUTPUT
        status = code_told if code_told >= 0 else None
        return Ending(outcome=outcome, exit_code=status, stdout=stdout.text(), stderr=stderr.text())

    async def _ask(self, session: dict[str, Any], what: str, **members: Any) -> dict[str, Any]:
        if "content" in members:
            members |= {"content": base64.b64encode(members["content"]).decode(), "is_base64": True}
        # Not the URL that the server names, which may be another host's: the address that we were given.
        answer = await self.server.ask(
            "POST", f"/koyeb-sandbox/{what}", secret=session["executor"]["secret"], json=members
        )
        assert isinstance(answer, dict)
        return answer


@contextlib.asynccontextmanager
async def _session(server: WireServer, attack: Attack, *, within_s: float = WITHIN_S, **more: Any) -> Any:
    """A sandbox under the corpus's limits, gone at the end."""
    body = {
        "image": "host",
        "command": [],
        "workDir": _FOLDER,
        "network": "none",
        "resources": {
            "cpuMillis": round((LIMITS.cpus or 1) * 1000),
            "memoryMB": (LIMITS.memory_bytes or 0) >> 20,
            "storageMB": (LIMITS.disk_bytes or 0) >> 20,
            "timeoutMs": round(life_of(attack, within_s) * 1000),
        },
    }
    session = await server.ask("POST", "/v1/sessions", json=body | more)
    try:
        yield session
    finally:
        # Once more where it is killed, and not only ended: what it has left is dropped.
        path = f"/v1/sessions/{quote(session['id'])}"
        with contextlib.suppress(StockadeError):
            await server.ask("DELETE", path)


async def _outcome(server: WireServer, session: str, status: int) -> Outcome:
    """What *status* of a process means, which the protocols do not tell apart: a limit, a signal, or an exit."""
    if 0 <= status <= 128:
        return Outcome.EXITED
    now = await server.ask("GET", f"/v1/sessions/{session}")
    if now.get("outcome") in (Outcome.WALL_TIME, Outcome.CPU_TIME, Outcome.MEMORY):
        return Outcome(now["outcome"])
    with contextlib.suppress(StockadeError):
        stats = await server.ask("GET", f"/v1/sessions/{session}/stats")
        if stats["memoryPeakBytes"] >= _FULL * (LIMITS.memory_bytes or 0):
            return Outcome.MEMORY
    return Outcome.SIGNALED


@contextlib.contextmanager
def _unless_over() -> Any:
    """A sandbox with a short life may be over, on a busy host, before its program has been started: try again."""
    try:
        yield
    except StockadeError as error:
        if "409" in str(error):
            raise Unavailable(f"its life was over too soon: {error}") from error
        raise
