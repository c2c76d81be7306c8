"""Clients of a deployment in which things break: each knows what it was promised, and says what was not kept.

What was not acknowledged may or may not have happened. What was acknowledged must be there, exactly so.
"""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.faults_ledger import PATIENCE_S, Ledger

__all__ = ["Boxes", "Caller", "Jobs", "Keys", "Runs", "Sessions", "Unanswered"]

PAUSE_S = 0.3
AFTER_FAILURE_S = 0.3
_HONEST = {500, 502, 503, 504}
_ENDED = {"stopped", "failed", "killed"}


class Unanswered(Exception):
    """An honest refusal, or a broken connection."""


@dataclass(kw_only=True)
class Caller:
    """Asks with one key, and judges how it is answered."""

    url: str
    key: str
    ledger: Ledger
    _http: httpx.AsyncClient | None = None

    async def ask(self, what: str, method: str, path: str, *, expected: int, **how: Any) -> httpx.Response:
        """The answer.

        Raises:
            Unanswered: it is not *expected*, and says so honestly; it has been noted.
        """
        began = time.monotonic()
        if self._http is None:
            self._http = httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=PATIENCE_S + 15)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            answer = await self._http.request(method, path, headers=headers, **how)
        except httpx.ReadTimeout:
            self.ledger.violated(f"{what} hangs")
            raise Unanswered(f"{what} hangs") from None
        except httpx.HTTPError as error:
            self.ledger.failed(what, type(error).__name__, began)
            raise Unanswered(str(error)) from None
        self.ledger.took(what, began)
        if answer.status_code == expected:
            self.ledger.did[what] += 1
            return answer
        self._judge(what, answer, began)
        raise Unanswered(f"{what}: {answer.status_code}: {answer.text[:300]}")

    def _judge(self, what: str, answer: httpx.Response, began: float) -> None:
        told = f"{answer.status_code} {answer.text[:160]!r}"
        if answer.status_code in (429, 503) and not answer.headers.get("retry-after", "").isdigit():
            self.ledger.violated(f"{what} is refused without Retry-After: {told}")
        if answer.status_code >= 500 and answer.headers.get("content-type", "").partition(";")[0] != "application/json":
            self.ledger.violated(f"{what} is refused in a form that no client expects: {told}")
        if answer.status_code not in _HONEST | {404, 409, 429}:
            self.ledger.violated(f"{what} is refused as if it were the client's fault: {told}")
        self.ledger.failed(what, told, began)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()


async def again_and_again(step: Callable[[], Awaitable[None]], stop: asyncio.Event, pause_s: float = PAUSE_S) -> None:
    """Repeat *step* until *stop*, more slowly while it is refused."""
    while not stop.is_set():
        try:
            await step()
            wait = pause_s
        except Unanswered:
            wait = AFTER_FAILURE_S
        await asyncio.sleep(wait)


@dataclass(kw_only=True)
class Runs:
    """One-shot programs of which the answer is known."""

    caller: Caller
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(3))

    async def step(self) -> None:
        number = next(self.numbers)
        began = time.monotonic()
        body = {"language": "python", "code": f"print({number} ** 7 % 1000003)"}
        answer = (await self.caller.ask("run", "POST", "/execute", expected=200, json=body)).json()
        if answer["outcome"] != "exited" or answer["exit_code"] != 0:
            # An end that is told as what it was: killed from outside, out of time while everything stood still.
            why = f"{answer['outcome']}, exit code {answer['exit_code']}: {answer['stderr'][-120:]}"
            self.caller.ledger.failed("run", why, began)
        elif answer["stdout"] != f"{number**7 % 1000003}\n":
            self.caller.ledger.violated(f"a run printed {answer['stdout']!r} for {number} and was told as a success")


