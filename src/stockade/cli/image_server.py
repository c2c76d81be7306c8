"""`stockade image` on a server that runs: BoxLite's REST interface, with what ours has beyond it."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx

from stockade.cli.image_places import Steps, import_stream
from stockade.cli.sandbox_server import Server
from stockade.engine.image_progress import LayerProgress, LayerState

if TYPE_CHECKING:
    from pathlib import Path

    from stockade.engine.image_sources import ImageSource

__all__ = ["OnServer"]

ANSWER_S = 60.0
CONNECT_S = 10.0
_EVENTS = "text/event-stream"


class OnServer:
    """Satisfies `cli.image_places.Place`. Raises the client library's errors, `stockade.sdk.errors`."""

    def __init__(self, server: Server) -> None:
        """Nothing is asked yet."""
        self._server = server

    async def __aenter__(self) -> Self:
        from stockade.sdk._transport import checked_url, headers

        self._client = httpx.AsyncClient(
            base_url=f"{checked_url(self._server.url)}/v1/",
            headers=headers(self._server.api_key),
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    def pull(self, reference: str, *, force: bool) -> Steps:
        return self._watched("images/pull", json={"reference": reference, "force": force})

    def import_file(self, path: "Path", *, name: str | None, reference: str) -> Steps:
        content = import_stream(path, name=name)
        return self._watched("images/import", params={"reference": reference}, content=content, headers=_TAR)

    async def add(self, source: "ImageSource", *, reference: str) -> Steps:
        from stockade.engine.image_packing import packed

        try:
            query = {"reference": reference}
            async for step in self._watched("images/import", params=query, content=packed(source), headers=_TAR):
                yield step
        finally:
            await source.close()

    async def list(self) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = (await self._asked("GET", "images"))["images"]
        return found

    async def show(self, name: str) -> Mapping[str, Any]:
        return await self._asked("GET", _image(name))

    async def alias(self, name: str, alias: str) -> None:
        await self._asked("POST", f"{_image(name)}/aliases", json={"alias": alias})

    async def unalias(self, name: str, alias: str) -> None:
        await self._asked("DELETE", f"{_image(name)}/aliases/{quote(alias, safe='')}")

    async def remove(self, name: str) -> None:
        await self._asked("DELETE", _image(name))

    async def prune(self, unused_s: float | None) -> Mapping[str, Any]:
        return await self._asked("POST", "images/prune", json={} if unused_s is None else {"unused_s": unused_s})

    async def usage(self) -> Mapping[str, Any]:
        return await self._asked("GET", "images/usage")

    async def log_in(self, host: str, *, username: str, password: str, prefix: str) -> Mapping[str, Any]:
        """Have the server keep credentials for a registry."""
        body = {"registry_host": host, "username": username, "password": password, "repository_prefix": prefix}
        return await self._asked("POST", "images/registries", json=body)

    async def registries(self) -> Sequence[Mapping[str, Any]]:
        """Those that the server has credentials for."""
        found: Sequence[Mapping[str, Any]] = (await self._asked("GET", "images/registries"))["registries"]
        return found

    async def log_out(self, id: str) -> None:
        """Have the server forget credentials."""
        await self._asked("DELETE", f"images/registries/{quote(id, safe='')}")

    async def _asked(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        from stockade.sdk._transport import answered, translated

        with translated(self._server.url):
            return answered(self._server.url, await self._client.request(method, path, **body))

    async def _watched(self, path: str, *, headers: Mapping[str, str] | None = None, **body: Any) -> Steps:
        from stockade.sdk._transport import translated
        from stockade.sdk.errors import ConnectionLost, api_error

        # Comments come while nothing else does; before the first, what was uploaded may have to reach the disk.
        with translated(self._server.url):
            async with self._client.stream(
                "POST",
                path,
                headers={**(headers or {}), "accept": _EVENTS},
                timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S, read=2 * ANSWER_S),
                **body,
            ) as response:
                if not response.is_success:
                    raise api_error(response.status_code, response.headers, await response.aread())
                if not response.headers.get("content-type", "").startswith(_EVENTS):
                    yield json.loads(await response.aread())
                    return
                async for name, data in _events(response.aiter_lines()):
                    if name == "layer":
                        yield _layer(data)
                    elif name == "image":
                        yield data
                        return
                    elif name == "error":
                        raise api_error(_status(data), response.headers, json.dumps(data).encode())
        raise ConnectionLost(f"{self._server.url} ended its answer before the image was there")


_TAR = {"content-type": "application/x-tar"}


def _image(name: str) -> str:
    return f"images/{quote(name, safe='')}"


async def _events(lines: AsyncIterator[str]) -> AsyncGenerator[tuple[str, Any], None]:
    """Server-sent events: their names, and their data as the JSON that it is."""
    name, data = "", ""
    async for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data += line[5:].strip()
        elif not line and data:
            yield name, json.loads(data)
            name, data = "", ""


def _layer(data: Mapping[str, Any]) -> LayerProgress:
    return LayerProgress(
        digest=str(data["digest"]),
        size_bytes=int(data["size_bytes"]),
        fetched_bytes=int(data["fetched_bytes"]),
        state=LayerState(data["state"]),
    )


def _status(data: Mapping[str, Any]) -> int:
    inner = data.get("error")
    code = inner.get("code") if isinstance(inner, dict) else None
    return code if isinstance(code, int) else 500
