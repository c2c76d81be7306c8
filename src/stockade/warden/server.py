"""The warden's loop: one thread, one epoll, no waiting anywhere else.

Clients come over a UNIX socket and are told by the kernel who they are (SO_PEERCRED). Each run's control socket, output
pipes, end and deadlines are watched here. What a client asked for ends with the client.
"""

import contextlib
import fcntl
import heapq
import math
import os
import select
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import protocol
from .cell import Cell, Host
from .disks import DiskOperations, Disks
from .egress import Egress
from .fields import Refused, is_file, request_name
from .gvisor import Shape
from .journal import say, say_traceback
from .mason import Mason
from .pools import Pool, Pools
from .recipe import Recipe
from .request import RunRequest
from .residents import Arrival, Residents
from .sandbox import Output, Sandbox

__all__ = ["Server"]

_UCRED = struct.Struct("iII")  # pid, uid, gid: struct ucred of unix(7)
_MOST_RUNS = 4096  # a client's at once
_RETRY_S = 0.05  # for groups that the kernel still held
_LONGEST_WAIT_S = 86400.0  # epoll_wait(2) counts milliseconds in an int
_MOST_RECIPES = 1024  # a client's
_LONGEST_REASON = 4000  # characters
_HIGHEST_NUMBER = 1 << 53
_MOST_WAITING = 64  # answers that a client has not taken: what it asks for meanwhile stays in its socket
_MOST_A_TURN = 64  # messages of one client: then the others have theirs
_MOST_CLIENTS = 512  # a user's at once


@dataclass(eq=False)
class _Client:
    connection: socket.socket
    uid: int
    """Of the process at the other end; sandboxes that live belong to users."""
    runs: dict[int, Sandbox] = field(default_factory=dict)
    waiting: dict[int, "_Waiting"] = field(default_factory=dict)
    """Runs for which a cell is being made."""
    recipes: list[Recipe] = field(default_factory=list)
    """What it calls by their numbers."""
    outbox: deque[tuple[dict[str, Any], tuple[int, ...]]] = field(default_factory=deque)
    """Answers that the client was too slow to take; bounded, for nothing is read from it once there are many."""

    @property
    def is_behind(self) -> bool:
        return len(self.outbox) >= _MOST_WAITING


@dataclass(eq=False)
class _Waiting:
    client: _Client
    request: RunRequest
    descriptors: list[int]
    pool: Pool

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