@dataclass(kw_only=True)
class Jobs:
    """Jobs that are accepted and read much later."""

    caller: Caller
    accepted: dict[str, str] = field(default_factory=dict)
    """What each must print, by its id."""
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How it was told when it was first seen to have ended."""
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(5))

    async def step(self) -> None:
        await self.submit()
        for job in [one for one in self.accepted if one not in self.ended][:2]:
            await self.look(job)

    async def submit(self) -> str:
        """The id of a job that was accepted."""
        number = next(self.numbers)
        sleep = 0.4 if number % 3 == 0 else 0
        code = f"import time; time.sleep({sleep}); print({number} ** 5 % 999983)"
        body = {"language": "python", "code": code, "labels": {"number": str(number)}, "timeout": "20s"}
        answer = await self.caller.ask("job", "POST", "/v1/jobs", expected=202, json=body)
        job: str = answer.json()["id"]
        self.accepted[job] = f"{number**5 % 999983}\n"
        return job

    async def look(self, job: str) -> bool:
        """Whether it has ended; a second look must tell the same as the first.

        Raises:
            Unanswered: that cannot be told now.
        """
        try:
            found = (await self.caller.ask("look at a job", "GET", f"/v1/jobs/{job}", expected=200)).json()
        except Unanswered as error:
            if " 404" in str(error):
                self.caller.ledger.violated(f"job {job} was accepted, and is not there")
            raise
        if found["status"] in ("queued", "running"):
            if job in self.ended:
                self.caller.ledger.violated(f"job {job} had ended, and is {found['status']} again")
            return False
        told = {name: found.get(name) for name in ("status", "attempts", "completedAt", "result")}
        if self.ended.setdefault(job, told) != told:
            self.caller.ledger.violated(f"job {job} ended twice: {self.ended[job]} and {told}")
        if found["status"] != "succeeded" or found["result"]["stdout"] != self.accepted[job]:
            self.caller.ledger.violated(f"job {job} should have printed {self.accepted[job]!r}: {told}")
        return True


_COUNTS = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.5; done"


@dataclass(kw_only=True)
class Sessions:
    """A sandbox that lives, with files and with output that is kept; another when it is lost."""

    caller: Caller
    wardens: Callable[[], list[int]]
    """The warden's process, or none."""
    name: str = ""
    _files: dict[str, bytes] = field(default_factory=dict)
    _told: str = ""
    _warden: list[int] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def step(self) -> None:
        if not self.name:
            warden = self.wardens()
            body = {"image": "host", "network": "none", "command": ["sh", "-c", _COUNTS]}
            answer = await self.caller.ask("session", "POST", "/v1/sessions", expected=201, json=body)
            self.name, self._files, self._told, self._warden = answer.json()["id"], {}, "", warden
            return
        try:
            await self._use()
        except Unanswered:
            await self._may_be_lost()
            raise

    async def drop(self) -> None:
        """End it."""
        if self.name:
            await self.caller.ask("end a session", "DELETE", f"/v1/sessions/{self.name}", expected=200)
            self.name = ""

    async def check(self) -> None:
        """All that was acknowledged is there."""
        base = f"/v1/sessions/{self.name}"
        for path, content in self._files.items():
            found = await self.caller.ask("read a file", "GET", f"{base}/files?path={path}", expected=200)
            if found.content != content:
                self.caller.ledger.violated(f"a file of {self.name} holds {found.content[:60]!r}, not {content[:60]!r}")
        told = (await self.caller.ask("kept output", "GET", f"{base}/logs", expected=200)).text
        lines = told.split("\n")[:-1]
        if not told.startswith(self._told) or lines != [str(number) for number in range(len(lines))]:
            self.caller.ledger.violated(f"the output of {self.name} is not what it was: …{told[-60:]!r}")
        self._told = told

    async def _use(self) -> None:
        number = next(self._numbers)
        path, content = f"/home/user/{number % 5}", f"{number} ".encode() * 500
        self._files.pop(path, None)  # until it is acknowledged it may be the one or the other
        target = f"/v1/sessions/{self.name}/files?path={path}"
        await self.caller.ask("write a file", "POST", target, expected=201, content=content)
        self._files[path] = content
        await self.check()

    async def _may_be_lost(self) -> None:
        """It may have ended with its warden, and then says so; with nothing else."""
        answer = await self.caller.ask("look at a session", "GET", f"/v1/sessions/{self.name}", expected=200)
        found = answer.json()
        if found["status"] in _ENDED:
            if found.get("endedBy") != "lost" or self._warden == self.wardens():
                self.caller.ledger.violated(f"session {self.name} is {found['status']}: {found}")
            self.name = ""


