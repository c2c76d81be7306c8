"""Has the programs of a sandbox trust the authority that `diversions` speaks for hosts with."""

from collections.abc import AsyncIterator, Mapping

from stockade.backends.sandboxing import FileAccess
from stockade.errors import Conflict, Denied, Invalid, NotFound

__all__ = ["ENV", "install"]

_FOLDER = "/etc/stockade"
_AUTHORITY, _BUNDLE = f"{_FOLDER}/secrets-ca.pem", f"{_FOLDER}/ca-bundle.pem"
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora and its kin
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # Alpine's libraries
)
_ANCHORS = "/usr/local/share/ca-certificates"
"""What `update-ca-certificates` makes the bundle from, besides what the distribution brings."""
_BEGIN, _END = b"# Stockade: the authority of this sandbox's secrets\n", b"# Stockade: end\n"
_MOST_BUNDLE = 4 << 20

ENV: Mapping[str, str] = {
    # Whole bundles: what they name is trusted instead of what the program or library would trust.
    "SSL_CERT_FILE": _BUNDLE,
    "REQUESTS_CA_BUNDLE": _BUNDLE,
    "CURL_CA_BUNDLE": _BUNDLE,
    "GIT_SSL_CAINFO": _BUNDLE,
    "AWS_CA_BUNDLE": _BUNDLE,
    "PIP_CERT": _BUNDLE,
    "CARGO_HTTP_CAINFO": _BUNDLE,
    # In addition to what they trust.
    "NODE_EXTRA_CA_CERTS": _AUTHORITY,
    "DENO_CERT": _AUTHORITY,
}
"""For the environment of the sandbox; the files are there once `install` is done."""


async def install(files: FileAccess, certificate: str) -> None:
    """Put the authority where programs look for such: files of its own, and the end of the image's own bundle.

    Of a disk that an earlier sandbox has used, the earlier one's goes. *files* has the rights of root.

    Raises:
        StockadeError: what `FileAccess.write` raises, for the files of its own.
    """
    block = _BEGIN + certificate.encode() + _END
    bundle = b""
    for path in _BUNDLES:
        found = await _read(files, path)
        if found is None:
            continue
        clean = _without_block(found)
        bundle = bundle or clean
        if found != clean + block:
            await _try_to_write(files, path, clean + block)
    await files.write(_AUTHORITY, _once(certificate.encode()))
    await files.write(_BUNDLE, _once(bundle + block))
    if await _is_there(files, _ANCHORS):
        await _try_to_write(files, f"{_ANCHORS}/stockade-secrets.crt", certificate.encode())


def _without_block(bundle: bytes) -> bytes:
    head, begin, rest = bundle.partition(_BEGIN)
    if begin:
        head += rest.partition(_END)[2]
    return head if head.endswith(b"\n") or not head else head + b"\n"


async def _read(files: FileAccess, path: str) -> bytes | None:
    """A bundle; `None` where there is none, or nothing that could be one."""
    try:
        info, content = await files.read(path)
        if info.size > _MOST_BUNDLE:
            return None
        return b"".join([part async for part in content])
    except (NotFound, Invalid, Denied):
        return None


async def _is_there(files: FileAccess, path: str) -> bool:
    try:
        await files.stat(path)
    except (NotFound, Invalid, Denied):
        return False
    return True


async def _try_to_write(files: FileAccess, path: str, content: bytes) -> None:
    """In place: what leads there, and who else holds it open, stays right. Not every image lets itself be changed."""
    try:
        await files.write(path, _once(content), in_place=True)
    except (NotFound, Invalid, Denied, Conflict):
        pass


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