class Server:
    """Serves clients until `stop` is called, or the last client is gone and `until_idle` is set.

    With `until_unused`, sandboxes that live keep it, too.
    """

    def __init__(
        self,
        host: Host,
        *,
        report: dict[str, Any],
        listener: socket.socket | None,
        clients: list[socket.socket],
        allowed_uids: frozenset[int],
        until_idle: bool,
        until_unused: bool,
        mason: Mason,
        first: Cell,
        spares: int,
        egress: Egress | None,
        disks: Disks,
    ) -> None:
        self._host = host
        self._report = report
        self._listener = listener
        self._allowed_uids = allowed_uids
        self._until_idle = until_idle
        self._until_unused = until_unused
        self._egress = egress
        self._epoll = select.epoll()
        self._put_off: list[Callable[[], None]] = []
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._clients: set[_Client] = set()
        self._sandboxes: dict[Sandbox, _Client] = {}
        self._timers: list[tuple[float, int, Sandbox]] = []
        self._count = 0
        self._unburied = 0
        self._deaf_until: float | None = None
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.watch(self._wake_read, lambda _: self._woken())
        self._pools = Pools(
            host,
            mason,
            self,
            first=first,
            spares=spares,
            supply=self._supply,
            refuse=self._refuse,
            give_up=self.stop,  # whoever started us will start us again
        )
        self._residents = Residents(
            self._pools, self, answer=self._answer, refuse=self._send_refusal, egress=egress, disks=disks
        )
        self._disks = DiskOperations(
            disks,
            answer=self._answer,
            refuse=self._send_refusal,
            hold=self._residents.hold,
            let_go=self._residents.let_go,
            uses_of=self._residents.uses_of,
            writers_of=self._residents.writers_of,
            user_of=lambda client: int(client.uid),
        )
        self.watch(disks.channel.fileno(), lambda _: self._hear_disks(disks))
        if egress is not None:
            self.watch(egress.channel.fileno(), lambda _: self._hear_egress(egress))
        if listener is not None:
            listener.setblocking(False)
            self.watch(listener.fileno(), lambda _: self._accept())
        for connection in clients:
            self._welcome(connection)

    @property
    def wakeup_fd(self) -> int:
        """A descriptor that ends the loop's wait when something is written to it."""
        return self._wake_write

    def stop(self) -> None:
        """End every run and return from `serve`. May be called from a signal handler."""
        self._stopping = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b".")

    def serve(self) -> None:
        """Serve until there is a reason to stop, then end every sandbox and remove what belongs to them."""
        had_client = bool(self._clients)
        while not self._stopping:
            had_client = had_client or bool(self._clients)
            ends_now = self._until_idle or (self._until_unused and not self._residents.living)
            if had_client and not self._clients and ends_now:
                break
            if self._is_cut_off:
                break
            self._turn()
        self._close_door()
        for client in list(self._clients):
            self._dismiss(client)
        self._residents.close()
        self._pools.close()
        self._host.cgroups.drain()
        deadline = time.monotonic() + 5.0
        while self._is_burying and time.monotonic() < deadline:
            self._turn()
        self._residents.close()  # what was kept of them

    def _close_door(self) -> None:
        """Let nobody in any more: who came now would be told that what lived was killed, as if on purpose."""
        if self._listener is not None:
            self.forget(self._listener.fileno())
            self._listener.close()
            self._listener = None

    @property
    def _is_cut_off(self) -> bool:
        """Whether whoever keeps us had better start another: one with a way to the outside, and to the disks.

        Neither process can be started from here, where the host's root is out of reach. What lives comes first.
        """
        is_lost = self._disks.is_lost or (self._egress is not None and self._egress.is_lost)
        return is_lost and self._until_unused and not self._residents.living and not self._sandboxes

    @property
    def _is_burying(self) -> bool:
        return bool(self._unburied or self._residents.unburied or self._host.cgroups.held)

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        put_off, self._put_off = self._put_off, []
        for fd, events in self._epoll.poll(0 if put_off else self._until_next_timer()):
            handler = self._handlers.get(fd)  # gone when an earlier event of this turn closed it
            if handler is not None:
                handler(events)
        for work in put_off:
            work()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, number, sandbox = heapq.heappop(self._timers)
            if sandbox in self._sandboxes:
                heapq.heappush(self._timers, (sandbox.check(now), number, sandbox))
        if len(self._timers) > 64 + 4 * len(self._sandboxes):  # most belong to runs that are over
            self._timers = [timer for timer in self._timers if timer[2] in self._sandboxes]
            heapq.heapify(self._timers)
        if self._residents.until_next <= now:
            self._residents.check(now)
        if self._deaf_until is not None and self._deaf_until <= now and self._listener is not None:
            self._deaf_until = None
            self.watch(self._listener.fileno(), lambda _: self._accept())
        if self._pools.tidy_at <= now:
            self._pools.tidy(now)
            self._host.reap_strangers()
        held = self._host.cgroups.held
        if held:
            held[:] = [group for group in held if not group.close()]

    def _until_next_timer(self) -> float:
        waits = [_RETRY_S] if self._host.cgroups.held or self._deaf_until is not None else []
        if self._timers:
            waits.append(max(0.0, self._timers[0][0] - time.monotonic()))
        for due in (self._pools.tidy_at, self._residents.until_next):
            if due < math.inf:
                waits.append(max(0.0, due - time.monotonic()))
        return min([*waits, _LONGEST_WAIT_S])

    def watch(self, fd: int, handler: Callable[[int], None]) -> None:
        """Have *handler* called when *fd* is readable or closed at its other end. A later one replaces it."""
        if fd not in self._handlers:
            self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

    def put_off(self, work: Callable[[], None]) -> None:
        """Do *work* when all has been handled that is ready now."""
        self._put_off.append(work)

    def forget(self, fd: int) -> None:
        """Watch *fd* no more; it need not have been watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 64)

    def _hear_egress(self, egress: Egress) -> None:
        for name, why in egress.hear():
            say(f"sandbox {ascii(name)[1:-1]} has no way out: {ascii(why)[1:-1]}")
        if egress.is_lost:
            self.forget(egress.channel.fileno())
            say("the egress process is dead: sandboxes have no way out until the warden is started again")
            if self._until_unused:
                say("that will be once no sandbox lives any more")

    def _hear_disks(self, disks: Disks) -> None:
        disks.hear()
        if disks.is_lost:
            self.forget(disks.channel.fileno())
            say("the process that keeps disks is dead: there are none until the warden is started again")
            if self._until_unused:
                say("that will be once no sandbox lives any more")

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:  # gone again, or we are out of descriptors: look again when some may have come free
            self.forget(self._listener.fileno())
            self._deaf_until = time.monotonic() + _RETRY_S
            return
        uid = _peer(connection)
        if uid not in self._allowed_uids or sum(one.uid == uid for one in self._clients) >= _MOST_CLIENTS:
            connection.close()
            return
        self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        client = _Client(connection, _peer(connection))
        self._clients.add(client)
        self.watch(connection.fileno(), lambda events: self._attend(client, events))

    def _attend(self, client: _Client, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(client)
        if client.is_behind and events & select.EPOLLHUP:
            self._dismiss(client)  # gone without having taken its answers
        for _ in range(_MOST_A_TURN):
            if client not in self._clients or client.is_behind:
                return
            try:
                received = protocol.receive(client.connection)
            except BlockingIOError:
                return
            except (OSError, protocol.ProtocolError):
                self._dismiss(client)  # it does not speak our language: nothing it says can be relied on
                return
            if received is None:
                self._dismiss(client)
                return
            message, descriptors = received
            try:
                self._obey(client, message, descriptors)
            except Exception:  # ours to mend, and yet no reason to end what others have running
                say_traceback()
                self._dismiss(client)
            finally:
                for fd in descriptors:
                    os.close(fd)

    def _obey(self, client: _Client, message: dict[str, Any], descriptors: list[int]) -> None:
        operation = message.get("op")
        number = message.get("id", 0)
        if type(number) is not int or abs(number) > _HIGHEST_NUMBER:
            number = None  # an answer bears numbers only, so that it is always one that can be sent
        if operation == "run":
            try:
                recipe = self._recipe(client, message.get("template"))
                self._run(client, RunRequest.parse(message, len(descriptors), recipe), descriptors)
            except Refused as refusal:
                _say_why("run", request_name(message), refusal)
                self._answer(client, _refusal(number, refusal))
        elif operation == "template":
            try:
                self._answer(client, {"re": number, "ok": {"template": self._learn(client, message)}})
            except Refused as refusal:
                self._answer(client, _refusal(number, refusal))
        elif operation == "cancel":
            if number is not None:
                self._cancel(client, number)
        elif operation == "hello":
            if message.get("version") != protocol.VERSION:
                other = Refused("unsupported", f"this warden speaks version {protocol.VERSION}")
                self._answer(client, _refusal(number, other))
            else:
                self._answer(client, {"re": number, "ok": {**self._report, "warm": self._pools.report()}})
        elif operation == "wall":
            try:
                self._answer(client, {"re": number, "ok": self._pools.walls.report()})
            except Refused as refusal:
                self._answer(client, _refusal(number, refusal))
        elif operation == "living":
            self._answer(client, {"re": number, "ok": {"living": self._residents.living}})
        else:
            try:
                obeyed = self._residents.obey(client, message, descriptors)
                if not obeyed and not self._disks.obey(client, message, descriptors):
                    raise Refused("invalid", f"unknown operation {operation!r}")
            except Refused as refusal:
                _say_why(str(operation), request_name(message), refusal)
                self._answer(client, _refusal(number, refusal))

    def _send_refusal(self, client: _Client, number: int, refusal: Refused) -> None:
        self._answer(client, _refusal(number, refusal))

    def _answer(self, client: _Client, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send, or keep for later; the descriptors stay the caller's. Nobody hears it once the client is gone."""
        if client not in self._clients:
            return
        if not client.outbox:
            try:
                protocol.send(client.connection, message, descriptors)
            except BlockingIOError:
                pass
            except OSError:
                self._dismiss(client)
                return
            except protocol.UNSENDABLE as error:
                say(f"an answer could not be sent: {ascii(str(error))[1:-1][:_LONGEST_REASON]}")
                message, descriptors = _refusal(message["re"], Refused("fault", "the answer cannot be sent")), ()
                self._answer(client, message)
                return
            else:
                return
        kept: list[int] = []
        try:
            for fd in descriptors:
                kept.append(os.dup(fd))
        except OSError as error:  # out of descriptors: the client shall know at least that
            for fd in kept:
                os.close(fd)
            kept, message = [], _refusal(message["re"], Refused("unavailable", f"cannot keep the output: {error}"))
        client.outbox.append((message, tuple(kept)))
        self._watch_client(client)

    def _watch_client(self, client: _Client) -> None:
        wanted = (0 if client.is_behind else select.EPOLLIN) | (select.EPOLLOUT if client.outbox else 0)
        self._epoll.modify(client.connection.fileno(), wanted)

    def _flush(self, client: _Client) -> None:
        while client.outbox:
            message, descriptors = client.outbox[0]
            try:
                protocol.send(client.connection, message, descriptors)
            except BlockingIOError:
                return
            except OSError:
                self._dismiss(client)
                return
            except protocol.UNSENDABLE:
                client.outbox[0] = _refusal(message["re"], Refused("fault", "the answer cannot be sent")), descriptors
                continue
            client.outbox.popleft()
            for fd in descriptors:
                os.close(fd)
        self._watch_client(client)

    def _dismiss(self, client: _Client) -> None:
        """The client is gone: so are its runs."""
        if client not in self._clients:
            return
        self._clients.discard(client)
        self.forget(client.connection.fileno())
        client.connection.close()
        for _, descriptors in client.outbox:
            for fd in descriptors:
                os.close(fd)
        client.outbox.clear()
        for number in [*client.waiting, *client.runs]:
            self._cancel(client, number)
        self._residents.dismissed(client)

    # ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _learn(self, client: _Client, message: dict[str, Any]) -> int:
        """Give a recipe a number for this client."""
        recipe = Recipe.parse(message)
        if message.get("announce") is True:
            self._pools.announce(recipe)
        if recipe in client.recipes:
            return client.recipes.index(recipe)
        if len(client.recipes) >= _MOST_RECIPES:
            raise Refused("unavailable", f"{_MOST_RECIPES} templates are too many")
        client.recipes.append(recipe)
        return len(client.recipes) - 1

    @staticmethod
    def _recipe(client: _Client, number: object) -> Recipe | None:
        if number is None:
            return None
        if type(number) is not int or not 0 <= number < len(client.recipes):
            raise Refused("invalid", f"template: there is none with the number {number!r}")
        return client.recipes[number]

    def _run(self, client: _Client, request: RunRequest, descriptors: list[int]) -> None:
        if request.id in client.runs or request.id in client.waiting:
            raise Refused("invalid", f"id {request.id} is in use")
        if len(client.runs) + len(client.waiting) >= _MOST_RUNS:
            raise Refused("unavailable", f"{_MOST_RUNS} runs at once are too many")
        for fd in descriptors:
            # A directory would be a way out of the sandbox, a socket or a device one into something else.
            if not is_file(fd):
                raise Refused("invalid", "input and bundles must be regular files")
        if request.is_watched:
            for fd in descriptors[-2:]:
                # Only a memory file has seals (fcntl(2)); a file of another system could make us wait when we write.
                try:
                    fcntl.fcntl(fd, fcntl.F_GET_SEALS)
                except OSError:
                    raise Refused("invalid", "output goes to memory files only") from None
        pool = self._choose_pool(request)
        while (spare := self._pools.take(pool)) is not None:
            if self._begin(client, request, spare, descriptors):
                self._pools.refill(pool)
                return
        waiting = _Waiting(client, request, [], pool)
        try:
            for fd in descriptors:
                waiting.descriptors.append(os.dup(fd))
        except OSError as error:
            waiting.close()
            raise Refused("unavailable", f"cannot keep the input: {error}") from error
        client.waiting[request.id] = waiting
        pool.waiting.append(waiting)
        self._pools.refill(pool)

    def _choose_pool(self, request: RunRequest) -> Pool:
        if not request.wall:
            return self._pools.choose(request.image, request.recipe if request.fits_recipe else None)
        shape = Shape(disk_bytes=request.disk_bytes, open_files=request.open_files, stack_bytes=request.stack_bytes)
        return self._pools.choose_walled(request.image, shape)

    def _supply(self, pool: Pool, cell: Cell) -> bool:
        """Give a new cell to a run, or a sandbox, that waits for it."""
        if not pool.waiting:
            return False
        if isinstance(pool.waiting[0], Arrival):
            pool.waiting.popleft().supply(cell)
            return True
        waiting = self._next_waiting(pool)
        try:
            if not self._begin(waiting.client, waiting.request, cell, waiting.descriptors):
                text = "a sandbox died before it was used"
                self._answer(waiting.client, _refusal(waiting.request.id, Refused("unavailable", text)))
        except Refused as refusal:
            self._answer(waiting.client, _refusal(waiting.request.id, refusal))
        finally:
            waiting.close()
        return True

    def _refuse(self, pool: Pool, refusal: Refused) -> None:
        """One cell of that pool could not be made: so whoever waits for one gets none."""
        if pool.waiting and isinstance(pool.waiting[0], Arrival):
            pool.waiting.popleft().refuse(refusal)
        elif pool.waiting:
            waiting = self._next_waiting(pool)
            self._answer(waiting.client, _refusal(waiting.request.id, refusal))
            waiting.close()

    @staticmethod
    def _next_waiting(pool: Pool) -> _Waiting:
        waiting: _Waiting = pool.waiting.popleft()
        del waiting.client.waiting[waiting.request.id]
        return waiting

    def bury(self, cell: Cell) -> None:
        """End a cell that runs nothing, and free it once it is dead."""
        cell.kill()
        self._unburied += 1
        self.watch(cell.pidfd, lambda _: self._clear_away(cell))

    def _clear_away(self, cell: Cell) -> None:
        self.forget(cell.pidfd)
        cell.discard()  # it has ended: there is nothing to wait for
        self._unburied -= 1

    def _begin(self, client: _Client, request: RunRequest, cell: Cell, descriptors: list[int]) -> bool:
        """Send a cell on its errand; False when the cell turns out to be dead."""
        sandbox = Sandbox(request=request, cell=cell)
        try:
            sandbox.begin(descriptors)
        except (OSError, protocol.ProtocolError) as error:
            self.forget(cell.control.fileno())
            sandbox.kill("setup")
            cell.reap()
            sandbox.close()
            if isinstance(error, protocol.ProtocolError):  # longer by a few words than what came in
                raise Refused("invalid", str(error)) from error
            return False
        client.runs[request.id] = sandbox
        self._sandboxes[sandbox] = client
        self._unburied += 1
        self.watch(cell.control.fileno(), lambda _: self._hear(sandbox))
        self.watch(cell.pidfd, lambda _: self._bury(sandbox))
        for output in (sandbox.stdout, sandbox.stderr):
            assert output.pipe is not None
            self.watch(output.pipe, lambda events, output=output: self._pump(sandbox, output, events))  # type: ignore[misc]
        if sandbox.oom_event is not None:
            self.watch(sandbox.oom_event, lambda _: self._out_of_memory(sandbox))
        self._schedule(sandbox)
        return True

    def _cancel(self, client: _Client, number: int) -> None:
        waiting = client.waiting.pop(number, None)
        if waiting is not None:
            waiting.pool.waiting.remove(waiting)  # the cell that was ordered for it will be kept ready
            waiting.close()
            self._answer(client, _refusal(number, Refused("conflict", "cancelled before it began")))
        sandbox = client.runs.get(number)
        if sandbox is not None:
            sandbox.kill("cancelled")
        elif waiting is None:
            self._residents.cancel(client, number)

    def _schedule(self, sandbox: Sandbox) -> None:
        self._count += 1  # a tie-breaker: sandboxes do not compare
        heapq.heappush(self._timers, (sandbox.check(time.monotonic()), self._count, sandbox))

    def _hear(self, sandbox: Sandbox) -> None:
        was_started = sandbox.started is not None
        if not sandbox.read_control():
            self.forget(sandbox.cell.control.fileno())  # the other end is closed: its end comes by the pidfd
        if sandbox.alone:
            self._finish(sandbox)  # no need to wait until the kernel has taken PID 1's namespaces apart
        elif sandbox.started is not None and not was_started:
            self._schedule(sandbox)

    def _pump(self, sandbox: Sandbox, output: Output, events: int) -> None:
        was_truncated = output.truncated
        pipe = output.pipe
        more = bool(events & select.EPOLLIN) and output.pump(self._host.null)
        if not more and pipe is not None:
            self.forget(pipe)
            output.close_pipe()
        if output.error is not None:
            sandbox.kill("setup")
        elif output.truncated and not was_truncated and not sandbox.request.drop_output:
            sandbox.kill("output")

    def _out_of_memory(self, sandbox: Sandbox) -> None:
        """v1: the kernel has killed, or is about to kill, one process; the others must not go on without it."""
        if sandbox.oom_event is not None:
            try:
                os.read(sandbox.oom_event, 8)
            except BlockingIOError:  # news of a descriptor that had its number before
                return
            self.forget(sandbox.oom_event)
        sandbox.kill("memory")

    def _finish(self, sandbox: Sandbox) -> None:
        """Nothing of the tenant's is alive any more: answer. Once only."""
        client = self._sandboxes.pop(sandbox, None)
        if client is None:
            return
        for fd in (sandbox.oom_event, sandbox.stdout.pipe, sandbox.stderr.pipe):
            if fd is not None:
                self.forget(fd)
        answer, descriptors = sandbox.finish()
        number = sandbox.request.id
        client.runs.pop(number, None)
        if client not in self._clients:
            return
        if sandbox.failure is not None and sandbox.reason in (None, "setup") and not answer["oom_kills"]:
            _say_why("run", sandbox.request.name, sandbox.failure)
            self._answer(client, _refusal(number, sandbox.failure))
        else:
            self._answer(client, {"re": number, "ok": answer}, tuple(descriptors))

    def _bury(self, sandbox: Sandbox) -> None:
        """PID 1 has ended, and the kernel has ended all others in its namespace: answer if we have not, and free."""
        if not sandbox.cell.reap(wait=False):  # news of a descriptor that had its number before
            return
        sandbox.read_control()
        self._finish(sandbox)
        self.forget(sandbox.cell.control.fileno())
        self.forget(sandbox.cell.pidfd)
        sandbox.close()
        self._unburied -= 1


def _peer(connection: socket.socket) -> int:
    """User id of the process at the other end, in the kernel's word."""
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def _refusal(number: object, refusal: Refused) -> dict[str, Any]:
    """Of what the client wrote only a number comes back: an answer must always be short and sendable."""
    message = str(refusal).encode(errors="backslashreplace").decode()[:_LONGEST_REASON]
    is_number = type(number) is int and abs(number) <= _HIGHEST_NUMBER
    return {"re": number if is_number else None, "error": {"kind": refusal.kind, "message": message}}


def _say_why(operation: str, name: str, refusal: Refused) -> None:
    """Tell the operator what is no fault of the client's, and by which name the server's log knows that request."""
    if refusal.kind == "fault":
        say(f"{operation} failed, request {name}: {ascii(str(refusal))[1:-1][:_LONGEST_REASON]}")


def stop_on_signals(server: Server) -> None:
    """SIGTERM and SIGINT end the server in good order.

    The kernel's signal writes to the loop's own pipe: one that lands just before epoll_wait would else be noticed with
    the next event only.
    """
    signal.set_wakeup_fd(server.wakeup_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
