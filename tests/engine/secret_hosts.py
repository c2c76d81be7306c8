"""Hosts that secrets are meant for: an authority of the test's own, and servers that tell what they were sent."""

import datetime
import http.server
import io
import ipaddress
import json
import ssl
import threading
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Host", "make_authority", "make_certificate"]

_NOW = datetime.datetime.now(datetime.UTC)


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOW - datetime.timedelta(days=1))
        .not_valid_after(_NOW + datetime.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def make_authority(folder: Path) -> tuple[Path, ec.EllipticCurvePrivateKey]:
    """An authority's certificate, in a file, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        _builder("tests", "tests", key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "authority.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path, key


def make_certificate(folder: Path, authority: ec.EllipticCurvePrivateKey, *names: str) -> Path:
    """Certificate and key of a server, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        _builder(names[0], "tests", key.public_key())
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    path = folder / f"{names[0].removeprefix('*.')}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what it was sent. `/early`: before it has heard all; `/last`: and hangs up, and says so; `/hang-up`:
    does only that; `/switch`: goes on in another protocol, an echo; `/to/NAME`: sends the client there.
    """

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def _answer(self) -> None:
        if self.path == "/early":
            self._say(413, b"too much")
            self.close_connection = True
            return
        if self.path == "/hang-up":
            self.close_connection = True
            return
        if self.path == "/switch":
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.end_headers()
            self.server.heard.append(self._told(b""))
            while data := self.connection.recv(1 << 16):
                self.connection.sendall(data)
            self.close_connection = True
            return
        if self.path.startswith("/to/"):
            self._say(302, b"", Location=f"https://{self.path.removeprefix('/to/')}/")
            return
        told = self._told(self._body())
        self.server.heard.append(told)
        if self.path != "/last":
            self._say(200, json.dumps(told).encode())
            return
        out, self.wfile = self.wfile, io.BytesIO()  # both at once: what follows is there before another request is
        self._say(200, json.dumps(told).encode())
        answer, self.wfile = self.wfile.getvalue(), out
        out.write(answer + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        self.close_connection = True

    do_GET = do_POST = do_PUT = do_OPTIONS = _answer

    def _told(self, body: bytes) -> dict[str, Any]:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return {"method": self.command, "target": self.path, "headers": headers, "body": body.decode("latin-1")}

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Alt-Svc", 'h3=":443"')
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: Any) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    heard: list[dict[str, Any]]

    def handle_error(self, *_: Any) -> None:
        """Clients of these tests break off."""


class Host:
    """A server in threads of this process."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, *, certificate: Path | str | None = None) -> None:
        self._server = _Server((address, port), _Handler)
        self.heard: list[dict[str, Any]] = []
        """What it was sent, request by request."""
        self._server.heard = self.heard
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake is the thread's of the connection: one that comes to nothing holds up nobody.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
