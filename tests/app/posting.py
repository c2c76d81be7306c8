"""An address of ours to which others post."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["posted_to"]


@contextmanager
def posted_to(take: Callable[[Message, bytes], object], *, status: int) -> Iterator[str]:
    """Its URL; headers and body of each post go to *take*, and it is answered with *status*."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            take(self.headers, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
