"""A whole server with boxes in a process of its own, and a client that speaks boxlite to it."""

import asyncio
import base64
import contextlib
import io
import json
import signal
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.app.serving import Server, serving

__all__ = ["KEY", "Client", "client_of", "platform", "tar_of"]

KEY = "sk_" + "b2" * 32
"""The operator's."""
WITHIN_S = 60.0
_CONFIG = """
[images.aliases]
"alpine:latest" = "host"
"python:slim" = "host"

[boxes]
sweep_s = 0.2
stop_grace_s = 0.5
"""


@contextlib.contextmanager
def platform(folder: Path, **variables: str) -> Iterator[Server]:
    """A server whose boxes end with the block, unless a test has ended it itself."""
    config = folder / "stockade.toml"
    config.write_text(_CONFIG)
    settings = {"STOCKADE_API_KEY": KEY, **variables}
    with serving(folder / "data", "--config", str(config), **settings) as server:
        try:
            yield server
        finally:
            if server.process.poll() is None:
                # As by Ctrl-C: sandboxes, which outlive every other end of the server, are ended too.
                server.end(signal.SIGINT)


@dataclass(kw_only=True)
class Client:
    """Asks with one key, below one slot."""

    http: httpx.AsyncClient
    base: str
    slot: str = "/v1/default"

    def box(self, name: str, what: str = "") -> str:
        """The path of a box, or of something of it."""
        return f"{self.slot}/boxes/{name}{what and '/' + what}"

    async def create(self, **members: Any) -> str:
        """The id of a new box."""
        response = await self.http.post(
            f"{self.slot}/boxes", json={"image": "host", "memory_mib": 128, "cpus": 1, **members}
        )
        assert response.status_code == 201, response.text
        found: str = response.json()["box_id"]
        return found

    async def post(self, name: str, what: str, body: Any = None, *, status: int = 200) -> Any:
        """What a box answers to being told to do something."""
        response = await self.http.post(self.box(name, what), json=body)
        assert response.status_code == status, response.text
        return response.json() if response.content else None

    async def run(self, name: str, script: str) -> str:
        """What a shell in a box prints; its exit code must be 0."""
        made = await self.post(name, "exec", {"command": "sh", "args": ["-c", script]}, status=201)
        printed, code = "", None
        async with (
            asyncio.timeout(WITHIN_S),
            self.http.stream("GET", self.box(name, f"executions/{made['execution_id']}/output")) as answer,
        ):
            event = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    if event == "exit":
                        code = data["exit_code"]
                    else:
                        printed += base64.b64decode(data["data"]).decode()
        assert code == 0, printed
        return printed

    async def status(self, name: str) -> str | None:
        """A box's; `None` where there is none."""
        response = await self.http.get(self.box(name))
        if response.status_code == 404:
            return None
        found: str = response.json()["status"]
        return found

    async def gone(self, name: str) -> None:
        """Wait until there is no such box."""
        async with asyncio.timeout(WITHIN_S):
            while await self.status(name) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def drop(self, *names: str) -> None:
        for name in names:
            response = await self.http.delete(self.box(name), params={"force": "true"})
            assert response.status_code == 204, response.text


@contextlib.asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False, headers=headers) as http:
        yield Client(http=http, base=server.url)


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar with these files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive.getvalue()
