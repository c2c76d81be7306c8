"""Honest or hostile clients, each kind in a process of its own, so that neither waits for the other's client.

    python -m bench.mixed_client honest URL KEY CLIENTS RUNS PAUSE_S
    python -m bench.mixed_client hostile URL KEY CLIENTS             until its standard input ends

Each client has one connection that is kept alive and asks again as soon as it is answered, an honest one after PAUSE_S.
Every honest answer is checked against what the program prints; hostile ones are to be answers. Prints one JSON object.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import httpx

from bench.mixed_programs import Honest, honest_requests, hostile_bodies
from bench.server import PATH

__all__ = ["main"]

_ANSWER_S: Final = 60.0
_REFUSALS: Final = (429, 503)


@dataclass(kw_only=True)
class _Seen:
    """What the clients saw."""

    took: list[float] = field(default_factory=list)
    """Seconds of each that was answered."""
    outcomes: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    """Answers that were not as they should be."""

    async def ask(self, client: httpx.AsyncClient, body: bytes, stdout: str | None) -> None:
        """Send one; a refusal is waited out and counted. Without *stdout* any output will do."""
        began = time.perf_counter()
        response = await client.post(PATH, content=body, headers={"Content-Type": "application/json"})
        if response.status_code in _REFUSALS:
            self.refused += 1
            await asyncio.sleep(float(response.headers["retry-after"]))
            return
        self.took.append(time.perf_counter() - began)
        answer = response.json() if response.status_code == 200 else {}
        self.outcomes[str(answer.get("outcome", response.status_code))] += 1
        if response.status_code != 200 or stdout not in (None, answer["stdout"]):
            self.wrong.append(f"{response.status_code}: {response.text[:300]} for {body.decode()[:300]}")


async def _honest(client: httpx.AsyncClient, seen: _Seen, requests: Iterator[Honest], pause_s: float) -> None:
    for request in requests:
        await seen.ask(client, request.body, request.stdout)
        await asyncio.sleep(pause_s)


async def _hostile(client: httpx.AsyncClient, seen: _Seen, bodies: Iterator[bytes]) -> None:
    for body in bodies:
        await seen.ask(client, body, None)


def _first(requests: Iterator[Honest], runs: int) -> Iterator[Honest]:
    """As many, whoever takes them."""
    for _, request in zip(range(runs), requests, strict=False):
        yield request


async def _until_told() -> None:
    """Returns when nobody holds the other end of our standard input any more."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _clients(kind: str, url: str, key: str, count: int, rest: list[str]) -> _Seen:
    seen = _Seen()
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=_ANSWER_S, headers={"X-API-Key": key}, limits=limits) as client:
        if kind == "honest":
            runs, pause_s = rest
            requests = _first(honest_requests(), int(runs))
            async with asyncio.TaskGroup() as tasks:
                for _ in range(count):
                    tasks.create_task(_honest(client, seen, requests, float(pause_s)))
            return seen
        bodies = hostile_bodies()
        attacking = [asyncio.ensure_future(_hostile(client, seen, bodies)) for _ in range(count)]
        told = asyncio.ensure_future(_until_told())
        await asyncio.wait({told, *attacking}, return_when=asyncio.FIRST_COMPLETED)
        for task in attacking:
            task.cancel()
        for result in await asyncio.gather(*attacking, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
    return seen


def main(arguments: list[str]) -> int:
    """Returns the exit status; failures are told on standard error."""
    kind, url, key, count, *rest = arguments
    began = time.perf_counter()
    seen = asyncio.run(_clients(kind, url, key, int(count), rest))
    print(json.dumps({**vars(seen), "seconds": time.perf_counter() - began}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
