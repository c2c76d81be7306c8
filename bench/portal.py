"""What a browser loads before the portal's first page is there, as the server sends it."""

import http.client
import re
from urllib.parse import urlsplit

from bench.context import Bench
from bench.measure import BenchError, Figure
from bench.server import Server

__all__ = ["portal"]

ANSWER_S = 30.0
KIB = 1024
_LINKED = re.compile(r'(?:src|href)="(/assets/[^"]+)"')
_IMPORTED = re.compile(r"""(?:from|import)\s*["']\./([^"']+\.js)["']""")
_CHUNKS = re.compile(r"\.f=\[((?:\"[^\"]*\",?)+)\]")
_PAGE = re.compile(r"import\([`\"']\./(Landing-[^`\"']+\.js)[`\"']\)\s*,\s*__vite__mapDeps\(\[([\d,]*)\]\)")


def portal(bench: Bench) -> None:
    """How heavy it is."""
    bench.results.figures.append(_first_load(bench.server))


def _first_load(server: Server) -> Figure:
    """The bytes of the landing page: the document, what it names, and what its scripts load until it is shown.

    Raises:
        BenchError: there is no portal, or it is built in another way than this knows.
    """
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=ANSWER_S)
    sizes: dict[str, int] = {}

    def load(path: str) -> str:
        """The text at *path*; what its transfer took is noted."""
        if path not in sizes:
            sizes[path] = len(_get(connection, path, "br, gzip"))
        return _get(connection, path, "identity").decode(errors="replace")

    try:
        document = load("/")
        waiting = _LINKED.findall(document)
        if not waiting:
            raise BenchError("the portal is not built: make setup")
        texts: dict[str, str] = {}
        while waiting:
            path = waiting.pop()
            if path in texts:
                continue
            texts[path] = text = load(path)
            if path.endswith(".js"):
                waiting += [f"/assets/{name}" for name in _IMPORTED.findall(text)]
                waiting += _first_page(text)
        if not any("/Landing-" in path for path in texts):
            raise BenchError("the portal's first page is not found among its scripts")
    finally:
        connection.close()
    largest = sorted(sizes.items(), key=lambda one: -one[1])[:3]
    return Figure(
        name="the portal's first load",
        value=sum(sizes.values()) / KIB,
        unit="KiB",
        most=300,
        note=f"{len(sizes)} files, compressed as a browser gets them; the largest: "
        + ", ".join(f"{path.rsplit('/', 1)[1] or 'document'} {size / KIB:.1f}" for path, size in largest),
    )


def _first_page(script: str) -> list[str]:
    """Paths of what *script* loads for the landing page."""
    chunks, page = _CHUNKS.search(script), _PAGE.search(script)
    if chunks is None or page is None:
        return []
    names = re.findall(r'"([^"]*)"', chunks[1])
    return [f"/assets/{page[1]}", *(f"/{names[int(number)]}" for number in page[2].split(",") if number)]


def _get(connection: http.client.HTTPConnection, path: str, coding: str) -> bytes:
    connection.request("GET", path, headers={"Accept-Encoding": coding, "Accept": "text/html,*/*"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise BenchError(f"GET {path}: the server answered {response.status}")
    return answer
