"""Runs and jobs: a program, its input, and one answer."""

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import Any, Final

from stockade.attacks.corpus import LIMITS, Attack
from stockade.attacks.verdicts import Ending
from stockade.attacks.wire_ways_server import WireServer, ends_by_time, life_of
from stockade.errors import Fault, Unsupported
from stockade.model import Outcome

__all__ = ["Job", "Run", "TemplateRun"]

_BY_ITSELF: Final = frozenset({Outcome.EXITED, Outcome.PROCESSES, Outcome.DISK})
"""Outcomes whose status is the program's own word."""
_IS_FORK: Final = "import gc; print(gc.get_freeze_count() > 0)"
"""Whether it was begun from a template: nobody else freezes what the collector knows."""
_WITHIN_S: Final = 20.0
_WARM_S: Final = 45.0
_LOOK_S: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Run:
    """`POST /execute` of the isobox protocol, each run from nothing."""

    server: WireServer
    gives: frozenset[str] = frozenset()
    name: str = "run"
    template: str = "none"

    def refuses(self, attack: Attack) -> str:
        """Nothing: the server says which languages it has."""
        return ""

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        ending = None
        for step in attack.steps:
            ending = await self._one(attack, step, stdin)
        assert ending is not None, "an attack has steps"
        return ending

    async def _one(self, attack: Attack, code: str, stdin: bytes) -> Ending:
        answer = await self.server.ask("POST", "/execute", json=self._body(attack, code, stdin))
        return _ending(answer["outcome"], answer["exit_code"], answer)

    def _body(self, attack: Attack, code: str, stdin: bytes) -> dict[str, Any]:
        wall_s, cpu_s = _times(attack)
        limits = {
            # The protocol counts whole seconds.
            "wall_time_limit_seconds": math.ceil(wall_s),
            "cpu_time_limit_seconds": math.ceil(cpu_s),
            "memory_limit_bytes": LIMITS.memory_bytes,
            "max_processes": LIMITS.processes,
            "max_files": LIMITS.open_files,
        }
        body: dict[str, Any] = {
            "language": attack.language,
            "code": code,
            "stdin": stdin.decode(),
            "resource_limits": limits,
        }
        return body | ({"template": self.template} if self.template else {})


@dataclass(frozen=True, kw_only=True)
class TemplateRun(Run):
    """The same, each run begun from a template, as runs are unless somebody wants otherwise."""

    name: str = "template"
    template: str = ""
    _warming: asyncio.Lock = field(default_factory=asyncio.Lock)
    _known: list[bool] = field(default_factory=list)
    """Whether this server has templates, once somebody has looked."""

    def refuses(self, attack: Attack) -> str:
        return "" if attack.language == "python" else "templates are Python's"

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        await self._until_warm(attack)
        ending = await super().attempt(attack, stdin)
        if not await self._is_warm(attack) and not await self._becomes_warm(attack):
            raise Fault(f"after {attack.name} runs no longer begin from a template")
        return ending

    async def _until_warm(self, attack: Attack) -> None:
        async with self._warming:
            if not self._known:
                self._known.append(await self._becomes_warm(attack))
        if not self._known[0]:
            raise Unsupported("runs do not begin from templates here")

    async def _becomes_warm(self, attack: Attack) -> bool:
        deadline = time.monotonic() + _WARM_S
        while time.monotonic() < deadline:
            if await self._is_warm(attack):
                return True
            await asyncio.sleep(_LOOK_S)  # nothing tells when it is
        return False

    async def _is_warm(self, attack: Attack) -> bool:
        return (await self._one(attack, _IS_FORK, b"")).stdout == b"True\n"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A queued job (`POST /v1/jobs`), which a worker runs."""

    server: WireServer
    gives: frozenset[str] = frozenset()
    name: str = "job"

    def refuses(self, attack: Attack) -> str:
        """Nothing: the server says which languages it has."""
        return ""

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        ending = None
        for step in attack.steps:
            ending = await self._one(attack, step, stdin)
        assert ending is not None, "an attack has steps"
        return ending

    async def _one(self, attack: Attack, code: str, stdin: bytes) -> Ending:
        wall_s, cpu_s = _times(attack)
        limits = LIMITS.given() | {"wall_s": wall_s, "cpu_s": cpu_s}
        body = {"language": attack.language, "code": code, "stdin": stdin.decode(), "limits": limits}
        job = await self.server.ask("POST", "/v1/jobs", json=body)
        path = f"/v1/jobs/{job['id']}"
        while job["status"] in ("queued", "running"):
            job = await self.server.ask("GET", path, params={"wait": "8s"})
        await self.server.ask("DELETE", path)
        result = job["result"]
        if result.get("outcome") is None:
            raise Fault(f"job {job['id']} was not run: {result.get('failure')}: {result.get('message')}")
        return _ending(result["outcome"], result["exitCode"], result)


def _times(attack: Attack) -> tuple[float, float]:
    """Wall-clock and CPU time for *attack*: as little as tells, where nothing but its time ends it; where no limit of
    time contains it, as much as it may need on a host that is busy.
    """
    if ends_by_time(attack):
        return 1.5, 1.0
    return life_of(attack, _WITHIN_S), LIMITS.cpu_s or 3.0


def _ending(outcome: str, exit_code: int | None, texts: dict[str, Any]) -> Ending:
    how = Outcome(outcome)
    return Ending(
        outcome=how,
        # What is reported beside a limit or a signal is the protocol's word for that, not the program's.
        exit_code=exit_code if how in _BY_ITSELF else None,
        stdout=texts["stdout"].encode(),
        stderr=texts["stderr"].encode(),
    )
