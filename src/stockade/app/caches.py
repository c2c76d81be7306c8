"""Where the caches of toolchains lie on this host, and how sandboxes come to see them."""

import contextlib
import os
import secrets
import shutil
import stat
import time
from pathlib import Path

from stockade.app.privileges import find_user
from stockade.backends.native.backend import FileBundle
from stockade.config import Config
from stockade.errors import Invalid
from stockade.model import Bundle
from stockade.warden.bundle import BundleError, unpack

__all__ = ["SHOWN_AT", "DirectoryStore", "cache_directory", "prepare_cache_directory"]

_HIDDEN = ("proc", "sys", "dev", "code", "tmp")
"""Top-level directories below which a warden can show nothing."""
SHOWN_AT = "/var/cache/stockade"
"""Where sandboxes see the caches: the data directory's own path is nobody's business there."""

_UNUSED_DAYS = 30


def cache_directory(config: Config) -> Path | None:
    """The directory of caches when it is there and can be shown to sandboxes."""
    path = config.data_dir.absolute() / "caches"
    if not config.cache.toolchains or config.sandbox.backend != "native" or path.parts[1] in _HIDDEN:
        return None
    # The warden shows nothing that is reached through a link.
    return path if path.is_dir() and os.path.realpath(path) == str(path) else None


def prepare_cache_directory(config: Config) -> None:
    """Make the directory of caches where it is missing, before a warden shows it.

    It belongs to whom the server will be. Where it cannot be made there will be no caches, which costs only time.
    """
    path = config.data_dir / "caches"
    try:
        path.mkdir(mode=0o755, exist_ok=True)
        path.chmod(0o755)
        if os.geteuid() == 0 and config.server.user:
            user = find_user(config.server.user)
            os.chown(path, user.pw_uid, user.pw_gid)
    except OSError:
        return


class DirectoryStore:
    """Caches as directories below one; satisfies `stockade.engine.toolchains.CacheStore`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, name: str) -> str:
        """See `CacheStore.path`."""
        return f"{SHOWN_AT}/{name}"

    def has(self, name: str) -> bool:
        """See `CacheStore.has`."""
        return (self._directory / name).is_dir()

    def use(self, name: str) -> None:
        """See `CacheStore.use`."""
        os.utime(self._directory / name)

    def clear_unused(self) -> None:
        """Remove what no server has used for 30 days: caches of toolchains that are gone, and what a crash left."""
        for entry in self._directory.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > _UNUSED_DAYS * 86_400:
                    shutil.rmtree(entry, ignore_errors=True)

    def put(self, name: str, bundle: Bundle) -> None:
        """See `CacheStore.put`. Safe against a crash at any moment, and against another server doing the same."""
        if not isinstance(bundle, FileBundle):
            raise Invalid(f"caches cannot be made from a {type(bundle).__name__}")
        fresh = self._directory / f".{name}-{secrets.token_hex(4)}"
        try:
            fresh.mkdir(mode=0o700)
            unpack(bundle.fd, str(fresh))
            _settle(fresh)
            try:
                fresh.rename(self._directory / name)
            except OSError:
                if not self.has(name):  # else somebody was faster, with the same content
                    raise
            _sync(self._directory)
        except BundleError as error:
            raise Invalid(f"cache {name}: {error}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _settle(top: Path) -> None:
    """Let everybody read what is below *top*, nobody write, and get it on the disk.

    Raises:
        BundleError: there is something else than directories and regular files.
    """
    for directory, names, files in os.walk(top, topdown=False):
        for name in files:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if not stat.S_ISREG(mode):
                raise BundleError(f"{name!r} is no regular file")
            os.chmod(path, 0o555 if mode & 0o100 else 0o444)
            _sync(Path(path))
        if any(os.path.islink(os.path.join(directory, name)) for name in names):
            raise BundleError("a directory is a symbolic link")
        os.chmod(directory, 0o755)
        _sync(Path(directory))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
