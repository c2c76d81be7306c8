"""The file agent: reads and writes a sandbox's files *inside* it, for whoever holds the other end of its channel.

PID 1 forks it; it has a tenant's rights and no more when `serve` is called, so no link, race or trick of a path can
make it reach what the tenant could not reach. It imports nothing from then on: what it finds to import would be the
tenant's. It trusts nothing that it finds, for the tenant may change it at any moment, and it is trusted with nothing
that the tenant might not know.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from . import layers
from .agent_channel import (
    END,
    HEAD,
    ITEMS,
    SOCKET_BUFFER,
    Aborted,
    AgentError,
    Channel,
    Gone,
    Outgoing,
)
from .agent_layers import MOST_BYTES, LayerUnpacker
from .agent_paths import (
    MOST_MEMBERS,
    clean,
    delete_tree,
    describe,
    describe_path,
    failure,
    is_agents_own,
    is_proc,
    make_directories,
    open_at,
    open_directory,
    open_parent,
    opened,
    refuse,
    settle_link,
)
from .agent_tar import Unpacker, copy_in
from .agent_watch import Watch
from .tar_writer import pack_file, pack_tree, pack_upper

__all__ = ["MOST_ENTRIES", "MOST_WITHOUT_SIZE", "serve"]

MOST_ENTRIES = 100_000
"""Entries of a directory that can be listed."""
MOST_WITHOUT_SIZE = 1 << 20
"""Bytes that are read of a file which does not say its size, as those of `/proc`."""
_ITEMS_BYTES = 64 << 10
_SINKS = frozenset(os.makedev(1, number) for number in (3, 5, 7))
"""`/dev/null`, `/dev/zero`, `/dev/full`: the devices that never let a writer wait (devices.txt of the kernel)."""
_WATCH_ALIVE_S = 2.0


def serve(channel_fd: int, upper_fd: int | None) -> NoReturn:
    """Answer requests until the server hangs up, then exit. The caller has given up every privilege.

    Args:
        channel_fd: our end of a stream socket, blocking.
        upper_fd: the overlay's upper directory, for `save_layer`.
    """
    status = 1
    try:
        sys.path.clear()
        sys.meta_path.clear()
        sys.path_hooks.clear()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that grows too large is an error to report
        os.umask(0)  # modes are given
        with socket.socket(fileno=channel_fd) as connection:
            connection.setblocking(True)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            channel = Channel(connection)
            while (request := channel.request()) is not None:
                _answer(channel, request, upper_fd)
        status = 0
    except Gone:
        status = 0
    finally:
        os._exit(status)


def _answer(channel: Channel, request: dict[str, Any], upper_fd: int | None) -> None:
    operation = request.pop("op", None)
    if operation in _WITH_INPUT:
        channel.expect_input()
    try:
        try:
            if operation == "save_layer":
                result = _save_layer(channel, upper_fd)
            elif operation in _OPERATIONS:
                result = _OPERATIONS[operation](channel, **request)
            else:
                raise AgentError("unsupported", f"{operation!r}: there is no such operation")
        except OSError as error:
            raise failure(error, str(request.get("path", "")).encode("utf-8", "surrogateescape")) from error
        except Aborted as error:
            raise AgentError("unavailable", "the data broke off") from error
        except MemoryError as error:
            raise AgentError("limit_exceeded", "the sandbox has no memory left") from error
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise AgentError("fault", f"file agent: {type(error).__name__}: {error}") from error
    except AgentError as error:
        channel.fail(error)
        channel.drain()
    else:
        channel.say(END, result)


# ── operations: each takes the members of a request and returns the result ───────────────────────────────────────


def _stat(channel: Channel, path: str) -> dict[str, Any]:
    return describe_path(clean(path))


def _list(channel: Channel, path: str) -> dict[str, Any]:
    name = clean(path)
    with opened(open_directory(name)) as directory:
        names = []
        with os.scandir(directory) as entries:
            for entry in entries:
                names.append(os.fsencode(entry.name))
                if len(names) > MOST_ENTRIES:
                    refuse("limit_exceeded", name, f"it has more than {MOST_ENTRIES} entries")
        names.sort()

        def found() -> Iterable[dict[str, Any]]:
            for entry in names:
                try:
                    yield describe(directory, entry, name.rstrip(b"/") + b"/" + entry)
                except FileNotFoundError:  # gone meanwhile
                    continue

        return {"count": _say_items(channel, found())}


def _read(channel: Channel, path: str, offset: int, length: int | None) -> dict[str, Any]:
    name = clean(path)
    if offset < 0 or (length is not None and length < 0):
        refuse("invalid", name, "offset and length are not negative")
    source, info = _open_regular(name)
    with opened(source):
        found = describe_path(name)
        # Of what was opened: the name may lead elsewhere by now.
        found.update(size=info.st_size, mode=stat.S_IMODE(info.st_mode), modified_at=info.st_mtime, kind="file")
        if not info.st_size:
            content = _read_without_size(name, source)
            found["size"] = len(content)
            channel.say(HEAD, found)
            content = content[offset:] if length is None else content[offset : offset + length]
            channel.data(content)
            return {"size": len(content)}
        most = max(0, info.st_size - offset)
        count = most if length is None else min(length, most)
        channel.say(HEAD, found)
        if not channel.file(source, offset, count):
            refuse("conflict", name, "it became shorter while it was read, or can be read no further")
        return {"size": count}


def _open_regular(name: bytes) -> tuple[int, os.stat_result]:
    """A file that can be read without waiting for anybody.

    Raises:
        AgentError: it is a directory, a FIFO, a device, or about ourselves.
    """
    with opened(open_at(None, name, os.O_PATH)) as found:  # opening a FIFO would wake who waits for a reader
        _expect_regular(os.fstat(found), name)
    source = open_at(None, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        info = os.fstat(source)
        _expect_regular(info, name)
        _expect_not_own(source, name)
    except BaseException:
        os.close(source)
        raise
    return source, info


def _expect_regular(info: os.stat_result, name: bytes) -> None:
    if stat.S_ISDIR(info.st_mode):
        refuse("invalid", name, "it is a directory", errno.EISDIR)
    if not stat.S_ISREG(info.st_mode):
        refuse("invalid", name, "it is no regular file")


def _expect_not_own(fd: int, name: bytes) -> None:
    if is_agents_own(fd):
        refuse("denied", name, "it is about the file agent, not about the sandbox", errno.EACCES)


def _read_without_size(name: bytes, source: int) -> bytes:
    content = bytearray()
    while data := os.read(source, 64 << 10):
        content += data
        if len(content) > MOST_WITHOUT_SIZE:
            refuse("invalid", name, f"it does not say its size, and has more than {MOST_WITHOUT_SIZE} bytes")
    return bytes(content)


def _write(channel: Channel, path: str, mode: int, in_place: bool) -> dict[str, Any]:
    """Under a temporary name in the same directory, then renamed: the name has either content, never a half.

    With *in_place* as a shell's `>` instead.
    """
    if in_place:
        return _write_in_place(channel, path, mode)
    name = settle_link(clean(path))
    parent, entry = open_parent(name, make=True)
    with opened(parent):
        try:
            if not stat.S_ISREG(found := os.stat(entry, dir_fd=parent, follow_symlinks=False).st_mode):
                is_directory = stat.S_ISDIR(found)
                refuse(
                    "invalid",
                    name,
                    "it is a directory" if is_directory else "it is no regular file",
                    errno.EISDIR if is_directory else 0,
                )
        except FileNotFoundError:
            pass
        temporary = b".upload-" + os.urandom(8).hex().encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        target = open_at(parent, temporary, flags, 0o600)
        try:
            with opened(target):
                size = _fill(channel, target)
                os.fchmod(target, mode & 0o777)  # not what would gain privileges
            os.rename(temporary, entry, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            _discard(temporary, parent)
            raise
    return {"size": size}


def _write_in_place(channel: Channel, path: str, mode: int) -> dict[str, Any]:
    name = clean(path)
    if path.endswith("/"):  # which `clean` leaves out; open(2) makes no file of such a name
        refuse("invalid", name, "it is a directory", errno.EISDIR)
    # Looked at first: to open a FIFO would wake who waits for a writer. What is not there will be made.
    with contextlib.suppress(FileNotFoundError), opened(open_at(None, name, os.O_PATH)) as found:
        _expect_writable(os.fstat(found), name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY
    with opened(open_at(None, name, flags, mode & 0o777)) as target:
        info = os.fstat(target)
        _expect_writable(info, name)  # something else may stand there by now: only now is it cut to nothing
        _expect_not_own(target, name)
        if stat.S_ISREG(info.st_mode) and not is_proc(info):
            os.ftruncate(target, 0)
        return {"size": _fill(channel, target)}


def _expect_writable(info: os.stat_result, name: bytes) -> None:
    if not (stat.S_ISCHR(info.st_mode) and info.st_rdev in _SINKS):
        _expect_regular(info, name)


def _fill(channel: Channel, target: int) -> int:
    """Write the data of the request; how many bytes there were."""
    size = 0
    for piece in channel.incoming():
        size += len(piece)
        while piece:
            piece = piece[os.write(target, piece) :]
    return size


def _discard(name: bytes, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except OSError:
        pass  # the tenant may have been faster


def _delete(channel: Channel, path: str, recursive: bool) -> dict[str, Any]:
    name = clean(path)
    parent, entry = open_parent(name)
    with opened(parent):
        if not stat.S_ISDIR(os.stat(entry, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(entry, dir_fd=parent)
        elif recursive:
            delete_tree(parent, entry, name, channel.alive)
        else:
            os.rmdir(entry, dir_fd=parent)
    return {}


def _mkdir(channel: Channel, path: str, mode: int, parents: bool) -> dict[str, Any]:
    name = clean(path)
    mode &= 0o1777
    if parents:
        try:
            os.close(make_directories(None, name, mode=mode))
        except (NotADirectoryError, FileExistsError, FileNotFoundError) as error:
            is_there = os.path.lexists(name)  # else it is on the way there; a link to nothing is there, too
            if not is_there and isinstance(error, FileNotFoundError):
                raise
            number = errno.EEXIST if is_there else errno.ENOTDIR
            refuse("conflict", name, "something stands there that is no directory", number)
        return {}
    if name == b"/":
        refuse("conflict", name, "it exists already", errno.EEXIST)
    parent, entry = open_parent(name)
    with opened(parent):
        os.mkdir(entry, mode, dir_fd=parent)
    return {}


def _rename(channel: Channel, path: str, new_path: str) -> dict[str, Any]:
    source, entry = open_parent(clean(path))
    with opened(source):
        os.stat(entry, dir_fd=source, follow_symlinks=False)  # so that an error below is about the new name
        new_name = clean(new_path)
        try:
            target, new_entry = open_parent(new_name)
            with opened(target):
                os.rename(entry, new_entry, src_dir_fd=source, dst_dir_fd=target)
        except OSError as error:
            raise failure(error, new_name) from error
    return {}


def _read_tar(channel: Channel, path: str, prefix: str = "") -> dict[str, Any]:
    name = clean(path)
    out = Outgoing(channel)
    with opened(open_at(None, name, os.O_PATH)) as found:
        is_directory = stat.S_ISDIR(os.fstat(found).st_mode)
    head = {"is_directory": is_directory}
    if is_directory:
        with opened(open_directory(name)) as top:
            channel.say(HEAD, head)
            pack_tree(out, top, prefix=prefix.encode())
    else:
        source, _ = _open_regular(name)
        with opened(source):
            channel.say(HEAD, head)
            pack_file(out, source, name.rpartition(b"/")[2])
    return {"size": out.count}


def _write_tar(channel: Channel, path: str) -> dict[str, Any]:
    name = clean(path)
    try:
        top = make_directories(None, name)
    except (NotADirectoryError, FileExistsError):
        refuse("invalid", name, "it is no directory", errno.ENOTDIR)
    with opened(top):
        unpacker = Unpacker(top=top, is_root=name == b"/", alive=channel.alive)
        return {"count": unpacker.unpack(channel.incoming())}


def _copy_in(channel: Channel, path: str, is_directory: bool | None) -> dict[str, Any]:
    return {"count": copy_in(path, is_directory, channel.incoming(), channel.alive)}


def _write_layer(
    channel: Channel, path: str, keep_set_id: bool, most_bytes: int | None, most_members: int | None
) -> dict[str, Any]:
    return _unpack_layer(channel, path, keep_set_id=keep_set_id, most_bytes=most_bytes, most_members=most_members)


def _load_tree(channel: Channel, path: str, most_bytes: int | None, most_members: int | None) -> dict[str, Any]:
    return _unpack_layer(channel, path, is_ours=True, most_bytes=most_bytes, most_members=most_members)


def _unpack_layer(
    channel: Channel,
    path: str,
    *,
    most_bytes: int | None,
    most_members: int | None,
    is_ours: bool = False,
    keep_set_id: bool = True,
) -> dict[str, Any]:
    with opened(open_directory(clean(path))) as top:
        unpacker = LayerUnpacker(
            top=top,
            alive=channel.alive,
            is_ours=is_ours,
            keep_set_id=keep_set_id,
            most_bytes=MOST_BYTES if most_bytes is None else most_bytes,
            most_members=MOST_MEMBERS if most_members is None else most_members,
        )
        return {"size": unpacker.unpack(channel.incoming()), "count": unpacker.count}


def _save_tree(channel: Channel, path: str, as_image_layer: bool) -> dict[str, Any]:
    out = Outgoing(channel)
    with opened(open_directory(clean(path))) as top:
        channel.say(HEAD, {})
        pack_upper(out, top, as_image_layer=as_image_layer)
    return {"size": out.count}


def _watch(channel: Channel, path: str) -> dict[str, Any]:
    name = clean(path)
    with opened(open_directory(name)) as top:
        watch = Watch(top, name)
        try:
            channel.say(HEAD, {})
            while not watch.wait(channel.fileno(), _WATCH_ALIVE_S):
                events = watch.events()
                if not events and not watch.is_there():
                    events = [("deleted", name)]
                _say_items(channel, ([event, where.decode("utf-8", "surrogateescape")] for event, where in events))
                if ("deleted", name) in events:
                    break
                channel.alive()
        finally:
            watch.close()
    return {}


def _save_layer(channel: Channel, upper_fd: int | None) -> dict[str, Any]:
    if upper_fd is None:
        raise AgentError("unsupported", "this sandbox keeps no account of what was changed of its image")
    channel.say(HEAD, {})
    out = Outgoing(channel)
    layers.pack(out, upper_fd)
    return {"size": out.count}


def _say_items(channel: Channel, items: Iterable[Any]) -> int:
    """Send them in frames of a bearable size; how many there were."""
    count = size = 0
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        count += 1
        size += len(json.dumps(item))
        if size >= _ITEMS_BYTES:
            channel.say(ITEMS, batch)
            batch, size = [], 0
    if batch:
        channel.say(ITEMS, batch)
    return count


_OPERATIONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "stat": _stat,
    "list": _list,
    "read": _read,
    "write": _write,
    "delete": _delete,
    "mkdir": _mkdir,
    "rename": _rename,
    "read_tar": _read_tar,
    "write_tar": _write_tar,
    "copy_in": _copy_in,
    "write_layer": _write_layer,
    "load_tree": _load_tree,
    "save_tree": _save_tree,
    "watch": _watch,
}
_WITH_INPUT = ("write", "write_tar", "copy_in", "write_layer", "load_tree")
