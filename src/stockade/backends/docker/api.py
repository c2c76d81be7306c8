"""The few calls of the Docker Engine API that we make, over its UNIX socket.

The standard library alone, and blocking: it is the gate that calls, which holds the keys to the host, and each of its
connections has a thread. See https://docs.docker.com/engine/api/v1.41/.
"""

import http.client
import json
import socket
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

__all__ = ["Api", "ApiError", "Unreachable"]

_VERSION = "v1.41"  # of Docker 20.10
_MOST_ANSWER = 32 << 20
CALL_S = 60.0
IMPORT_S = 300.0


class ApiError(Exception):
    """The engine refused."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class Unreachable(Exception):
    """The engine cannot be asked."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Api:
    """Calls of the engine that listens at *path*. Each has a connection of its own."""

    def __init__(self, path: str) -> None:
        self._path = path

    def get(self, *path: str, **query: Any) -> Any:
        """What a resource is. Raises: ApiError, Unreachable."""
        return self._ask("GET", path, query)

    def post(self, *path: str, body: Mapping[str, Any] | None = None, **query: Any) -> Any:
        """Have something done. Raises: ApiError, Unreachable."""
        return self._ask("POST", path, query, None if body is None else json.dumps(body).encode())

    def delete(self, *path: str, **query: Any) -> Any:
        """Have something removed. Raises: ApiError, Unreachable."""
        return self._ask("DELETE", path, query)

    def send(self, *path: str, body: Iterable[bytes], **query: Any) -> str:
        """Send a tar archive, in pieces; what the engine says to it. Raises: ApiError, Unreachable."""
        return str(self._ask("POST", path, query, body, kind="application/x-tar", timeout=IMPORT_S))

    def attach(self, container: str) -> socket.socket:
        """Standard input, output and error of a container that has not begun, as one stream.

        Shutting it down for writing is the container's end of input.

        Raises:
            ApiError, Unreachable.
        """
        query = {"stream": 1, "stdin": 1, "stdout": 1, "stderr": 1}
        connection = _Connection(self._path, CALL_S)
        try:
            connection.request(
                "POST",
                _target(("containers", container, "attach"), query),
                headers={"Connection": "Upgrade", "Upgrade": "tcp"},
            )
            taken = connection.sock.dup()
            try:
                # Nothing can come before it begins, so that no byte of a stream is left in the response's buffer.
                response = connection.getresponse()
                if response.status not in (101, 200):
                    raise _error(response.status, response.read(_MOST_ANSWER))
            except BaseException:
                taken.close()
                raise
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._path}: {error}") from error
        finally:
            connection.close()
        return taken

    def _ask(
        self,
        method: str,
        path: Iterable[str],
        query: Mapping[str, Any],
        body: bytes | Iterable[bytes] | None = None,
        *,
        kind: str = "application/json",
        timeout: float = CALL_S,
    ) -> Any:
        connection = _Connection(self._path, timeout)
        try:
            headers = {"Content-Type": kind} if body is not None else {}
            chunked = body is not None and not isinstance(body, bytes)
            connection.request(method, _target(path, query), body=body, headers=headers, encode_chunked=chunked)
            response = connection.getresponse()
            data = response.read(_MOST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._path}: {error}") from error
        finally:
            connection.close()
        if response.status >= 300:
            raise _error(response.status, data)
        try:
            return json.loads(data) if data else None
        except ValueError:
            return data.decode(errors="replace")  # a stream of objects, of calls that tell how far they are


def _target(path: Iterable[str], query: Mapping[str, Any]) -> str:
    asked = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in query.items()}
    return (
        "/" + "/".join((_VERSION, *(quote(part, safe="") for part in path))) + (f"?{urlencode(asked)}" if asked else "")
    )


def _error(status: int, data: bytes) -> ApiError:
    try:
        message = str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        message = data[:200].decode(errors="replace")
    return ApiError(status, message)
