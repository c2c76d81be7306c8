"""A directory, or a tar archive that lies in a file: named pieces that are read where they are.

An archive is never unpacked: what is wanted of it is read by its place in the file. So a name in it can lead nowhere.
"""

import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stockade.engine.image_manifests import BadManifest
from stockade.errors import Invalid

__all__ = ["Directory", "Pieces", "TarFile"]

CHUNK = 1 << 18

_BLOCK = 512
_MOST_MEMBERS = 100_000
_MOST_EXTENSION = 1 << 16
"""Bytes of a member's further attributes (pax); nobody's are larger here."""
_MOST_LINKS = 4


class Pieces(Protocol):
    """Named pieces of content. Everything blocks, and raises BadManifest and OSError."""

    def size(self, name: str) -> int | None:
        """Bytes of a piece; `None` where there is none."""
        ...

    def read(self, name: str, *, most: int) -> bytes:
        """A whole piece, of *most* bytes at most."""
        ...

    def chunks(self, name: str) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class Directory:
    """Files below a directory. Links are not followed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def size(self, name: str) -> int | None:
        try:
            found = os.lstat(self._path / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def read(self, name: str, *, most: int) -> bytes:
        content = bytearray()
        for chunk in self.chunks(name):
            content += chunk
            if len(content) > most:
                raise BadManifest(f"{name} has more than {most} bytes")
        return bytes(content)

    def chunks(self, name: str) -> Iterator[bytes]:
        if self.size(name) is None:
            raise BadManifest(f"{name} is missing, or is no file")
        descriptor = os.open(self._path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(descriptor, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def close(self) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class _Member:
    offset: int
    size: int
    target: str | None = None
    """Of a link: the name that it leads to."""


class TarFile:
    """The members of a plain tar archive in a file that does not change meanwhile."""

    def __init__(self, path: Path) -> None:
        """Open it and note where its members lie.

        Raises:
            Invalid: it is no tar archive, or a damaged one.
            OSError: it cannot be read.
        """
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by `close`)
        try:
            self._members = _index(self._file.fileno(), os.fstat(self._file.fileno()).st_size, path)
        except BaseException:
            self._file.close()
            raise

    def size(self, name: str) -> int | None:
        found = self._find(name)
        return None if found is None else found.size

    def read(self, name: str, *, most: int) -> bytes:
        size = self.size(name)
        if size is None or size > most:
            raise BadManifest(f"{name} is missing" if size is None else f"{name} has more than {most} bytes")
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        found = self._find(name)
        if found is None:
            raise BadManifest(f"{name} is missing, or is no file")
        at, end = found.offset, found.offset + found.size
        while at < end:
            chunk = os.pread(self._file.fileno(), min(CHUNK, end - at), at)
            if not chunk:
                raise BadManifest(f"{name} is cut off")
            at += len(chunk)
            yield chunk

    def close(self) -> None:
        self._file.close()

    def _find(self, name: str) -> _Member | None:
        for _ in range(_MOST_LINKS):
            found = self._members.get(posixpath.normpath(name))
            if found is None or found.target is None:
                return found
            name = found.target
        return None


def _index(descriptor: int, end: int, path: Path) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    at, attributes = 0, dict[str, str]()
    for _ in range(_MOST_MEMBERS):
        block = os.pread(descriptor, _BLOCK, at)
        if not block.strip(b"\0"):
            return members  # the end mark, or the end
        try:
            # By tarfile's reading of one header only: of a whole archive it would read whatever a header claims.
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Invalid(_no_archive(path, block, at, error)) from None
        at += _BLOCK
        size = header.size
        if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            attributes = _attributes(os.pread(descriptor, min(size, _MOST_EXTENSION), at))
        elif header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if header.type in tarfile.REGULAR_TYPES and attributes.get("size", "").isdecimal():
                size = int(attributes["size"])  # more than the header can hold
            if not 0 <= size <= end - at:
                raise Invalid(f"{path}: is cut off: it ends within {header.name!r}")
            member = _member(header, at, size, attributes)
            if member is not None:
                members[posixpath.normpath(attributes.get("path", header.name))] = member
            attributes = {}
        at += -(-size // _BLOCK) * _BLOCK if header.type not in (tarfile.LNKTYPE, tarfile.SYMTYPE) else 0
    raise Invalid(f"{path}: has more than {_MOST_MEMBERS} members")


def _member(header: tarfile.TarInfo, at: int, size: int, attributes: dict[str, str]) -> _Member | None:
    link = attributes.get("linkpath", header.linkname)
    if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return _Member(offset=at, size=size)
    if header.type == tarfile.LNKTYPE:
        return _Member(offset=at, size=0, target=link)
    if header.type == tarfile.SYMTYPE:  # so Docker names a layer that is there under another name
        place = posixpath.dirname(attributes.get("path", header.name))
        return _Member(offset=at, size=0, target=posixpath.join(place, link))
    return None


def _attributes(records: bytes) -> dict[str, str]:
    """The attributes in a pax header: `LENGTH NAME=VALUE` and a line's end, again and again."""
    found: dict[str, str] = {}
    while records:
        length, _, _ = records.partition(b" ")
        if not length.isdigit() or len(length) > 6 or not len(length) < int(length) <= len(records):
            break
        name, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        found[name.decode(errors="replace")] = value.decode(errors="replace")
        records = records[int(length) :]
    return found


def _no_archive(path: Path, block: bytes, at: int, error: Exception) -> str:
    if at == 0 and block.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")):
        return f"{path}: is packed; unpack it first (gunzip, unzstd, …)"
    return f"{path}: is no tar archive, or a damaged one: {error} at byte {at}"
