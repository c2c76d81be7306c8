"""Disks that outlive sandboxes: the warden's side. A process of its own keeps them, and this is the hold on it.

Forked before the warden gives up its privileges and leaves the host's root (`disks_process`). It mounts the file
system of the disks, makes, copies and deletes them, and hands out mounts of them, from which a sandbox's PID 1 puts its
root together. Nothing that a tenant wrote is in an order, and names are checked on both sides. What is in a disk it
looks at only where disks are plain directories and one is to be copied, measured or deleted (`trees`).

Over a packet socket (`protocol`), orders bear a number; those that name the same disk are obeyed one after the other:

    → {"n": 1, "op": "make", "disk": "d1", "size_bytes": 1073741824}          ← {"n": 1, "ok": {}}
    → {"n": 2, "op": "mount", "pid": 4711, "layers": ["l2", "l1"], "disk": "d1", "mounts": []}, with its pidfd
                                                              ← {"n": 2, "ok": {}}, with descriptors of mounts
    → {"n": 3, "op": "delete", "disk": "d9"}                  ← {"n": 3, "error": {"kind": …, "message": …}}
"""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from . import kernel, protocol
from .fields import Refused, said, whole
from .journal import say, say_traceback
from .outbox import Outbox

__all__ = ["MOST_BYTES", "DiskOperations", "Disks", "Reply", "Then", "disk_name", "name_for", "name_from", "start"]

MOST_BYTES = 1 << 50
"""The largest disk."""
_LONGEST_NAME = 40
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_HIGHEST_STANDARD = 2
_MOST_ORDERS = 1024  # a client's that wait
_DEAD = "the process that keeps the disks has died, and comes back with the warden"


Reply: TypeAlias = "Mapping[str, Any] | Refused"
"""What came of an order."""
Then: TypeAlias = Callable[[Reply, list[int]], None]
"""Told of it, with the descriptors that came along: it takes out of the list what it keeps, the others are closed."""


def disk_name(source: Mapping[str, Any], member: str = "disk") -> str:
    """The name of a disk. Raises Refused: it is none."""
    value = source.get(member)
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or not _NAME_LETTERS.issuperset(value):
        raise Refused("invalid", f"{member}: must be 1 to {_LONGEST_NAME} letters from a to z and digits")
    return value


def name_for(uid: int, name: str) -> str:
    """What a disk is called that a user of the warden calls *name*: of several users none knows the others' disks.

    Root's are called as it calls them; no name of a server's begins with a digit.

    Raises:
        Refused: it would be too long.
    """
    own = f"{uid}u{name}" if uid else name
    if len(own) > _LONGEST_NAME:
        raise Refused("invalid", f"disk: {name} is too long")
    return own


def name_from(uid: int, own: str) -> str | None:
    """What a user calls a disk; `None` where it is not theirs."""
    owner, mark, name = own.partition("u")
    is_users = bool(mark) and owner.isdigit()
    if not uid:
        return None if is_users else own
    return name if is_users and int(owner) == uid else None