@dataclass(kw_only=True)
class Boxes:
    """A box whose disk holds a line for each write that was acknowledged."""

    caller: Caller
    name: str = ""
    written: list[int] = field(default_factory=list)
    """Acknowledged, in this order."""
    snapshots: dict[str, int] = field(default_factory=dict)
    """How many lines were acknowledged when each was asked for."""
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def step(self) -> None:
        if not self.name:
            body = {"image": "host", "memory_mib": 128, "cpus": 1, "auto_remove": False}
            answer = await self.caller.ask("box", "POST", "/v1/default/boxes", expected=201, json=body)
            self.name = answer.json()["box_id"]
            return
        number = next(self._numbers)
        # With a file's name sync(1) is fsync(2), which tells of failures; without one it is sync(2), which never does.
        await self.shell(f"echo {number} >> /home/user/log && sync /home/user/log")
        self.written.append(number)
        if number % 20 == 10:
            await self._snapshot()
        if number % 20 == 19:
            await self.caller.ask("stop a box", "POST", self._path("stop"), expected=200, json={})

    async def check(self) -> None:
        """The disk holds all that was acknowledged, in order, and nothing twice; so do the last snapshots."""
        self._compare("the disk", await self.shell("cat /home/user/log"), self.written)
        for snapshot, count in list(self.snapshots.items())[-2:]:
            answer = await self.caller.ask(
                "clone a box", "POST", self._path("clone"), expected=201, json={"snapshot": snapshot}
            )
            clone = Boxes(caller=self.caller, name=answer.json()["box_id"])
            self._compare(f"snapshot {snapshot}", await clone.shell("cat /home/user/log"), self.written[:count])
            await clone.drop()

    async def drop(self) -> None:
        """Remove it."""
        if self.name:
            await self.caller.ask("remove a box", "DELETE", f"{self._path()}?force=true", expected=204)
            self.name = ""

    async def shell(self, script: str) -> str:
        """What a shell in it prints.

        Raises:
            Unanswered: it did not come to its end with exit code 0.
        """
        body = {"command": "sh", "args": ["-c", script]}
        began = time.monotonic()
        answer = await self.caller.ask("exec in a box", "POST", self._path("exec"), expected=201, json=body)
        output = self._path(f"executions/{answer.json()['execution_id']}/output")
        told = (await self.caller.ask("output of an exec", "GET", output, expected=200)).text
        printed, event, code = "", "", None
        for line in told.splitlines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                if event == "exit":
                    code = data["exit_code"]
                elif "data" in data:
                    printed += base64.b64decode(data["data"]).decode()
        if code != 0:
            self.caller.ledger.failed("exec in a box", f"exit code {code}", began)
            raise Unanswered(f"exit code {code}")
        return printed

    def _compare(self, where: str, text: str, written: list[int]) -> None:
        found = [int(line) for line in text.splitlines() if line.isdigit()]
        missing = sorted(set(written) - set(found))
        if missing or found != sorted(set(found)):
            self.caller.ledger.violated(
                f"{where} of {self.name} lacks {missing[:5]}, or has a line twice: {found[-9:]}"
            )

    async def _snapshot(self) -> None:
        name, count = f"s{len(self.written)}", len(self.written)
        await self.caller.ask("snapshot", "POST", self._path("snapshots"), expected=201, json={"name": name})
        self.snapshots[name] = count

    def _path(self, what: str = "") -> str:
        return f"/v1/default/boxes/{self.name}{what and '/' + what}"


@dataclass(kw_only=True)
class Keys:
    """Keys that are made while things break."""

    caller: Caller
    made: dict[str, str] = field(default_factory=dict)
    """Those that were acknowledged, by id."""

    async def step(self) -> None:
        body = {"name": f"key {len(self.made)}"}
        answer = (await self.caller.ask("key", "POST", "/v1/account/keys", expected=201, json=body)).json()
        self.made[answer["id"]] = answer["key"]

    async def check(self) -> None:
        """Each of them opens the door."""
        for name, secret in self.made.items():
            caller = Caller(url=self.caller.url, key=secret, ledger=self.caller.ledger)
            try:
                await caller.ask("use a key", "GET", "/v1/account", expected=200)
            except Unanswered as error:
                self.caller.ledger.violated(f"key {name} was acknowledged, and does not work: {error}")
            finally:
                await caller.close()
