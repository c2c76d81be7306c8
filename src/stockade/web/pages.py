"""The portal's pages and what they consist of: built from `portal/` by `make setup`, held in memory, sent as it is.

Only names that were found when the files were read are served, so that no path can lead anywhere else.
"""

import asyncio
import hashlib
import html
import mimetypes
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from stockade.web.security import page_headers

__all__ = ["PAGES", "Bundle", "add_pages"]

log = structlog.get_logger()

DIRECTORY = Path(__file__).parent / "assets"
PAGES = ("/", "/register", "/login", "/forgot", "/reset", "/verify", "/app", "/app/{rest:path}")
MOST_BYTES = 64 * 1024 * 1024
"""Of all files together; more is no build of ours."""

_INDEX = "index.html"
_NONCE = re.compile(r'(<meta\s+name="csp-nonce"\s+content=")[^"]*(")')
_HASHED = re.compile(r"-[A-Za-z0-9_-]{8,}\.[a-z0-9.]+$")
_CODINGS = (("br", ".br"), ("gzip", ".gz"))
"""The better one first."""
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_MISSING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Stockade: the portal is not built</title></head>
<body><h1>The portal is not built</h1>
<p>This server has no web pages: they are made from the directory <code>portal</code> by <code>make setup</code>.
The API works all the same.</p></body></html>
"""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A file to be served."""

    media_type: str
    content: bytes
    encoded: Mapping[str, bytes]
    """What was compressed beforehand, by content coding."""
    is_immutable: bool
    """Its name changes with its content."""
    etag: str


@dataclass(frozen=True, kw_only=True)
class _Read:
    index: str
    assets: Mapping[str, Asset]
    """By path below the directory."""
    stamp: tuple[int, int]


@dataclass(kw_only=True)
class Bundle:
    """The built files of a directory; read again when another build lies there."""

    directory: Path = DIRECTORY
    _read: _Read | None = field(default=None, init=False)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def index(self, nonce: str) -> str | None:
        """The page, with *nonce* for its style elements; `None` where nothing is built."""
        read = await self._current()
        return None if read is None else _NONCE.sub(rf"\g<1>{html.escape(nonce)}\g<2>", read.index, count=1)

    async def asset(self, path: str) -> Asset | None:
        """The file of that path below the directory."""
        read = await self._current()
        return None if read is None else read.assets.get(path)

    async def _current(self) -> _Read | None:
        stamp = self._stamp()
        if self._read is None or self._read.stamp != stamp:
            async with self._reading:
                if self._read is None or self._read.stamp != stamp:
                    self._read = None if stamp is None else await asyncio.to_thread(self._load, stamp)
        return self._read

    def _stamp(self) -> tuple[int, int] | None:
        """What differs between two builds."""
        try:
            status = os.stat(self.directory / _INDEX)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _load(self, stamp: tuple[int, int]) -> _Read | None:
        try:
            index = (self.directory / _INDEX).read_text(encoding="utf-8")
            contents = dict(self._files())
        except (OSError, ValueError) as error:  # a build is under way
            log.warning("portal.not_readable", error=str(error))
            return None
        if not _NONCE.search(index):
            index = index.replace("<head>", '<head><meta name="csp-nonce" content="">', 1)
        compressed = tuple(ending for _, ending in _CODINGS)
        assets = {
            path: _asset(path, content, contents)
            for path, content in contents.items()
            if path != _INDEX and not path.endswith(compressed)
        }
        return _Read(index=index, assets=assets, stamp=stamp)

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """Plain files, by path; links lead elsewhere and are none of ours."""
        left = MOST_BYTES
        for folder, _, names in os.walk(self.directory, followlinks=False):
            for name in names:
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file():
                    continue
                content = path.read_bytes()
                left -= len(content)
                if left < 0:
                    raise ValueError(f"{self.directory} holds more than {MOST_BYTES} bytes")
                yield path.relative_to(self.directory).as_posix(), content


def _asset(path: str, content: bytes, contents: Mapping[str, bytes]) -> Asset:
    ending = Path(path).suffix.lower()
    return Asset(
        media_type=_TYPES.get(ending) or mimetypes.guess_type(path)[0] or "application/octet-stream",
        content=content,
        encoded={coding: contents[path + tail] for coding, tail in _CODINGS if path + tail in contents},
        is_immutable=_HASHED.search(path) is not None,
        etag=f'"{hashlib.sha256(content).hexdigest()[:24]}"',
    )


def add_pages(router: APIRouter, bundle: Bundle) -> None:
    """Pages, which are all one, and assets."""

    async def page(_request: Request) -> Response:
        nonce = secrets.token_urlsafe(18)
        index = await bundle.index(nonce)
        headers = page_headers(nonce) | {"Cache-Control": "no-cache"}
        if index is None:
            return Response(_MISSING, status_code=503, headers=headers, media_type="text/html")
        return Response(index, headers=headers, media_type="text/html")

    async def asset(request: Request) -> Response:
        found = await bundle.asset(f"assets/{request.path_params['path']}")
        return _sent(request, found)

    async def root_asset(request: Request) -> Response:
        return _sent(request, await bundle.asset(request.url.path.removeprefix("/")))

    for path in PAGES:
        router.add_route(path, page, methods=["GET"])
    router.add_route("/assets/{path:path}", asset, methods=["GET"])
    for name in ("favicon.ico", "favicon.svg", "manifest.webmanifest", "robots.txt"):
        router.add_route(f"/{name}", root_asset, methods=["GET"])


def _sent(request: Request, found: Asset | None) -> Response:
    if found is None:
        raise HTTPException(404, "the portal has no such file")
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if found.is_immutable else "no-cache",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        "Cross-Origin-Resource-Policy": "same-origin",
        "ETag": found.etag,
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
    }
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    accepted = _accepted(request.headers.get("accept-encoding", ""))
    for coding, _ in _CODINGS:
        if coding in found.encoded and coding in accepted:
            headers["Content-Encoding"] = coding
            return Response(found.encoded[coding], headers=headers, media_type=found.media_type)
    return Response(found.content, headers=headers, media_type=found.media_type)


def _accepted(header: str) -> frozenset[str]:
    """The content codings that a client takes (RFC 9110, section 12.5.3)."""
    accepted = set()
    for part in header.lower().split(","):
        coding, _, parameters = part.partition(";")
        if not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", parameters):
            accepted.add(coding.strip())
    return frozenset(accepted)