class Disks:
    """The warden's hold on the process; nothing here waits."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        """To be watched for reading; then call `hear`."""
        self._is_lost = False
        self._number = 0
        self._waiting: dict[int, Then] = {}
        self._outbox = Outbox(channel)

    @property
    def is_lost(self) -> bool:
        """The process is dead: there are no disks any more."""
        return self._is_lost

    def ask(self, order: Mapping[str, Any], descriptors: Sequence[int], then: Then) -> None:
        """Give an order, and call *then* from `hear` when it has been obeyed or refused. Descriptors stay the caller's.

        Raises:
            Refused: the process is dead (`unavailable`).
        """
        if self._is_lost:
            raise Refused("unavailable", _DEAD)
        copies: list[int] = []
        try:
            for fd in descriptors:
                copies.append(os.dup(fd))  # the message may have to wait
        except OSError as error:
            _close_all(copies)
            raise Refused("unavailable", f"cannot pass on descriptors: {error}") from error
        self._number += 1
        self._waiting[self._number] = then
        self._outbox.put({"n": self._number, **order}, tuple(copies))  # should it be gone, `hear` will find that out

    def mount(self, request: Mapping[str, Any], pid: int, pidfd: int, then: Then) -> None:
        """Have mounts made for a sandbox: detached, to be put in place by its PID 1, and closed by nobody else.

        The reply has one for all layers, if there are any (a directory that holds them by name, read-only), then one of
        the disk, if there is one (with `upper` and `work` in it), then one for each of the mounts (its content). They
        show owners as the sandbox sees them.

        Args:
            request: `{"layers": [name, …], "disk": name or None, "mounts": [{"disk": name, "read_only": bool,
                "whole": bool}, …]}`; *whole* shows a disk with its `upper` and `work` rather than its content.
            pid: the sandbox's PID 1, as we see it: the mounts are for its user namespace.
            pidfd: of that process, so that no other can be meant.

        Raises:
            Refused: the process is dead.
        """
        parts = {name: request.get(name) for name in ("layers", "disk", "mounts")}
        self.ask({"op": "mount", "pid": pid, **parts}, (pidfd,), then)

    def hear(self) -> None:
        """Take what the process has said, and tell those who wait for it.

        When it is gone, `is_lost` is set, and the channel must not be watched any longer.
        """
        while not self._is_lost:
            try:
                received = protocol.receive(self.channel)
            except BlockingIOError:
                break
            except (OSError, protocol.ProtocolError):
                received = None
            if received is None:
                self._lose()
                return
            self._tell(*received)
        self._outbox.flush()  # what it has answered, it has taken: there is room again

    def shut(self) -> None:
        """Let go of it; it ends by itself then. Whoever waits for a reply gets none."""
        self._waiting.clear()
        self._lose()
        self.channel.close()

    def _tell(self, message: dict[str, Any], descriptors: list[int]) -> None:
        number = message.get("n", 0)
        then = self._waiting.pop(number, None) if type(number) is int else None
        try:
            error = message.get("error")
            refusal = None if error is None else Refused(said(error["kind"], 20), said(error["message"], 4000))
            if then is not None:
                then(refusal or message["ok"], descriptors)
        except Exception:  # of one client's; the others wait, too
            say_traceback()
        finally:
            _close_all(descriptors)

    def _lose(self) -> None:
        self._is_lost = True
        self._outbox.clear()
        waiting, self._waiting = self._waiting, {}
        for number in waiting:
            self._waiting[number] = waiting[number]
            self._tell({"n": number, "error": {"kind": "unavailable", "message": _DEAD}}, [])


class DiskOperations:
    """What clients may ask of disks: `stockade.backends.disks.Disks`, in messages."""

    def __init__(
        self,
        disks: Disks,
        *,
        answer: Callable[[Any, dict[str, Any], tuple[int, ...]], None],
        refuse: Callable[[Any, int, Refused], None],
        hold: Callable[[Any, str], None],
        let_go: Callable[[str], None],
        uses_of: Callable[[str], Sequence[str]],
        writers_of: Callable[[str], Sequence[str]],
        user_of: Callable[[Any], int] = lambda _: 0,
    ) -> None:
        """Serve clients.

        Args:
            disks: who keeps them.
            answer: sends a client a message with descriptors, which stay ours. The client may be gone.
            refuse: sends a client the reason why its question cannot be answered.
            hold: has a client's sandbox stand still until `let_go` is called as often; raises Refused where it cannot
                (`unsupported`: where no sandbox of this host can).
            let_go: takes that back; the sandbox may be gone.
            uses_of: the sandboxes that use a disk or layer, or are about to.
            writers_of: those of them that may write to it.
            user_of: the id of a client's user, whose the disks are that it makes.
        """
        self._disks = disks
        self._answer, self._refuse = answer, refuse
        self._let_stand, self._let_go = hold, let_go
        self._uses_of, self._writers_of = uses_of, writers_of
        self._user_of = user_of
        self._under_way: dict[Any, int] = {}
        """How many orders of each client wait."""
        self._operations: dict[str, Callable[[Any, dict[str, Any]], None]] = {
            "disk_make": self._make,
            "disk_copy": self._copy,
            "disk_replace": self._replace,
            "disk_seal": self._seal,
            "disk_resize": self._resize,
            "disk_delete": self._delete,
            "disk_info": self._info,
            "disk_list": self._list,
            "disk_facts": self._facts,
        }

    @property
    def is_lost(self) -> bool:
        """Whether the process that keeps them has died."""
        return self._disks.is_lost

    def obey(self, client: Any, message: dict[str, Any], descriptors: list[int]) -> bool:
        """Do what *client* asks; False when it is none of ours. Descriptors stay the caller's: we want none.

        Raises:
            Refused: it cannot be done.
        """
        operation = self._operations.get(str(message.get("op")))
        if operation is None:
            return False
        whole(message, "id", 1 << 53, least=0)
        if descriptors:
            raise Refused("invalid", "disks are not asked for with descriptors")
        operation(client, message)
        return True

    def _make(self, client: Any, message: dict[str, Any]) -> None:
        order = {
            "op": "make",
            "disk": self._name(client, message),
            "size_bytes": whole(message, "size_bytes", MOST_BYTES),
        }
        self._pass_on(client, message, order)

    def _copy(self, client: Any, message: dict[str, Any]) -> None:
        of, name = self._name(client, message, "of"), self._name(client, message)
        size_bytes = None if message.get("size_bytes") is None else whole(message, "size_bytes", MOST_BYTES)
        order = {"op": "copy", "of": of, "disk": name, "size_bytes": size_bytes}
        writers = self._writers_of(of)
        if not writers:
            self._pass_on(client, message, order)
            return
        if list(writers) != [message.get("sandbox")]:
            raise Refused("conflict", f"sandbox {writers[0]} writes to disk {of}")

        def copy(_: Reply, __: list[int]) -> None:
            """What the sandbox has written is on the disk, so that it need not stand still while that gets there."""
            try:
                self._copy_held(client, message, order, writers[0])
            except Refused as refusal:
                self._refuse(client, message["id"], refusal)

        self._order(client, {"op": "settle", "disk": of}, copy)

    def _copy_held(self, client: Any, message: dict[str, Any], order: dict[str, Any], sandbox: str) -> None:
        if sandbox not in self._writers_of(order["of"]):  # it has ended meanwhile
            self._pass_on(client, message, order)
            return
        try:
            self._let_stand(client, sandbox)
        except Refused as refusal:
            if refusal.kind != "unsupported":
                raise
            self._pass_on(client, message, {**order, "changing": True})  # a file system may be able to all the same
            return
        try:
            self._pass_on(client, message, order, finally_=lambda: self._let_go(sandbox))
        except BaseException:
            self._let_go(sandbox)
            raise

    def _replace(self, client: Any, message: dict[str, Any]) -> None:
        name, by = self._name(client, message), self._name(client, message, "by")
        self._want_unused(name)
        self._want_no_writer(by)
        self._pass_on(client, message, {"op": "replace", "disk": name, "by": by})

    def _seal(self, client: Any, message: dict[str, Any]) -> None:
        name = self._name(client, message)
        self._want_no_writer(name)
        self._pass_on(client, message, {"op": "seal", "disk": name})

    def _resize(self, client: Any, message: dict[str, Any]) -> None:
        size_bytes = whole(message, "size_bytes", MOST_BYTES)
        self._pass_on(client, message, {"op": "resize", "disk": self._name(client, message), "size_bytes": size_bytes})

    def _delete(self, client: Any, message: dict[str, Any]) -> None:
        name = self._name(client, message)
        self._want_unused(name)
        self._pass_on(client, message, {"op": "delete", "disk": name})

    def _info(self, client: Any, message: dict[str, Any]) -> None:
        self._pass_on(client, message, {"op": "info", "disk": self._name(client, message)})

    def _list(self, client: Any, message: dict[str, Any]) -> None:
        after = "" if message.get("after", "") == "" else self._name(client, message, "after")
        self._pass_on(client, message, {"op": "list", "after": after, "user": self._user_of(client)})

    def _facts(self, client: Any, message: dict[str, Any]) -> None:
        self._pass_on(client, message, {"op": "facts"})

    def _name(self, client: Any, message: Mapping[str, Any], member: str = "disk") -> str:
        return name_for(self._user_of(client), disk_name(message, member))

    def _shown(self, client: Any, reply: Mapping[str, Any]) -> dict[str, Any]:
        """An answer, with disks called as the client calls them, and none of others'."""
        uid, shown = self._user_of(client), dict(reply)
        for member in ("disk", "after"):
            if shown.get(member) is not None:
                shown[member] = name_from(uid, shown[member])
        if "disks" in shown:
            named = ((name_from(uid, one["disk"]), one) for one in shown["disks"])
            shown["disks"] = [{**one, "disk": name} for name, one in named if name is not None]
        return shown

    def _want_unused(self, disk: str) -> None:
        for sandbox in self._uses_of(disk):
            raise Refused("conflict", f"sandbox {sandbox} uses disk {disk}")

    def _want_no_writer(self, disk: str) -> None:
        for sandbox in self._writers_of(disk):
            raise Refused("conflict", f"sandbox {sandbox} writes to disk {disk}")

    def _pass_on(
        self,
        client: Any,
        message: dict[str, Any],
        order: dict[str, Any],
        *,
        finally_: Callable[[], None] = lambda: None,
    ) -> None:
        """Have an order obeyed, and tell the client what came of it."""

        def then(reply: Reply, _: list[int]) -> None:
            finally_()
            if isinstance(reply, Refused):
                self._refuse(client, message["id"], reply)
            else:
                self._answer(client, {"re": message["id"], "ok": self._shown(client, reply)}, ())

        self._order(client, order, then)

    def _order(self, client: Any, order: Mapping[str, Any], then: Then) -> None:
        """Have an order of a client's obeyed. Raises Refused: so many of its orders wait already."""
        if self._under_way.get(client, 0) >= _MOST_ORDERS:
            raise Refused("unavailable", f"{_MOST_ORDERS} orders at once are too many")

        def obeyed(reply: Reply, descriptors: list[int]) -> None:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]
            then(reply, descriptors)

        self._disks.ask(order, (), obeyed)
        self._under_way[client] = self._under_way.get(client, 0) + 1


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptors.pop())


