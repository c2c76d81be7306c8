"""The `host` image: the host's own programs, read-only, with an `/etc` built from nothing.

Made once, when the warden starts, in the warden's private mount namespace. A sandbox sees `/usr` (with `/bin`,
`/lib`, `/sbin` as on the host), what the operator listed, and the `/etc` below; nothing of `/root`, `/home`, `/var`,
`/run`, `/opt`.
"""

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace

from . import kernel

__all__ = ["DIRECTORIES", "HOME", "IDS", "SYSTEM", "UID", "Image", "ImageError", "make_etc", "make_host_image"]

UID = 1000
"""User and group id of tenants' processes inside a sandbox."""
IDS = 65536
"""User and group ids of a sandbox."""
HOME = "/home/user"

SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
DIRECTORIES = {
    "code": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "media": 0o755, "mnt": 0o755, "opt": 0o755,
    "proc": 0o555, "root": 0o700, "run": 0o755, "srv": 0o755, "sys": 0o555, "tmp": 0o1777, "usr": 0o755,
    "var": 0o755, "var/cache": 0o755, "var/lib": 0o755, "var/log": 0o755, "var/tmp": 0o1777,
}  # fmt: skip

# What runtimes read, and anybody may: copied when it exists, files that not everyone may read left out.
_ETC = (
    "R", "alternatives", "bash.bashrc", "ca-certificates.conf", "debian_version", "erlang", "fonts", "fpc.cfg",
    "gai.conf", "ghc", "host.conf", "inputrc", "issue", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ldc2.conf",
    "localtime", "lsb-release", "magic", "magic.mime", "mime.types", "mono", "networks", "os-release", "perl", "php",
    "profile", "profile.d", "protocols", "sbclrc", "services", "shells", "ssl/certs", "ssl/openssl.cnf", "terminfo",
    "timezone", "xml",
)  # fmt: skip
_ETC_PREFIXES = (
    "clojure", "dotnet", "fpc-", "gnucobol", "groovy", "java-", "kotlin", "lua", "node", "octave", "python2", "python3",
    "ruby", "scala", "swi-prolog",
)  # fmt: skip
_MOST_FILE = 4 << 20

_WRITTEN = {
    "passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        f"user:x:{UID}:{UID}:user:{HOME}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "group": f"root:x:0:\nuser:x:{UID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    "resolv.conf": "",
}


class ImageError(Exception):
    """The image cannot be made from what this host has."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """Where the parts of an image lie, in the warden's mount namespace."""

    name: str
    lower: str
    """The read-only directory tree under a sandbox's overlay."""
    binds: tuple[tuple[str, str], ...]
    """(mounted source, path below the sandbox's root) pairs, shown read-only."""
    whole: tuple[str, ...] = ()
    """Of those paths, the ones below which nothing else is mounted: an overlay of them hides nothing."""

    def below(self, top: str) -> "Image":
        """The same, where the mount namespace's root is seen at *top*."""
        binds = tuple((top + source, target) for source, target in self.binds)
        return replace(self, lower=top + self.lower, binds=binds)

    def state_of(self, path: str) -> object:
        """Something that changes when what lies at *path* inside does: of a directory, when a member comes or goes."""
        clean = os.path.normpath(path)
        for source, target in self.binds:
            if clean == f"/{target}" or clean.startswith(f"/{target}/"):
                try:
                    info = os.stat(source + clean[len(target) + 1 :])
                except OSError:
                    return None
                return info.st_ino, info.st_mtime_ns
        return None  # nothing else changes while the warden lives


def make_host_image(stage: str, host_root: str, host_paths: Iterable[str]) -> Image:
    """Build the image below the directory *stage*; *host_root* is where the host's `/` can be seen.

    Each of *host_paths* is a directory, shown at the same path, or `SOURCE:/TARGET`, shown at another.

    Raises:
        ImageError: one of *host_paths* is no directory, or not an absolute path, or would show what must not be seen.
    """
    lower = f"{stage}/lower"
    os.makedirs(lower)
    for name, mode in DIRECTORIES.items():
        os.makedirs(f"{lower}/{name}", exist_ok=True)
        os.chmod(f"{lower}/{name}", mode)
    os.symlink("/proc/self/mounts", f"{lower}/etc/mtab")
    binds = [_bind(stage, f"{host_root}/usr", "usr")]
    for name in SYSTEM:
        source = f"{host_root}/{name}"
        if os.path.islink(source):  # merged /usr
            os.symlink(os.readlink(source), f"{lower}/{name}")
        elif os.path.isdir(source):
            os.mkdir(f"{lower}/{name}")
            binds.append(_bind(stage, source, name))
    for path in sorted(set(host_paths)):
        binds.extend(_extra(stage, lower, host_root, path))
    make_etc(f"{host_root}/etc", f"{lower}/etc")
    whole = tuple(target for mounted, target in binds if not _has_mounts_below(mounted))
    return Image(name="host", lower=lower, binds=tuple(binds), whole=whole)


