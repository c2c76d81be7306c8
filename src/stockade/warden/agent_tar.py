"""Unpacking tar archives into a sandbox's directories, with a tenant's rights, whatever the tenant does meanwhile."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .agent_channel import AgentError
from .agent_paths import (
    BENEATH,
    MOST_MEMBERS,
    clean,
    failure,
    make_directories,
    open_at,
    open_parent,
    opened,
    refuse,
    settle_link,
)
from .tar_reader import DEVICES, DIRECTORY, FIFO, FILE, HARD_LINK, LINK, Member, Source, inside, members

__all__ = ["Unpacker", "copy_in"]

_NOT_ONE_FILE = "the archive is not of one file"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


@dataclass
class Unpacker:
    """Unpacks an archive below the directory *top*, with the rights of whoever calls.

    Nothing is written outside *top*, whatever names and links say; set-id bits and owners are dropped. What is there
    already is replaced, except that no directory gives way to something else.
    """

    top: int
    is_root: bool
    """Whether *top* is `/`: nothing is outside, and absolute links may be followed."""
    alive: Callable[[], None]
    """Called often once all has been read: whoever waits for us hears nothing else then."""
    leading: bool = False
    """Every name begins with that of one directory, which *top* stands for."""
    is_new: bool = False
    """Whether *top* was made for the archive, and so gets the mode that it has there."""
    count: int = 0
    """Members so far."""
    _modes: list[tuple[bytes, int]] = field(default_factory=list)
    _leader: bytes | None = None

    def unpack(self, pieces: Iterable[memoryview]) -> int:
        """The number of members.

        Raises:
            AgentError: the archive is damaged, or one of its members is not acceptable.
        """
        source = Source(pieces)
        return self.take(source, members(source))

    def take(self, source: Source, remaining: Iterable[Member]) -> int:
        """Unpack what is left of an archive of which some has been read already; the number of its members."""
        for member in remaining:
            self.counted(member)
            self._handle(member, lambda member: self._put(member, source))
        source.finish()
        for path, mode in reversed(self._modes):  # last, the inner ones first: some may not be written to
            self.alive()
            flags = os.O_RDONLY | os.O_DIRECTORY
            try:
                with opened(open_at(self.top, path or b".", flags, resolve=self._resolve)) as directory:
                    os.fchmod(directory, mode)
            except OSError as error:
                raise failure(error, path) from error
        return self.count

    def counted(self, member: Member) -> None:
        """Count one more; raises AgentError where it is one too many, or of a kind that nobody may bring."""
        self.count += 1
        if self.count > MOST_MEMBERS:
            raise AgentError("limit_exceeded", f"the archive holds more than {MOST_MEMBERS} members")
        if member.kind in DEVICES or member.kind == FIFO:
            refuse("invalid", member.name, "it is a FIFO" if member.kind == FIFO else "it is a device")

    def adopt(self, member: Member, parent: int, temporary: bytes) -> None:
        """Let a file that has been written be that of *member*, whose name it gets."""

        def move(member: Member) -> None:
            with self._place(member) as (directory, name):
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=directory)

        self._handle(member, move)

    def _handle(self, member: Member, act: Callable[[Member], None]) -> None:
        try:
            act(member)
        except OSError as error:
            if error.errno == errno.EXDEV:
                refuse("invalid", member.name, "a link leads out of the directory")
            raise failure(error, member.name) from error

    @property
    def _resolve(self) -> int:
        return 0 if self.is_root else BENEATH

    def _path(self, name: bytes, member: Member) -> bytes:
        path = inside(name, member.name)
        if not self.leading or not path:
            return path
        leader, _, below = path.partition(b"/")
        if self._leader is None:
            self._leader = leader
        if leader != self._leader or (not below and member.kind != DIRECTORY):
            refuse("invalid", member.name, f"the archive is not of one directory, {self._leader!r}")
        return below

    def _put(self, member: Member, source: Source) -> None:
        if member.kind == DIRECTORY:
            self._put_directory(self._path(member.name, member), member.mode & 0o777)
            return
        with self._place(member) as (parent, name):
            if member.kind == LINK:
                os.symlink(member.link, name, dir_fd=parent)
            elif member.kind == HARD_LINK:
                self._link(member, parent, name)
            else:
                with opened(open_at(parent, name, _NEW_FILE, 0o600)) as target:
                    _fill(member, source, target)

    def _put_directory(self, path: bytes, mode: int) -> None:
        if not path:
            if self.is_new:
                self._modes.append((path, mode))
            return
        with opened(make_directories(self.top, path, resolve=self._resolve)) as directory:
            is_same = os.fstat(directory).st_mode & 0o777 == mode
        if not is_same:
            self._modes.append((path, mode))

    @contextlib.contextmanager
    def _place(self, member: Member) -> Iterator[tuple[int, bytes]]:
        """The directory that it goes into, made where it is missing, and its name there, which is free then."""
        above, _, name = self._path(member.name, member).rpartition(b"/")
        if not name:
            refuse("invalid", member.name, "a file needs a name")
        with opened(make_directories(self.top, above, resolve=self._resolve)) as parent:
            with contextlib.suppress(FileNotFoundError):
                info = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    refuse("conflict", member.name, "there is a directory of this name")
                os.unlink(name, dir_fd=parent)
            yield parent, name

    def _link(self, member: Member, parent: int, name: bytes) -> None:
        above, _, target = self._path(member.link, member).rpartition(b"/")
        if not target:
            refuse("invalid", member.name, "it is a link to nothing")
        flags = os.O_PATH | os.O_DIRECTORY
        with opened(open_at(self.top, above or b".", flags, resolve=self._resolve)) as directory:
            os.link(target, name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False)


def _fill(member: Member, source: Source, target: int) -> None:
    member.write(source, target)
    os.fchmod(target, member.mode & 0o777)
    os.utime(target, ns=(member.modified_ns, member.modified_ns))


# ── as cp does ───────────────────────────────────────────────────────────────────────────────────────────────────


def copy_in(path: str, is_directory: bool | None, pieces: Iterable[memoryview], alive: Callable[[], None]) -> int:
    """Unpack an archive as `cp -r` would copy what it holds: see `FileAccess.copy_in`.

    Raises:
        AgentError: the archive is damaged, or one of its members is not acceptable; what came before it stays.
    """
    name = clean(path)
    source = Source(pieces)
    remaining = members(source)
    is_there = _is_directory(name)
    if is_there or path.endswith("/"):
        return _copy_below(name, is_directory, source, remaining, alive)
    if not is_directory:
        return _copy_at(name, is_directory, source, remaining, alive)
    with opened(_new_directory(name)) as top:
        return Unpacker(top=top, is_root=False, alive=alive, leading=True, is_new=True).take(source, remaining)


def _is_directory(name: bytes) -> bool:
    try:
        with opened(open_at(None, name, os.O_PATH)) as found:
            return stat.S_ISDIR(os.fstat(found).st_mode)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        refuse("invalid", name, "what should hold it is no directory", errno.ENOTDIR)


def _copy_below(
    name: bytes, is_directory: bool | None, source: Source, remaining: Iterator[Member], alive: Callable[[], None]
) -> int:
    """Into a directory."""
    with opened(_new_directory(name)) as top:
        if is_directory is False:
            remaining = _the_file(remaining)
        return Unpacker(top=top, is_root=name == b"/", alive=alive).take(source, remaining)


def _the_file(remaining: Iterator[Member]) -> Iterator[Member]:
    """The one member that an archive of a file has, by the last part of its name."""
    member = next(remaining, None)
    if member is None or member.kind not in (FILE, LINK):
        raise AgentError("invalid", _NOT_ONE_FILE)
    member.name = inside(member.name, member.name).rpartition(b"/")[2]
    yield member
    if next(remaining, None) is not None:
        raise AgentError("invalid", _NOT_ONE_FILE)


def _copy_at(
    name: bytes, is_directory: bool | None, source: Source, remaining: Iterator[Member], alive: Callable[[], None]
) -> int:
    """To a name where no directory is: the archive says whether one is to be there.

    Only its second member tells an archive of a file from one of what lies below a directory, and by then the file is
    read: so it is written under another name beside it.
    """
    first = next(remaining, None)
    if first is None or first.kind != FILE:
        return _copy_other(name, is_directory, first, source, remaining, alive)
    inside(first.name, first.name)
    name = settle_link(name)
    parent, entry = open_parent(name, make=True)
    temporary = b".upload-" + os.urandom(8).hex().encode()
    with opened(parent):
        try:
            with opened(open_at(parent, temporary, _NEW_FILE, 0o600)) as target:
                _fill(first, source, target)
            second = next(remaining, None)
            if second is None:
                source.finish()
                _expect_replaceable(parent, entry, name)
                os.rename(temporary, entry, src_dir_fd=parent, dst_dir_fd=parent)
                return 1
            if is_directory is False:
                raise AgentError("invalid", _NOT_ONE_FILE)
            with opened(_new_directory(name)) as top:
                unpacker = Unpacker(top=top, is_root=False, alive=alive, is_new=True)
                unpacker.counted(first)
                unpacker.adopt(first, parent, temporary)
                return unpacker.take(source, _again(second, remaining))
        except BaseException:
            with contextlib.suppress(OSError):  # the tenant may have been faster
                os.unlink(temporary, dir_fd=parent)
            raise


def _copy_other(
    name: bytes,
    is_directory: bool | None,
    first: Member | None,
    source: Source,
    remaining: Iterator[Member],
    alive: Callable[[], None],
) -> int:
    """To a name where no directory is, an archive that does not begin with a file."""
    if is_directory is False:
        if first is None or first.kind != LINK or next(remaining, None) is not None:
            raise AgentError("invalid", _NOT_ONE_FILE)
        parent, first.name = open_parent(name, make=True)
        with opened(parent):
            return Unpacker(top=parent, is_root=False, alive=alive).take(source, [first])
    with opened(_new_directory(name)) as top:
        unpacker = Unpacker(top=top, is_root=False, alive=alive, is_new=True)
        return unpacker.take(source, _again(first, remaining))


def _new_directory(name: bytes) -> int:
    try:
        return make_directories(None, name)
    except (NotADirectoryError, FileExistsError):
        refuse("invalid", name, "it is no directory", errno.ENOTDIR)


def _expect_replaceable(parent: int, entry: bytes, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(entry, dir_fd=parent, follow_symlinks=False).st_mode):
            refuse("invalid", name, "it is no regular file")


def _again(first: Member | None, remaining: Iterator[Member]) -> Iterator[Member]:
    if first is not None:
        yield first
        yield from remaining