def start(
    directory: str | None,
    *,
    kind: str = "auto",
    size_bytes: int | None = None,
    own_ids: bool,
    title: tuple[int, int, int, int] | None = None,
) -> Disks:
    """Start the process. To be called while we are in the host's root, single-threaded, and have our privileges.

    Until the first order it sleeps, has loaded nothing and costs nothing.

    Args:
        directory: where the disks lie, made when missing; `None`: there are none, which is what orders are told.
        kind: `auto`, `btrfs` or `directory`, as in the configuration.
        size_bytes: the most that all disks together may take, where they lie in a file; `None`: half of what is free.
        own_ids: whether sandboxes have users of their own, to whom owners are to be shown as they are inside.
        title: `kernel.find_process_title()`; with it the process goes by a name of its own.

    Raises:
        OSError: it cannot be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _sleep(theirs, title, parent)
            from .disks_process import work  # here: while our files can be read, and in this process only

            place = None if directory is None else os.path.abspath(directory)
            work(theirs, place, kind=kind, size_bytes=size_bytes, own_ids=own_ids)
        except BaseException:
            say_traceback()
        finally:
            os._exit(1)
    theirs.close()
    ours.setblocking(False)
    return Disks(pid, ours)


def _sleep(channel: socket.socket, title: tuple[int, int, int, int] | None, parent: int) -> None:
    """Hold nothing of the warden's, and wait until it says something."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the warden ends us when it has ended
    kernel.close_range(_HIGHEST_STANDARD + 1, channel.fileno() - 1)
    kernel.close_range(channel.fileno() + 1)
    if title is not None:
        kernel.seal_process_title("stockade-disks", title)
    kernel.set_dumpable(dumpable=False)
    kernel.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        say("the warden was gone before its disks process had begun")
        os._exit(0)
    select.select([channel], [], [])
