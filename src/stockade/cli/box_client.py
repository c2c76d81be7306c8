"""What the `stockade box` commands ask of a server: BoxLite's REST interface, with what ours has beyond it."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from stockade.cli.sandbox_server import Server
from stockade.sdk._transport import answered, checked_url, headers, translated
from stockade.sdk.errors import api_error

__all__ = ["BoxClient"]

ANSWER_S = 120.0
"""Within which an answer begins: a start may have to bring an image here first."""
CONNECT_S = 10.0
TRANSFER_S = 600.0
"""Without a sign of life, of transfers that take as long as they take."""
_TAR = "application/x-tar"
_IS_DIRECTORY = "x-boxlite-source-is-dir"


class BoxClient:
    """A server's boxes. Raises the client library's errors, `stockade.sdk.errors`."""

    def __init__(self, server: Server) -> None:
        """Nothing is asked yet. Raises ValueError: the URL or the key cannot be right."""
        self.server = server
        self._client = httpx.Client(
            base_url=f"{checked_url(server.url)}/v1/",
            headers=headers(server.api_key),
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    # ── boxes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._asked("POST", "boxes", json=dict(body))

    def list(self, *, status: str | None = None) -> Sequence[dict[str, Any]]:
        found: Sequence[dict[str, Any]] = self._asked("GET", "boxes", params=_given(status=status))["boxes"]
        return found

    def get(self, box: str) -> dict[str, Any]:
        return self._asked("GET", _box(box))

    def act(self, box: str, action: str) -> dict[str, Any]:
        """`start`, `stop`, `pause` or `resume`; the box afterwards."""
        return self._asked("POST", f"{_box(box)}/{action}")

    def remove(self, box: str, *, force: bool) -> None:
        self._asked("DELETE", _box(box), params={"force": "true"} if force else {})

    # ── snapshots and copies ─────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self, box: str, name: str) -> dict[str, Any]:
        return self._asked("POST", f"{_box(box)}/snapshots", json={"name": name})

    def snapshots(self, box: str) -> Sequence[dict[str, Any]]:
        found: Sequence[dict[str, Any]] = self._asked("GET", f"{_box(box)}/snapshots")["snapshots"]
        return found

    def remove_snapshot(self, box: str, name: str) -> None:
        self._asked("DELETE", f"{_box(box)}/snapshots/{quote(name, safe='')}")

    def restore(self, box: str, name: str) -> None:
        self._asked("POST", f"{_box(box)}/snapshots/{quote(name, safe='')}/restore")

    def clone(self, box: str, *, name: str | None, snapshot: str | None) -> dict[str, Any]:
        return self._asked("POST", f"{_box(box)}/clone", json=_given(name=name, snapshot=snapshot))

    def fork(self, box: str, count: int, *, snapshot: str | None, start: bool) -> Sequence[dict[str, Any]]:
        body = {"count": count, "start": start, **_given(snapshot=snapshot)}
        made: Sequence[dict[str, Any]] = self._asked("POST", f"{_box(box)}/fork", json=body)["boxes"]
        return made

    @contextlib.contextmanager
    def export(self, box: str) -> Iterator[Iterator[bytes]]:
        """The bytes of a box's file."""
        with self._streamed("POST", f"{_box(box)}/export") as response:
            yield response.iter_raw()

    def import_(self, content: Iterable[bytes], *, name: str | None) -> dict[str, Any]:
        return self._asked(
            "POST",
            "boxes/import",
            params=_given(name=name),
            content=content,
            headers={"content-type": "application/octet-stream"},
            timeout=httpx.Timeout(TRANSFER_S, connect=CONNECT_S),
        )

    # ── volumes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def create_volume(self, *, name: str | None, size_gb: int | None) -> dict[str, Any]:
        body = {**_given(name=name), **({} if size_gb is None else {"size_gb": size_gb})}
        return self._asked("POST", "volumes", json=body)

    def volumes(self) -> Sequence[dict[str, Any]]:
        found: Sequence[dict[str, Any]] = self._asked("GET", "volumes")["volumes"]
        return found

    def remove_volume(self, volume: str, *, force: bool) -> None:
        path = f"volumes/{quote(volume, safe='')}"
        self._asked("DELETE", path, params={"force": "true"} if force else {})

    # ── processes and files ──────────────────────────────────────────────────────────────────────────────────────

    def exec(self, box: str, body: Mapping[str, Any]) -> str:
        """Start a process; its id."""
        return str(self._asked("POST", f"{_box(box)}/exec", json=dict(body))["execution_id"])

    def forget(self, box: str, execution: str) -> None:
        """Kill a process where it runs, and forget it."""
        self._asked("DELETE", f"{_box(box)}/executions/{quote(execution, safe='')}")

    def attach_path(self, box: str, execution: str | None = None) -> str:
        """Where the WebSocket of a process is; of the main one where none is named."""
        which = "" if execution is None else f"executions/{quote(execution, safe='')}/"
        return f"/v1/{_box(box)}/{which}attach"

    def upload(self, box: str, path: str, archive: Iterable[bytes], *, is_file: bool) -> None:
        self._asked(
            "PUT",
            f"{_box(box)}/files",
            params={"path": path, **({"source_is_dir": "false"} if is_file else {})},
            content=archive,
            headers={"content-type": _TAR},
            timeout=httpx.Timeout(TRANSFER_S, connect=CONNECT_S),
        )

    @contextlib.contextmanager
    def download(self, box: str, path: str) -> Iterator[tuple[bool, Iterator[bytes]]]:
        """Whether it is a directory, and the archive. Raises NotFound."""
        with self._streamed("GET", f"{_box(box)}/files", params={"path": path}) as response:
            yield response.headers.get(_IS_DIRECTORY) == "true", response.iter_raw()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _asked(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        with translated(self.server.url):
            return answered(self.server.url, self._client.request(method, path, **how))

    @contextlib.contextmanager
    def _streamed(self, method: str, path: str, **how: Any) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(TRANSFER_S, connect=CONNECT_S)
        with translated(self.server.url), self._client.stream(method, path, timeout=timeout, **how) as response:
            if not response.is_success:
                raise api_error(response.status_code, response.headers, response.read())
            yield response


def _box(name: str) -> str:
    return f"boxes/{quote(name, safe='')}"


def _given(**members: str | None) -> dict[str, str]:
    return {name: value for name, value in members.items() if value is not None}
