"""Who may use the one sandbox of an executor: whoever has its secret, which is given at the start or adopted later.

In pool mode the executor is started before anybody knows whom it will serve. The first secret that somebody presents
is then the one, for good: it is on the disk, under its own name, before anybody is told that it fits.
"""

import contextlib
import errno
import hashlib
import hmac
import os
import pwd
import stat
import threading
from asyncio import to_thread
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import structlog

from stockade.errors import Fault, Invalid, Unavailable

__all__ = ["PoolSecret", "StaticSecret"]

log = structlog.get_logger()

MOST_BYTES = 1 << 16
"""No header can be longer, so neither can a secret."""


class StaticSecret:
    """A secret that was given at the start."""

    def __init__(self, secret: str) -> None:
        self.name = os.fsencode(secret)
        """What stays the same as long as it is the same people's."""

    @property
    def is_known(self) -> bool:
        return True

    async def verify(self, presented: str) -> bool:
        """Whether *presented* is the secret; tells nothing else of it, by its time neither."""
        return _equal(self.name, _bytes(presented))


class PoolSecret:
    """A secret that is read from a file, or else is the first that somebody presents. A context.

    The server gives up root's powers before its first request, and may become another user: what it needs to write the
    file then is prepared, and held open, before that.
    """

    def __init__(self, path: Path, *, owner: pwd.struct_passwd | None = None) -> None:
        """Nothing is opened yet.

        Args:
            owner: whom the server becomes before it answers; gets the directory, where that is made here.
        """
        self.name = os.fsencode(path.absolute())
        """What stays the same as long as it is the same people's: whoever is first, here."""
        self._secret: bytes | None = None
        self._path = path
        self._owner = owner
        self._directory: int | None = None
        self._writing = threading.Lock()

    def __enter__(self) -> Self:
        """Read the file where there is one, else prepare to write it.

        Raises:
            Invalid: it is empty, or not a regular file.
            Unavailable: it cannot be read.
        """
        self._secret = _read(self._path)
        if self._secret is None:
            try:
                self._prepare()
            except OSError as error:
                # Requests are answered with 500 until it can be: by then somebody may have mounted something there.
                log.warning("executor.secret_not_writable", path=str(self._path), reason=error.strerror)
        return self

    def __exit__(self, *_: object) -> None:
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    @property
    def is_known(self) -> bool:
        """Whether there is a secret."""
        return self._secret is not None

    async def verify(self, presented: str) -> bool:
        """Whether *presented* is the secret; where there is none yet, it becomes the secret.

        Of several who come first at once, one wins. Whoever is cancelled meanwhile changes nothing of that.

        Raises:
            Fault: it cannot be written down, and so is not adopted.
        """
        given = _bytes(presented)
        if self._secret is None:
            if not given or given != given.strip():
                return False  # the file could not hold it
            await to_thread(self._adopt, given)
        assert self._secret is not None
        return _equal(self._secret, given)

    def _adopt(self, presented: bytes) -> None:
        with self._writing:
            if self._secret is not None:
                return
            try:
                self._secret = self._write(presented)
            except OSError as error:
                log.error("executor.secret_not_written", path=str(self._path), reason=error.strerror)
                raise Fault(f"{self._path}: cannot be written: {error.strerror}") from error
            log.info("executor.secret_adopted", path=str(self._path))

    def _prepare(self) -> int:
        """Have the directory open; made (0700) where it is missing. Raises OSError."""
        if self._directory is None:
            directory = self._path.parent
            is_new = _make(directory)
            opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if is_new and self._owner is not None and os.geteuid() == 0:
                    os.fchown(opened, self._owner.pw_uid, self._owner.pw_gid)
            except BaseException:
                os.close(opened)
                raise
            self._directory = opened
        return self._directory

    def _write(self, secret: bytes) -> bytes:
        """Write *secret* down for good; or find that another executor has written its own. Raises OSError."""
        directory = self._prepare()
        name, draft = self._path.name, f".{self._path.name}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):  # of a process before us with the same number
            os.unlink(draft, dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(draft, flags, 0o600, dir_fd=directory)
        try:
            with open(file, "wb") as opened:
                os.fchmod(file, 0o600)  # whatever the umask
                opened.write(secret)
                opened.flush()
                os.fsync(file)
            try:
                os.link(draft, name, src_dir_fd=directory, dst_dir_fd=directory)  # never over one that is there
            except FileExistsError:
                secret = _read_in(directory, name) or secret
        finally:
            os.unlink(draft, dir_fd=directory)
        os.fsync(directory)
        return secret


def _read(path: Path) -> bytes | None:
    """The secret in a file, without space around it; `None` where there is no file. Raises Invalid, Unavailable."""
    try:
        found = _read_in(None, str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Invalid(f"{path}: is a link; the secret's file must be a regular one") from None
        raise Unavailable(f"{path}: cannot be read: {error.strerror}") from error
    if found is None:
        raise Invalid(f"{path}: is not a regular file")
    if not found:
        raise Invalid(f"{path}: is empty; remove it, and the first secret that somebody presents is adopted")
    return found


def _read_in(directory: int | None, name: str) -> bytes | None:
    """What is in a file, without space around it; `None` where it is not a regular one. Raises OSError."""
    # Without O_NONBLOCK a pipe would keep us waiting for somebody who writes.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=directory), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read(MOST_BYTES).strip()


def _make(directory: Path) -> bool:
    """Make a directory (0700) and those above it, to stay; whether it was missing. Raises OSError."""
    missing = list(_missing(directory))
    for one in reversed(missing):
        one.mkdir(mode=0o700 if one == directory else 0o755, exist_ok=True)
        above = os.open(one.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(above)
        finally:
            os.close(above)
    return bool(missing)


def _missing(directory: Path) -> Iterator[Path]:
    """*directory* and those above it that are not there, the innermost first."""
    while not directory.exists():
        yield directory
        directory = directory.parent


def _bytes(presented: str) -> bytes:
    """What stood in the header: HTTP's text is Latin-1, whatever its bytes mean."""
    try:
        return presented.encode("latin-1")
    except UnicodeEncodeError:
        return presented.encode("utf-8", errors="surrogatepass")


def _equal(secret: bytes, presented: bytes) -> bool:
    # Digests have one length: even that of the secret is not to be told by the time that this takes.
    return hmac.compare_digest(hashlib.sha256(secret).digest(), hashlib.sha256(presented).digest())
