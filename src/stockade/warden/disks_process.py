"""The process that keeps the disks; see `disks`. Imported in that process only.

Orders that name the same disk are obeyed in the order in which they came. All but the shortest are obeyed by threads:
copies may take long, and what waits for the host's disk can wait together.
"""

import errno
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

from . import kernel, protocol
from .disk_home import Home, move_in
from .disk_room import Room
from .disk_store import explain
from .disks import MOST_BYTES, disk_name
from .fields import Refused, whole
from .journal import say, say_traceback

__all__ = ["work"]

_AT_ONCE = 8
_FIT_S = 1.0
_PREDECESSOR_S = 20.0
_MOST_LAYERS = 256
_MOST_MOUNTS = protocol.MOST_DESCRIPTORS - 2
_SHORT = frozenset({"mount", "facts"})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLAGS = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV


@dataclass(frozen=True, kw_only=True)
class _Order:
    message: dict[str, Any]
    descriptors: list[int]

    @property
    def operation(self) -> str:
        return str(self.message.get("op"))

    @property
    def names(self) -> frozenset[str]:
        """The disks that it is about, as far as it can be understood."""
        found = [self.message.get(member) for member in ("disk", "of", "by")]
        layers, mounts = self.message.get("layers"), self.message.get("mounts")
        found += layers if isinstance(layers, list) else []
        found += [one.get("disk") for one in mounts if isinstance(one, dict)] if isinstance(mounts, list) else []
        return frozenset(one for one in found if isinstance(one, str))


def work(
    channel: socket.socket, directory: str | None, *, kind: str, size_bytes: int | None, own_ids: bool
) -> NoReturn:
    """Obey the warden until it is gone. Never returns."""
    os.umask(0)

    def find_home(patience_s: float) -> Home:
        if directory is None:
            raise Refused("unsupported", "this warden keeps no disks: it was given no directory for them")
        return move_in(directory, kind=kind, size_bytes=size_bytes, own_ids=own_ids, patience_s=patience_s)

    def is_new() -> bool:
        return directory is not None and not (os.path.isdir(directory) and os.listdir(directory))

    try:
        _Process(channel, find_home, is_new, own_ids=own_ids).serve()
    except BaseException:
        say_traceback()
    finally:
        os._exit(0)  # a thread that is at work is ended with us, as by a crash


