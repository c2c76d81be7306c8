"""The warden's loop: one thread, one epoll, no waiting anywhere else.

Clients come over a UNIX socket and are told by the kernel who they are (SO_PEERCRED). Each run's control socket, output
pipes, end and deadlines are watched here. What a client asked for ends with the client.
"""

import contextlib
import heapq
import os
import select
import signal
import socket
import stat
import struct
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import protocol
from .cell import Cell, Host
from .mason import Mason
from .request import Refused, RunRequest
from .sandbox import Output, Sandbox

__all__ = ["Server"]

_UCRED = struct.Struct("iII")  # pid, uid, gid: struct ucred of unix(7)
_MOST_RUNS = 4096  # a client's at once
_RETRY_S = 0.05  # for groups that the kernel still held
_NO_SPARES_S = 1.0  # after one could not be made
_LONGEST_REASON = 4000  # characters
_MOST_WAITING = 64  # answers that a client has not taken: what it asks for meanwhile stays in its socket


@dataclass(eq=False)
class _Client:
    connection: socket.socket
    runs: dict[int, Sandbox] = field(default_factory=dict)
    waiting: dict[int, "_Waiting"] = field(default_factory=dict)
    """Runs for which a cell is being made."""
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

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


class Server:
    """Serves clients until `stop` is called, or the last client is gone and `until_idle` is set."""

    def __init__(
        self,
        host: Host,
        *,
        report: dict[str, Any],
        listener: socket.socket | None,
        clients: list[socket.socket],
        allowed_uids: frozenset[int],
        until_idle: bool,
        mason: Mason,
        cells: list[Cell],
        most_cells: int,
    ) -> None:
        self._host = host
        self._report = report
        self._listener = listener
        self._allowed_uids = allowed_uids
        self._until_idle = until_idle
        self._mason = mason
        self._cells = cells
        self._waiting: deque[_Waiting] = deque()
        self._most_cells = most_cells
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._clients: set[_Client] = set()
        self._sandboxes: dict[Sandbox, _Client] = {}
        self._timers: list[tuple[float, int, Sandbox]] = []
        self._count = 0
        self._unburied = 0
        self._no_spares_until = 0.0
        self._deaf_until: float | None = None
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watch(self._wake_read, lambda _: self._woken())
        mason.channel.setblocking(False)
        self._watch(mason.channel.fileno(), lambda _: self._receive_cells())
        if listener is not None:
            listener.setblocking(False)
            self._watch(listener.fileno(), lambda _: self._accept())
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
            if self._until_idle and had_client and not self._clients:
                break
            self._turn()
        for client in list(self._clients):
            self._dismiss(client)
        self._forget(self._mason.channel.fileno())
        self._mason.close()
        for cell in self._cells:
            cell.discard()
        deadline = time.monotonic() + 5.0
        while (self._unburied or self._host.cgroups.held) and time.monotonic() < deadline:
            self._turn()
        if self._listener is not None:
            self._listener.close()

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self) -> None:
        for fd, events in self._epoll.poll(self._until_next_timer()):
            handler = self._handlers.get(fd)  # gone when an earlier event of this turn closed it
            if handler is not None:
                handler(events)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, number, sandbox = heapq.heappop(self._timers)
            if sandbox in self._sandboxes:
                heapq.heappush(self._timers, (sandbox.check(now), number, sandbox))
        if len(self._timers) > 64 + 4 * len(self._sandboxes):  # most belong to runs that are over
            self._timers = [timer for timer in self._timers if timer[2] in self._sandboxes]
            heapq.heapify(self._timers)
        if self._deaf_until is not None and self._deaf_until <= now and self._listener is not None:
            self._deaf_until = None
            self._watch(self._listener.fileno(), lambda _: self._accept())
        held = self._host.cgroups.held
        if held:
            held[:] = [group for group in held if not group.close()]

    def _until_next_timer(self) -> float:
        waits = [_RETRY_S] if self._host.cgroups.held or self._deaf_until is not None else []
        if self._timers:
            waits.append(max(0.0, self._timers[0][0] - time.monotonic()))
        return min(waits, default=-1)

    def _watch(self, fd: int, handler: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def _forget(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 64)

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:  # gone again, or we are out of descriptors: look again when some may have come free
            self._forget(self._listener.fileno())
            self._deaf_until = time.monotonic() + _RETRY_S
            return
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, uid, _ = _UCRED.unpack(credentials)
        if uid not in self._allowed_uids:
            connection.close()
            return
        self._welcome(connection)

    def _welcome(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        client = _Client(connection)
        self._clients.add(client)
        self._watch(connection.fileno(), lambda events: self._attend(client, events))

    def _attend(self, client: _Client, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(client)
        if client.is_behind and events & select.EPOLLHUP:
            self._dismiss(client)  # gone without having taken its answers
        while client in self._clients and not client.is_behind:
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
                traceback.print_exc()
                self._dismiss(client)
            finally:
                for fd in descriptors:
                    os.close(fd)

    def _obey(self, client: _Client, message: dict[str, Any], descriptors: list[int]) -> None:
        operation = message.get("op")
        number = message.get("id", 0)
        if operation == "run":
            try:
                self._run(client, RunRequest.parse(message, len(descriptors)), descriptors)
            except Refused as refusal:
                self._answer(client, _refusal(number, refusal))
        elif operation == "cancel":
            if isinstance(number, int):
                self._cancel(client, number)
        elif operation == "hello":
            if message.get("version") != protocol.VERSION:
                other = Refused("unsupported", f"this warden speaks version {protocol.VERSION}")
                self._answer(client, _refusal(number, other))
            else:
                self._answer(client, {"re": number, "ok": self._report})
        else:
            self._answer(client, _refusal(number, Refused("invalid", f"unknown operation {operation!r}")))

    def _answer(self, client: _Client, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send, or keep for later; the descriptors stay the caller's."""
        if not client.outbox:
            try:
                protocol.send(client.connection, message, descriptors)
            except BlockingIOError:
                pass
            except OSError:
                self._dismiss(client)
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
            client.outbox.popleft()
            for fd in descriptors:
                os.close(fd)
        self._watch_client(client)

    def _dismiss(self, client: _Client) -> None:
        """The client is gone: so are its runs."""
        if client not in self._clients:
            return
        self._clients.discard(client)
        self._forget(client.connection.fileno())
        client.connection.close()
        for _, descriptors in client.outbox:
            for fd in descriptors:
                os.close(fd)
        client.outbox.clear()
        for number in [*client.waiting, *client.runs]:
            self._cancel(client, number)

    # ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, client: _Client, request: RunRequest, descriptors: list[int]) -> None:
        if request.id in client.runs or request.id in client.waiting:
            raise Refused("invalid", f"id {request.id} is in use")
        if len(client.runs) + len(client.waiting) >= _MOST_RUNS:
            raise Refused("unavailable", f"{_MOST_RUNS} runs at once are too many")
        for fd in descriptors:
            # A directory would be a way out of the sandbox, a socket or a device one into something else.
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Refused("invalid", "input and bundles must be regular files")
        while (spare := next((cell for cell in self._cells if cell.image == request.image), None)) is not None:
            self._cells.remove(spare)
            self._refill()
            if self._begin(client, request, spare, descriptors):
                return
        with contextlib.suppress(BlockingIOError):  # many are on order: `_refill` goes on as they come in
            self._mason.order(request.image)
        waiting = _Waiting(client, request, [])
        try:
            for fd in descriptors:
                waiting.descriptors.append(os.dup(fd))
        except OSError as error:
            waiting.close()
            raise Refused("unavailable", f"cannot keep the input: {error}") from error
        client.waiting[request.id] = waiting
        self._waiting.append(waiting)

    def _receive_cells(self) -> None:
        """Give new cells to the runs that wait for one, or keep them ready."""
        try:
            for made in self._mason.delivered():
                if isinstance(made, Cell) and not self._serve_waiting(made):
                    if len(self._cells) < self._most_cells:
                        self._cells.append(made)
                    else:  # ordered for a run that was cancelled meanwhile
                        self._throw_away(made)
                elif isinstance(made, Refused) and self._waiting:
                    waiting = self._next_waiting(self._waiting[0].request.image)
                    if waiting is not None:
                        self._answer(waiting.client, _refusal(waiting.request.id, made))
                        waiting.close()
                elif isinstance(made, Refused):
                    self._no_spares_until = time.monotonic() + _NO_SPARES_S
        except EOFError:
            self.stop()  # whoever started us will start us again
        self._refill()

    def _throw_away(self, cell: Cell) -> None:
        cell.kill()
        self._unburied += 1
        self._watch(cell.pidfd, lambda _: self._clear_away(cell))

    def _clear_away(self, cell: Cell) -> None:
        self._forget(cell.pidfd)
        cell.discard()  # it has ended: there is nothing to wait for
        self._unburied -= 1

    def _serve_waiting(self, cell: Cell) -> bool:
        waiting = self._next_waiting(cell.image)
        if waiting is None:
            return False
        try:
            if not self._begin(waiting.client, waiting.request, cell, waiting.descriptors):
                text = "a sandbox died before it was used"
                self._answer(waiting.client, _refusal(waiting.request.id, Refused("unavailable", text)))
        except Refused as refusal:
            self._answer(waiting.client, _refusal(waiting.request.id, refusal))
        finally:
            waiting.close()
        return True

    def _next_waiting(self, image: str) -> _Waiting | None:
        waiting = next((one for one in self._waiting if one.request.image == image), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            del waiting.client.waiting[waiting.request.id]
        return waiting

    def _refill(self) -> None:
        """Have cells made, for those who wait and ahead of demand; the latter not where one has just failed."""
        spares = self._most_cells if time.monotonic() >= self._no_spares_until else 0
        missing = spares + len(self._waiting) - len(self._cells) - self._mason.under_way
        with contextlib.suppress(Refused, BlockingIOError):
            for _ in range(missing if not self._stopping else 0):
                self._mason.order("host")

    def _begin(self, client: _Client, request: RunRequest, cell: Cell, descriptors: list[int]) -> bool:
        """Send a cell on its errand; False when the cell turns out to be dead."""
        sandbox = Sandbox(request=request, cell=cell)
        try:
            sandbox.begin(descriptors)
        except (OSError, protocol.ProtocolError) as error:
            sandbox.kill("setup")
            os.waitpid(cell.pid, 0)
            sandbox.close()
            if isinstance(error, protocol.ProtocolError):  # longer by a few words than what came in
                raise Refused("invalid", str(error)) from error
            return False
        client.runs[request.id] = sandbox
        self._sandboxes[sandbox] = client
        self._unburied += 1
        self._watch(cell.control.fileno(), lambda _: self._hear(sandbox))
        self._watch(cell.pidfd, lambda _: self._bury(sandbox))
        for output in (sandbox.stdout, sandbox.stderr):
            assert output.pipe is not None
            self._watch(output.pipe, lambda events, output=output: self._pump(sandbox, output, events))  # type: ignore[misc]
        if sandbox.oom_event is not None:
            self._watch(sandbox.oom_event, lambda _: self._out_of_memory(sandbox))
        self._schedule(sandbox)
        return True

    def _cancel(self, client: _Client, number: int) -> None:
        waiting = client.waiting.pop(number, None)
        if waiting is not None:
            self._waiting.remove(waiting)  # the cell that was ordered for it will be kept ready
            waiting.close()
            self._answer(client, _refusal(number, Refused("conflict", "cancelled before it began")))
        sandbox = client.runs.get(number)
        if sandbox is not None:
            sandbox.kill("cancelled")

    def _schedule(self, sandbox: Sandbox) -> None:
        self._count += 1  # a tie-breaker: sandboxes do not compare
        heapq.heappush(self._timers, (sandbox.check(time.monotonic()), self._count, sandbox))

    def _hear(self, sandbox: Sandbox) -> None:
        was_started = sandbox.started is not None
        if not sandbox.read_control():
            self._forget(sandbox.cell.control.fileno())  # the other end is closed: its end comes by the pidfd
        if sandbox.alone:
            self._finish(sandbox)  # no need to wait until the kernel has taken PID 1's namespaces apart
        elif sandbox.started is not None and not was_started:
            self._schedule(sandbox)

    def _pump(self, sandbox: Sandbox, output: Output, events: int) -> None:
        was_truncated = output.truncated
        pipe = output.pipe
        more = bool(events & select.EPOLLIN) and output.pump(self._host.null)
        if not more and pipe is not None:
            self._forget(pipe)
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
            self._forget(sandbox.oom_event)
        sandbox.kill("memory")

    def _finish(self, sandbox: Sandbox) -> None:
        """Nothing of the tenant's is alive any more: answer. Once only."""
        client = self._sandboxes.pop(sandbox, None)
        if client is None:
            return
        for fd in (sandbox.oom_event, sandbox.stdout.pipe, sandbox.stderr.pipe):
            if fd is not None:
                self._forget(fd)
        answer, descriptors = sandbox.finish()
        number = sandbox.request.id
        client.runs.pop(number, None)
        if client not in self._clients:
            return
        if sandbox.failure is not None and sandbox.reason in (None, "setup") and not answer["oom_kills"]:
            self._answer(client, _refusal(number, sandbox.failure))
        else:
            self._answer(client, {"re": number, "ok": answer}, tuple(descriptors))

    def _bury(self, sandbox: Sandbox) -> None:
        """PID 1 has ended, and the kernel has ended all others in its namespace: answer if we have not, and free."""
        if os.waitpid(sandbox.cell.pid, os.WNOHANG)[0] == 0:  # news of a descriptor that had its number before
            return
        sandbox.read_control()
        self._finish(sandbox)
        self._forget(sandbox.cell.control.fileno())
        self._forget(sandbox.cell.pidfd)
        sandbox.close()
        self._unburied -= 1


def _refusal(number: object, refusal: Refused) -> dict[str, Any]:
    """Of what the client wrote only a number comes back as it was: an answer must always be short and sendable."""
    message = str(refusal).encode(errors="backslashreplace").decode()[:_LONGEST_REASON]
    return {"re": number if type(number) is int else None, "error": {"kind": refusal.kind, "message": message}}


def stop_on_signals(server: Server) -> None:
    """SIGTERM and SIGINT end the server in good order.

    The kernel's signal writes to the loop's own pipe: one that lands just before epoll_wait would else be noticed with
    the next event only.
    """
    signal.set_wakeup_fd(server.wakeup_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
