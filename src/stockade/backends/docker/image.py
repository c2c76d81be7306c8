"""The image that stands for `host`: the host's own `/usr`, shown read-only, around an `/etc` built from nothing.

What the native backend shows, so that a program finds the same languages on both. The engine keeps what lies around
`/usr` and no more, some 2 MB; it is named after a digest of its content, so it is made once and found again.
"""

import hashlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from stockade.backends.docker.api import Api, ApiError
from stockade.backends.docker.recipe import LABEL
from stockade.warden.fields import Refused
from stockade.warden.image import DIRECTORIES, HOME, SYSTEM, make_etc

__all__ = ["binds", "image_of"]

_NAME = "stockade-host"
_CHUNK = 1 << 20
_EMPTY = "mnt"
"""A directory of ours in which there is nothing."""


def binds(host_paths: Iterable[str]) -> list[tuple[str, str]]:
    """What of the host is shown, and where: `/usr`, parts of it that lie beside it, and *host_paths*.

    Raises:
        Refused: one of *host_paths* is no directory, or would show what must not be seen.
    """
    found = [("/usr", "/usr")]
    found += [
        (f"/{name}", f"/{name}") for name in SYSTEM if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")
    ]
    for path in sorted(set(host_paths)):
        source, separate, shown = path.partition(":/")
        clean = os.path.normpath(source)
        target = os.path.normpath(f"/{shown}") if separate else clean
        tops = {clean.split("/")[1], target.split("/")[1]} if clean.startswith("/") else {""}
        if tops & {"", "proc", "sys", "dev", "code", "tmp", "etc"} or os.path.realpath(clean) != clean:
            raise Refused("invalid", f"host_paths: {path!r} cannot be shown in a sandbox")
        if not os.path.isdir(clean):
            raise Refused("invalid", f"host_paths: {path!r} is not a directory on this host")
        if target.split("/")[1] != "usr":
            found.append((clean, target))
    return found


def image_of(api: Api, name: str, uids: range) -> tuple[str, str]:
    """Id of the image called *name*; where that is empty, of the one for `host`, which is made where it is missing.

    Beside it, of the latter, a directory of the engine's host that is empty: none where the engine does not say where
    it keeps images.

    Args:
        uids: ids that tenants have, for which `/etc/passwd` is to have the name `user`.

    Raises:
        Refused: the engine has no such image, or it has volumes: a place to write to that no limit holds for.
        ApiError, Unreachable: the engine did not do it.
    """
    is_host = not name
    if is_host:
        name = _host_image(api, uids)
    try:
        facts = api.get("images", name, "json")
    except ApiError as error:
        if error.status != 404:
            raise
        raise Refused("invalid", f"the engine has no image {name!r}; pull it with: docker pull {name}") from error
    if (facts.get("Config") or {}).get("Volumes"):
        raise Refused("invalid", f"image {name!r} declares volumes, which nothing limits; build one without VOLUME")
    driver = facts.get("GraphDriver") or {}
    upper = (driver.get("Data") or {}).get("UpperDir", "") if driver.get("Name") == "overlay2" else ""
    return str(facts["Id"]), f"{upper}/{_EMPTY}" if upper and is_host else ""


def _host_image(api: Api, uids: range) -> str:
    archive = _archive(uids)
    name = f"{_NAME}:{hashlib.sha256(archive).hexdigest()[:32]}"
    try:
        api.get("images", name, "json")
    except ApiError as error:
        if error.status != 404:
            raise
        repo, _, tag = name.partition(":")
        api.send(
            "images", "create", body=_pieces(archive), fromSrc="-", repo=repo, tag=tag, changes=f"LABEL {LABEL}=host"
        )
    return name


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]


def _archive(uids: range) -> bytes:
    """A tar archive of what lies around `/usr`. Equal hosts give equal bytes."""
    target = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="stockade-image-") as folder, tarfile.open(fileobj=target, mode="w") as tar:
        for name, mode in DIRECTORIES.items():
            tar.addfile(_plain(name, tarfile.DIRTYPE, mode))
        tar.addfile(_plain(HOME.strip("/"), tarfile.DIRTYPE, 0o755))
        for name in SYSTEM:
            if os.path.islink(f"/{name}"):
                tar.addfile(_plain(name, tarfile.SYMTYPE, 0o777, os.readlink(f"/{name}")))
        make_etc("/etc", folder)
        with open(f"{folder}/passwd", "a", encoding="utf-8") as file:
            file.writelines(f"user:x:{uid}:{uid}:user:{HOME}:/bin/sh\n" for uid in uids)
        with open(f"{folder}/group", "a", encoding="utf-8") as file:
            file.writelines(f"user:x:{uid}:\n" for uid in uids)
        tar.addfile(_plain("etc/mtab", tarfile.SYMTYPE, 0o777, "/proc/self/mounts"))
        for path in sorted(_below(folder)):
            name = f"etc{path[len(folder) :]}"
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                tar.addfile(_plain(name, tarfile.SYMTYPE, 0o777, os.readlink(path)))
            elif stat.S_ISDIR(info.st_mode):
                tar.addfile(_plain(name, tarfile.DIRTYPE, 0o755))
            else:
                with open(path, "rb") as source:
                    content = source.read()
                entry = _plain(name, tarfile.REGTYPE, info.st_mode & 0o755)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return target.getvalue()


def _below(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        yield from (os.path.join(parent, name) for name in (*folders, *files))


def _plain(name: str, kind: bytes, mode: int, link: str = "") -> Any:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = kind, mode, link
    return entry