class _Process:
    """Takes orders, decides which may be begun, and answers."""

    def __init__(
        self, channel: socket.socket, find_home: Callable[[float], Home], is_new: Callable[[], bool], *, own_ids: bool
    ) -> None:
        self._channel = channel
        self._find_home = find_home
        self._is_new = is_new
        self._patience_s = _PREDECESSOR_S
        self._own_ids = own_ids
        self._home: Home | None = None
        self._fit_at = 0.0
        self._misfit = ""
        self._waiting: deque[_Order] = deque()
        self._busy: set[str] = set()
        """Disks that threads are at work on."""
        self._lock = threading.Lock()
        """Held to look at or change the two."""
        self._threads = ThreadPoolExecutor(_AT_ONCE)
        self._done, self._tell_done = socket.socketpair()
        self._operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "make": self._make,
            "copy": self._copy,
            "settle": self._settle,
            "replace": self._replace,
            "seal": self._seal,
            "resize": self._resize,
            "delete": self._delete,
            "info": self._info,
            "list": self._list,
            "facts": self._facts,
        }

    def serve(self) -> None:
        while True:
            room = None if self._home is None else self._home.room
            lifted = self._home is not None and self._home.store.has_lifted
            wait_s = None if room is None and not lifted else _FIT_S
            ready, _, _ = select.select([self._channel, self._done], [], [], wait_s)
            if self._home is not None and lifted:
                self._home.store.lower(time.monotonic())
            if room is not None and time.monotonic() >= self._fit_at:
                self._fit_at = time.monotonic() + _FIT_S
                self._threads.submit(self._fit, room)
            if self._done in ready:
                self._done.recv(4096)
            if self._channel in ready:
                received = protocol.receive(self._channel)
                if received is None:
                    return
                message, descriptors = received
                self._waiting.append(_Order(message=message, descriptors=descriptors))
            self._begin()

    def _begin(self) -> None:
        """Obey what is waiting, but for what has to wait for something that came before it."""
        with self._lock:
            blocked = set(self._busy)
        later: deque[_Order] = deque()
        while self._waiting:
            order = self._waiting.popleft()
            if not blocked.isdisjoint(order.names):
                blocked |= order.names
                later.append(order)
            elif self._home is not None and order.operation not in _SHORT:
                blocked |= order.names
                with self._lock:
                    self._busy |= order.names
                self._threads.submit(self._obey_in_thread, order)
            else:
                self._obey(order)
        self._waiting = later

    def _fit(self, room: Room) -> None:
        misfit = ""
        try:
            room.fit()
        except OSError as error:
            misfit = f"the file system of the disks cannot be kept to what the host has room for: {error}"
        if misfit and misfit != self._misfit:
            say(misfit)
        self._misfit = misfit

    def _obey_in_thread(self, order: _Order) -> None:
        try:
            self._obey(order)
        finally:
            with self._lock:
                self._busy -= order.names
            self._tell_done.send(b"!")

    def _obey(self, order: _Order) -> None:
        """Do it, and say what came of it."""
        given: list[int] = []
        is_broken = False
        try:
            operation = self._operations.get(order.operation)
            if order.operation == "mount":
                ok = self._mount(order, given)
            elif operation is not None:
                ok = operation(order.message)
            else:
                raise Refused("invalid", "there is no such order")
            answer: dict[str, Any] = {"ok": ok}
        except Exception as error:
            answer = {"error": _refusal(error)}
            is_broken = self._home is not None and isinstance(error, OSError) and error.errno == errno.EROFS
        try:
            protocol.send(self._channel, {"n": order.message.get("n", 0), **answer}, tuple(given))
        except OSError:
            os._exit(0)  # the warden is gone
        finally:
            for fd in (*given, *order.descriptors):
                os.close(fd)
        if is_broken:
            # Once the kernel has seen that it cannot write, it takes no changes until the file system is mounted anew.
            # That is by the next warden, which is started when nothing lives.
            say("the file system of the disks takes no changes any more: it is to be mounted anew")
            os._exit(0)

    @property
    def _kept(self) -> Home:
        """Where disks are kept; the first who asks has to wait for it."""
        if self._home is None:
            patience_s, self._patience_s = self._patience_s, 0.0  # who has it then is no predecessor that is ending
            self._home = self._find_home(patience_s)
        return self._home

    # ── orders ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _make(self, message: dict[str, Any]) -> dict[str, Any]:
        name, size_bytes = disk_name(message), whole(message, "size_bytes", MOST_BYTES)
        self._want_room()
        self._kept.store.make(name, size_bytes)
        return {}

    def _copy(self, message: dict[str, Any]) -> dict[str, Any]:
        of, name = disk_name(message, "of"), disk_name(message)
        size_bytes = None if message.get("size_bytes") is None else whole(message, "size_bytes", MOST_BYTES)
        self._want_room()
        return self._kept.store.copy(of, name, size_bytes, changing=message.get("changing") is True)

    def _settle(self, message: dict[str, Any]) -> dict[str, Any]:
        self._kept.store.settle(disk_name(message))
        return {}

    def _replace(self, message: dict[str, Any]) -> dict[str, Any]:
        self._kept.store.replace(disk_name(message), disk_name(message, "by"))
        return {}

    def _seal(self, message: dict[str, Any]) -> dict[str, Any]:
        return self._kept.store.seal(disk_name(message))

    def _resize(self, message: dict[str, Any]) -> dict[str, Any]:
        self._kept.store.resize(disk_name(message), whole(message, "size_bytes", MOST_BYTES))
        return {}

    def _delete(self, message: dict[str, Any]) -> dict[str, Any]:
        self._kept.store.delete(disk_name(message))
        return {}

    def _info(self, message: dict[str, Any]) -> dict[str, Any]:
        return self._kept.store.info(disk_name(message))

    def _list(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._home is None and self._is_new():
            return {"disks": [], "after": None}  # servers ask when they start: most never have any
        return self._kept.store.page(
            str(message.get("after", "")), whole({"user": 0, **message}, "user", 1 << 32, least=0)
        )

    def _facts(self, _: dict[str, Any]) -> dict[str, Any]:
        try:
            home = self._kept
        except Refused as refusal:
            none = {"kind": "none", "shares_blocks": False, "enforces_size": False, "free_bytes": 0, "place": ""}
            return {**none, "why": str(refusal)}
        driver = home.store.driver
        return {
            "kind": driver.kind,
            "shares_blocks": driver.shares_blocks,
            "enforces_size": driver.enforces_size,
            "free_bytes": home.free_bytes(),
            "place": home.place,
            "why": home.why,
        }

    def _want_room(self) -> None:
        """A file system of ours lies in a file that grows: were the host to run out of room, no disk would work."""
        if not self._kept.free_bytes():
            raise Refused("unavailable", "there is too little room left where the disks lie")  # tenants read this, too

    def _mount(self, order: _Order, given: list[int]) -> dict[str, Any]:
        """See `disks.Disks.mount`; puts the descriptors into *given*."""
        message = order.message
        store = self._kept.store
        layers = [disk_name({"disk": one}) for one in message.get("layers") or ()]
        mounts = message.get("mounts") or ()
        if len(layers) > _MOST_LAYERS or len(mounts) > _MOST_MOUNTS:
            raise Refused("invalid", f"a sandbox has at most {_MOST_LAYERS} layers and {_MOST_MOUNTS} mounts")
        namespace = self._namespace(whole(message, "pid", 1 << 31), order.descriptors) if self._own_ids else -1
        try:
            if layers:
                for name in layers:
                    with store.opened(name, layer=True):
                        pass
                given.append(_show(store.layers, namespace, read_only=True))
            if message.get("disk") is not None:
                with store.opened(disk_name(message), layer=False) as disk:
                    store.lift(disk_name(message), disk)
                    given.append(_show(disk, namespace))
            for one in mounts:
                with store.opened(disk_name(one), layer=False) as disk:
                    read_only = one.get("read_only") is True
                    given.append(_show(disk, namespace, read_only=read_only, content=one.get("whole") is not True))
        finally:
            if namespace >= 0:
                os.close(namespace)
        return {}

    def _namespace(self, pid: int, descriptors: list[int]) -> int:
        """The user namespace of a sandbox, by whose maps owners are shown."""
        if len(descriptors) != 1:
            raise Refused("invalid", "a mount needs the pidfd of the sandbox")
        try:
            namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            raise Refused("conflict", "the sandbox has ended") from None
        poll = select.poll()
        poll.register(descriptors[0], select.POLLIN)
        if poll.poll(0):  # it is gone: that might be the namespace of another process with its number
            os.close(namespace)
            raise Refused("conflict", "the sandbox has ended")
        return namespace


def _show(directory: int, namespace: int, *, read_only: bool = False, content: bool = False) -> int:
    """A mount of a directory, or of its `upper`, that is attached nowhere."""
    upper = os.open("upper", _DIRECTORY, dir_fd=directory) if content else -1
    try:
        mounted = kernel.open_tree(upper if content else directory)
    finally:
        if content:
            os.close(upper)
    try:
        attributes = _FLAGS | (kernel.MOUNT_ATTR_RDONLY if read_only else 0)
        kernel.set_mount_attributes(mounted, attributes, userns=namespace)
    except OSError as error:
        os.close(mounted)
        if namespace >= 0:
            why = f"the file system of the disks cannot show owners as a sandbox sees them: {error.strerror}"
            raise Refused("unsupported", why) from error
        raise
    return mounted


def _refusal(error: Exception) -> dict[str, str]:
    if isinstance(error, OSError):
        refusal = explain(error)
    elif isinstance(error, Refused):
        refusal = error
    else:
        refusal = Refused("fault", f"the order could not be understood: {type(error).__name__}")
    if refusal.kind == "fault":
        say_traceback()
    return {"kind": refusal.kind, "message": str(refusal)}
