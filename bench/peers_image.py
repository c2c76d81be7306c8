"""The image that containers of others are made from: what a Debian image with Python and a C compiler holds.

Made of the files of packages that are installed here, so nothing is downloaded; without documentation, and without
accounts and secrets, which no package brings.
"""

import io
import os
import re
import subprocess
import tarfile
from typing import Final

from bench.measure import BenchError

__all__ = ["add_packages"]

_WANTED: Final = (
    "bash", "binutils", "coreutils", "dash", "gcc", "libc6-dev", "login", "mount", "passwd", "perl-base", "procps",
    "python3", "sed", "util-linux",
)  # fmt: skip
_LEFT_OUT: Final = ("/usr/share/", "/etc/", "/var/", "/boot/", "/lib/systemd/", "/usr/lib/systemd/", "/usr/lib/debug/")
_MERGED: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ASK_S: Final = 30.0


def add_packages(archive: tarfile.TarFile) -> None:
    """Fill it.

    Raises:
        BenchError: this is no Debian, or a package is missing.
    """
    for name in ("tmp", "proc", "sys", "dev", "etc", "run", "root", "home", "code"):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name in ("tmp", "code") else 0o755
        archive.addfile(entry)
    for name in _MERGED:
        if os.path.islink(f"/{name}"):
            archive.add(f"/{name}", arcname=name)
    accounts = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    users = tarfile.TarInfo("etc/passwd")
    users.size = len(accounts)
    archive.addfile(users, io.BytesIO(accounts))
    for path in sorted(_files()):
        archive.add(path, arcname=path.lstrip("/"), recursive=False)


def _files() -> set[str]:
    """Paths below real directories."""
    listed = _dpkg("dpkg", "--listfiles", *sorted(_closure()))
    found = set()
    for path in listed.splitlines():
        if path.startswith(_LEFT_OUT) or not path.startswith("/") or not os.path.lexists(path):
            continue
        folder, name = os.path.split(path)
        real = os.path.join(os.path.realpath(folder), name)
        if real.count("/") > 1:  # the directories at the top are there
            found.add(real)
    return found


def _closure() -> set[str]:
    """The wanted packages and what they depend on, as far as that is installed."""
    lines = _dpkg("dpkg-query", "--show", "--showformat=${Package}\t${db:Status-Status}\t${Pre-Depends},${Depends}\n")
    needs: dict[str, list[str]] = {}
    for line in lines.splitlines():
        package, status, depends = line.split("\t")
        if status == "installed":
            needs[package] = re.findall(r"(?:^|[,|])\s*([a-z0-9.+-]+)", depends)
    missing = [name for name in _WANTED if name not in needs]
    if missing:
        raise BenchError(f"an image needs the Debian packages {', '.join(missing)}")
    found: set[str] = set()
    queue = list(_WANTED)
    while queue:
        package = queue.pop()
        if package in needs and package not in found:
            found.add(package)
            queue += needs[package]
    return found


def _dpkg(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(
            f"an image is made of Debian packages, and {command[0]} does not list them: {error}"
        ) from error
    return done.stdout