def _bind(stage: str, source: str, target: str) -> tuple[str, str]:
    mounted = f"{stage}/{target.replace('/', '-')}"
    os.mkdir(mounted)
    # Recursive: where we are root only inside a user namespace, the kernel does not let us leave submounts out.
    kernel.mount(source, mounted, None, kernel.MS_BIND | kernel.MS_REC)
    kernel.set_attributes(mounted, kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV)
    return mounted, target


def _has_mounts_below(path: str) -> bool:
    """Also true of a path that could not be said in an overlay's options."""
    if set(path) & set(":,\\ "):
        return True
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return any(line.split(" ", 5)[4].startswith(f"{path}/") for line in mounts)


def _extra(stage: str, lower: str, host_root: str, path: str) -> list[tuple[str, str]]:
    path, separate, shown = path.partition(":/")
    clean = os.path.normpath(path)
    target = os.path.normpath(f"/{shown}") if separate else clean
    tops = {clean.split("/")[1], target.split("/")[1]} if clean.startswith("/") else {""}
    if tops & {"", "proc", "sys", "dev", "code", "tmp"}:
        raise ImageError(f"host_paths: {path!r} cannot be shown in a sandbox at {target!r}; name a directory of files")
    source = host_root + clean
    if os.path.realpath(source) != os.path.realpath(host_root or "/").rstrip("/") + clean:
        raise ImageError(f"host_paths: {path!r} leads through a symbolic link; name the real directory")
    if not os.path.isdir(source):
        raise ImageError(f"host_paths: {path!r} is not a directory on this host")
    if target.split("/")[1] == "usr":
        return []  # shown already
    os.makedirs(lower + target, exist_ok=True)
    return [_bind(stage, source, target.lstrip("/"))]


def make_etc(source: str, target: str) -> None:
    names = set(_ETC)
    with contextlib.suppress(OSError):
        names |= {n for n in os.listdir(source) if n.startswith(_ETC_PREFIXES)}
    for name in sorted(names):
        os.makedirs(os.path.dirname(f"{target}/{name}"), exist_ok=True)
        with contextlib.suppress(OSError):  # not on this host
            _copy(f"{source}/{name}", f"{target}/{name}")
    for name, text in _WRITTEN.items():
        with open(f"{target}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(f"{target}/{name}", 0o644)


def _copy(source: str, target: str) -> None:
    """Copy a tree of world-readable files and links; anything else is left out."""
    info = os.lstat(source)
    if stat.S_ISLNK(info.st_mode):
        link = os.readlink(source)
        # A link within /usr and what is copied is kept. One to elsewhere in /etc is replaced by its file. Any other is
        # left out: the administrator may have put links to places that are nobody's business inside.
        if link.startswith(("/usr/", "/lib/", "/bin/", "/etc/alternatives/")) or not link.startswith("/"):
            os.symlink(link, target)
            return
        if not os.path.realpath(source).startswith("/etc/"):
            return
        info = os.stat(source)
        if not stat.S_ISREG(info.st_mode):
            return  # a link to a directory may lead to one that holds it
    if stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_IROTH:
        os.mkdir(target, 0o755)
        for name in os.listdir(source):
            with contextlib.suppress(OSError):
                _copy(f"{source}/{name}", f"{target}/{name}")
    elif stat.S_ISREG(info.st_mode) and info.st_mode & stat.S_IROTH and info.st_size <= _MOST_FILE:
        with open(source, "rb") as file, open(target, "xb") as copy:
            copy.write(file.read(_MOST_FILE + 1))
        os.chmod(target, info.st_mode & 0o755)
