"""The sandboxes that live: a registry that outlasts its clients, and what clients may ask of it.

A client that goes away takes nothing with it but its questions. Deadlines, graces and the time for which the output of
what has ended is kept are held here, so they hold whatever becomes of the server.
"""

import contextlib
import math
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from . import protocol
from .agenda import Agenda
from .cell import Cell
from .disks import Disks, Reply
from .egress import Egress
from .fields import Refused, is_file, number, said, whole
from .pools import Pools
from .resident import MAIN, Process, Resident, Wait
from .resident_output import Answer, Loop, Outputs, Refuse
from .resident_request import SpawnRequest, StayRequest, ids_of, name_of, port_of, signal_of, terminal_of

__all__ = ["Arrival", "Client", "Residents"]

_MOST = 4096
_UP_S = 20.0
_PAGE = 200
_PAGE_BYTES = 96 << 10
_BREATH_S = 0.02
"""A cell that was taken is replaced after this time, while others are ready: first its own processes are to start."""
_BUSY_S = 0.05
"""A sandbox whose PID 1 takes no orders now is given those that must not be lost after this time."""
_LONGEST_S = 366 * 86400.0
_MOST_QUESTIONS = 1024
"""Clients' questions about one sandbox, or one process of it, that wait for something to tell."""
_NONSENSE = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, Refused, TypeError, ValueError)
"""What comes of believing a message that is not as it should be, or its descriptors."""


class Client(Protocol):
    """Who asks."""

    uid: int


class Arrival:
    """A sandbox for which a cell is being made."""

    def __init__(self, residents: "Residents", request: StayRequest, owner: int, wait: Wait, layer: list[int]) -> None:
        self.residents = residents
        self.request = request
        self.owner = owner
        self.wait = wait
        self.layer = layer

    def supply(self, cell: Cell) -> None:
        """A cell is there."""
        self.residents.arrive(self, cell)

    def refuse(self, refusal: Refused) -> None:
        """It could not be made."""
        self.residents.turn_away(self, refusal)

    def close(self) -> None:
        while self.layer:
            os.close(self.layer.pop())


class Residents:
    """All sandboxes that live."""

    def __init__(
        self, pools: Pools, loop: Loop, *, answer: Answer, refuse: Refuse, egress: Egress | None, disks: Disks
    ) -> None:
        """Begin with none.

        Args:
            answer: sends a client a message with descriptors, which stay ours.
            refuse: sends a client the reason why its question cannot be answered.
            egress: who connects sandboxes to the outside; `None` where nobody does.
            disks: who has what sandboxes stand on beside the host image.
        """
        self._pools = pools
        self._loop = loop
        self._answer = answer
        self._refuse = refuse
        self._agenda: Agenda[Resident] = Agenda()
        self._outputs = Outputs(loop, answer, refuse, self._agenda.put)
        self._egress = egress
        self._disks = disks
        self._all: dict[str, Resident] = {}
        self._arrivals: dict[str, Arrival] = {}
        self.unburied = 0
        """How many have processes."""
        self._operations: dict[str, Callable[[Any, dict[str, Any], list[int]], None]] = {
            "create": self._create,
            "exec": self._exec,
            "open": self._open,
            "wait": self._wait,
            "leave": self._leave,
            "close_stdin": self._close_stdin,
            "signal": self._signal,
            "processes": self._processes,
            "process_ended": self._process_ended,
            "resize": self._resize,
            "forget": self._forget,
            "inspect": self._inspect,
            "inventory": self._inventory,
            "ended": self._ended,
            "stop": self._stop,
            "kill": self._kill,
            "extend": self._extend,
            "pause": self._pause,
            "resume": self._resume,
            "remove": self._remove,
            "agent": self._agent,
            "dial": self._dial,
        }

    # ── for the server ──────────────────────────────────────────────────────────────────────────────────────────

    def obey(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> bool:
        """Do what *client* asks; False when it is none of ours. Descriptors stay the caller's.

        Raises:
            Refused: it cannot be done.
        """
        operation = self._operations.get(str(message.get("op")))
        if operation is None:
            return False
        whole(message, "id", 1 << 53, least=0)
        operation(client, message, descriptors)
        return True

    @property
    def until_next(self) -> float:
        """When `check` is to be called."""
        return self._agenda.next

    @property
    def living(self) -> int:
        """How many live, or are about to."""
        return self.unburied + len(self._arrivals)

    def check(self, now: float) -> None:
        """Enforce what has come due."""
        for resident in self._agenda.take(now):
            if self._all.get(resident.name) is resident:
                self._agenda.put(resident, max(self._check(resident, now), now + 0.001))

    def dismissed(self, client: Client) -> None:
        """A client is gone, and its questions with it."""
        for arrival in [one for one in self._arrivals.values() if one.wait.client is client]:
            del self._arrivals[arrival.request.name]  # the cell that was ordered for it will be kept ready
            with contextlib.suppress(ValueError):
                self._pools.empty.waiting.remove(arrival)
            arrival.close()
        for resident in list(self._all.values()):
            resident.enders = [one for one in resident.enders if one.client is not client]
            resident.removers = [one for one in resident.removers if one.client is not client]
            resident.asked = {n: one for n, one in resident.asked.items() if one.client is not client}
            for process in resident.processes.values():
                process.waits = [one for one in process.waits if one.client is not client]
                process.enders = [one for one in process.enders if one.client is not client]
                gone = [key for key in process.readers if key[0] is client]
                for key in gone:
                    del process.readers[key]
                if gone:
                    self._outputs.go_on(resident, process)
            if resident.creator is not None and resident.creator.client is client:
                resident.kill("kill")  # nobody knows of it

    def cancel(self, client: Client, number_: int) -> None:
        """*client* does not want to know any more."""
        for resident in self._all.values():
            waiting = [resident.enders]
            for process in resident.processes.values():
                waiting += (process.waits, process.enders)
            for waits in waiting:
                for wait in [one for one in waits if one.client is client and one.number == number_]:
                    waits.remove(wait)
                    self._refuse(client, number_, Refused("conflict", "cancelled"))

    def close(self) -> None:
        """End all."""
        for arrival in list(self._arrivals.values()):
            arrival.close()
        self._arrivals.clear()
        for resident in list(self._all.values()):
            if resident.buried is None:
                resident.kill("kill")
            else:
                self._drop(resident)

    # ── life and death ──────────────────────────────────────────────────────────────────────────────────────────

    def _create(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        request = StayRequest.parse(message, len(descriptors)).of_user(client.uid)
        if request.name in self._all or request.name in self._arrivals:
            raise Refused("conflict", f"there is a sandbox {request.name} already")
        if len(self._all) + len(self._arrivals) >= _MOST and self._count_of(client.uid) >= _MOST:
            raise Refused("unavailable", f"{_MOST} sandboxes at once are too many")
        if request.outgoing and self._egress is None:
            raise Refused("unsupported", "this warden cannot connect sandboxes to the network")
        if request.outgoing and self._egress is not None and self._egress.is_lost:
            why = "the process that connects sandboxes to the network has died, and comes back once no sandbox lives"
            raise Refused("unavailable", f"{why}; a sandbox without network can be made")
        if request.disk is not None and self.uses_of(request.disk):
            raise Refused("conflict", f"disk {request.disk} is in use")
        for fd in descriptors:
            if not is_file(fd):
                raise Refused("invalid", "a layer must be a regular file")
        pool = self._pools.choose(request.image, None)
        layer: list[int] = []
        try:
            for fd in descriptors:
                layer.append(os.dup(fd))
        except OSError as error:
            raise Refused("unavailable", f"cannot keep the layer: {error}") from error
        arrival = Arrival(self, request, client.uid, Wait(client, message["id"]), layer)
        self._arrivals[request.name] = arrival
        while (cell := self._pools.take(pool)) is not None:
            if self._begin(arrival, cell):
                self._pools.refill(pool, breath_s=_BREATH_S)
                return
        pool.waiting.append(arrival)
        self._pools.refill(pool)

    def _count_of(self, uid: int) -> int:
        """How many a user has: none can take the room of another's."""
        return sum(one.owner == uid for one in self._all.values()) + sum(
            one.owner == uid for one in self._arrivals.values()
        )

    def arrive(self, arrival: Arrival, cell: Cell) -> None:
        """A cell has been made for it."""
        if not self._begin(arrival, cell):
            self.turn_away(arrival, Refused("unavailable", "a sandbox died before it was used"))

    def turn_away(self, arrival: Arrival, refusal: Refused) -> None:
        """There is no cell for it."""
        self._arrivals.pop(arrival.request.name, None)
        arrival.close()
        self._refuse(arrival.wait.client, arrival.wait.number, refusal)

    def _begin(self, arrival: Arrival, cell: Cell) -> bool:
        """Tell a cell to stay; False when it turns out to be dead."""
        resident = Resident(request=arrival.request, owner=arrival.owner, cell=cell, creator=arrival.wait)
        self._loop.forget(cell.control.fileno())
        try:
            if arrival.request.has_ground:
                self._fetch_ground(resident, arrival.layer)
            else:
                resident.begin(arrival.layer)
        except (OSError, protocol.ProtocolError):
            cell.kill()
            cell.reap()
            cell.free()
            return False
        del self._arrivals[resident.name]
        arrival.close()
        if arrival.request.lifetime_s is not None:
            resident.deadline = resident.began + arrival.request.lifetime_s
        self._all[resident.name] = resident
        self.unburied += 1
        self._loop.watch(cell.control.fileno(), lambda _: self._hear(resident))
        self._loop.watch(cell.pidfd, lambda _: self._bury(resident))
        self._agenda.put(resident, resident.began + _UP_S)
        return True

    def _fetch_ground(self, resident: Resident, layer: list[int]) -> None:
        """Have what it stands on shown with its own owners, and only then tell its PID 1 to stay."""
        request, kept = resident.request, [os.dup(fd) for fd in layer]

        def begin(reply: Reply, descriptors: list[int]) -> None:
            try:
                if resident.ended is not None:
                    return  # meanwhile; its burial tells
                if isinstance(reply, Refused):
                    resident.refusal = reply
                    resident.kill("failure")
                    return
                try:
                    resident.begin([*kept, *descriptors])
                except (OSError, protocol.ProtocolError) as error:
                    resident.failure = str(error)
                    resident.kill("failure")
            finally:
                for fd in kept:
                    os.close(fd)

        mounts = [{"disk": one.disk, "read_only": one.read_only, "whole": one.whole} for one in request.mounts]
        ground = {"layers": list(request.layers), "disk": request.disk, "mounts": mounts}
        try:
            self._disks.mount(ground, resident.cell.pid, resident.cell.pidfd, begin)
        except Refused as error:
            refusal = error
            self._loop.put_off(lambda: begin(refusal, []))

    def uses_of(self, disk: str) -> list[str]:
        """Sandboxes that live, or are about to, and use a disk or layer."""
        living = [one.request for one in self._all.values() if one.buried is None]
        arriving = [one.request for one in self._arrivals.values()]
        return [request.name for request in (*living, *arriving) if disk in request.disks]

    def writers_of(self, disk: str) -> list[str]:
        """Those of them that may write to it."""
        requests = [one.request for one in self._all.values() if one.buried is None]
        requests += [one.request for one in self._arrivals.values()]
        return [request.name for request in requests if request.disks.get(disk) is False]

    def hold(self, client: Client, name: str) -> None:
        """Have a sandbox of the client's stand still until `let_go`. Raises Refused."""
        resident = self._all.get(name)
        if resident is None or not resident.is_for(client.uid):
            raise Refused("not_found", f"there is no sandbox {name}")
        resident.demand_alive()
        resident.hold()

    def let_go(self, name: str) -> None:
        """Take a `hold` back; nothing happens where the sandbox is gone."""
        resident = self._all.get(name)
        if resident is not None and resident.holds and resident.buried is None:
            with contextlib.suppress(OSError):  # its group is gone with it
                resident.let_go()

    def _check(self, resident: Resident, now: float) -> float:
        """Enforce what has come due of one; returns when to look again."""
        if resident.buried is not None:
            gone_at = resident.buried + resident.request.keep_s
            if now >= gone_at:
                self._drop(resident)
                return math.inf
            return min(gone_at, self._outputs.lose_patience(resident, now))
        if resident.up is None and resident.ended is None and now >= resident.began + _UP_S:
            resident.failure = f"the sandbox was not ready within {_UP_S:g} s"
            resident.kill("failure")
        if resident.ended is not None:
            return math.inf  # its burial schedules what follows
        if resident.paused_at is None and resident.deadline is not None and now >= resident.deadline:
            resident.kill("deadline")
            return math.inf
        if resident.stop_at is not None and now >= resident.stop_at:
            resident.kill("stop")
            return math.inf
        deadline = resident.deadline if resident.paused_at is None else None
        due = [one for one in (deadline, resident.stop_at) if one is not None]
        if resident.up is None:
            due.append(resident.began + _UP_S)
        if not resident.kill_late():
            due.append(now + _BUSY_S)
        return min([*due, self._outputs.lose_patience(resident, now)])

    def _hear(self, resident: Resident) -> None:
        news, more = resident.hear()
        # Once PID 1 is gone, what is not known to have ended counts as killed.
        later = self._loop.put_off if more else _now
        for message, descriptors in news:
            try:
                self._learn(resident, message, descriptors, later)
            except _NONSENSE:  # PID 1 does not speak our language: it is not itself any more
                more = False
            finally:
                for fd in descriptors:
                    os.close(fd)
        if not more:
            self._loop.forget(resident.cell.control.fileno())
            resident.kill(resident.why_dead())

    def _learn(
        self,
        resident: Resident,
        message: dict[str, Any],
        descriptors: list[int],
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        """One piece of news of PID 1's; takes from *descriptors* what it keeps."""
        if "exited" in message:
            number_, code = int(message["exited"]), os.waitstatus_to_exitcode(int(message["status"]))
            at, now = float(message["at"]), time.monotonic()
            at = at if 0 <= at <= now else now
            is_full = message["disk_full"] is True
            # What it printed last became ready before this did, in the order in which it did; we may have been told
            # of this out of turn, together with something earlier of PID 1's.
            later(lambda: self._exited(resident, number_, code, at, disk_full=is_full))
        elif "spawned" in message:
            self._spawned(resident, message, descriptors)
        elif "dialled" in message:
            if message["dialled"] in resident.by_number:
                raise ValueError("that is a process, which nobody dialled")
            if descriptors and not (len(descriptors) == 1 and stat.S_ISSOCK(os.fstat(descriptors[0]).st_mode)):
                raise ValueError("not a socket")
            wait = resident.asked.pop(message["dialled"], None)
            if wait is None:
                return
            if descriptors:
                self._answer(wait.client, {"re": wait.number, "ok": {}}, tuple(descriptors))
            else:
                why = f"port not reachable: {said(message.get('refused'), 200)}"
                self._refuse(wait.client, wait.number, Refused("unavailable", why))
        elif "up" in message:
            self._is_up(resident, float(message["up"]), descriptors)
        elif "failed" in message:
            resident.failure = said(message["failed"], 2000)
            kind = {"ground": "conflict", "room": "unavailable"}.get(said(message.get("where"), 20))
            if kind is not None:  # made so by whoever wrote to the disks
                why = f"the sandbox cannot stand on its image, disk and volumes: {resident.failure}"
                resident.refusal = Refused(kind, why)
            resident.kill("failure")

    def _is_up(self, resident: Resident, at: float, listeners: list[int]) -> None:
        if resident.up is not None:
            return
        resident.up = at
        if listeners and resident.request.outgoing and self._egress is not None:
            passed = tuple(listeners)
            listeners.clear()  # they are the egress's to close
            try:
                self._egress.open(resident.name, resident.request.policy, passed)
            except Refused as refusal:
                resident.failure = str(refusal)
                resident.kill("failure")
                return
        wait, resident.creator = resident.creator, None
        self._agenda.put(resident, time.monotonic())
        if wait is not None:
            self._answer(wait.client, {"re": wait.number, "ok": resident.info(in_full=False)}, ())

    def _bury(self, resident: Resident) -> None:
        """PID 1 has ended, and the kernel has ended all others in its namespace."""
        cell = resident.cell
        if not cell.reap(wait=False):  # news of a descriptor that had its number before
            return
        pidfd = cell.pidfd
        while True:
            news, _ = resident.hear()
            if not news:
                break
            for message, descriptors in news:
                with contextlib.suppress(*_NONSENSE):
                    if "exited" in message or "failed" in message:
                        self._learn(resident, message, descriptors, _now)
                for fd in descriptors:
                    os.close(fd)
        self._loop.forget(cell.control.fileno())
        self._loop.forget(pidfd)
        self.unburied -= 1
        if self._egress is not None and resident.request.outgoing:
            resident.traffic = self._egress.close(resident.name)
        resident.settle_end()
        resident.kill_late()  # they are dead
        cell.close_outputs()
        cell.free()
        for process in list(resident.processes.values()):
            process.close_stdin()
            self._tell_end(process)
            for log in process.logs:
                self._outputs.pump(resident, process, log)
        for wait in resident.asked.values():
            self._refuse(wait.client, wait.number, Refused("conflict", f"sandbox {resident.name} has ended"))
        resident.asked.clear()
        if resident.creator is not None:
            wait, resident.creator = resident.creator, None
            why = resident.failure or "it was ended before it was up"
            refusal = resident.refusal or Refused("fault", f"the sandbox could not be made: {why}")
            self._refuse(wait.client, wait.number, refusal)
            self._drop(resident)
            return
        for wait in resident.enders:
            self._answer(wait.client, {"re": wait.number, "ok": resident.info()}, ())
        resident.enders.clear()
        if resident.removers:
            self._drop(resident)  # before they hear of it: it is gone then
        for wait in resident.removers:
            self._answer(wait.client, {"re": wait.number, "ok": {}}, ())
        resident.removers.clear()
        self._agenda.put(resident, time.monotonic() + resident.request.keep_s)

    def _drop(self, resident: Resident) -> None:
        """Forget one that is buried."""
        self._agenda.drop(resident)
        if self._all.get(resident.name) is resident:
            del self._all[resident.name]
        for process in list(resident.processes.values()):
            self._outputs.drop(resident, process)

    # ── processes and their output ──────────────────────────────────────────────────────────────────────────────

    def _exec(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        request = SpawnRequest.parse(message)
        least = whole(message, "gather", 1 << 40, least=0) if "gather" in message else 0
        wait = Wait(client, message["id"], least=least, is_opening=True)
        self._outputs.reader_of(client, message)  # refused, if at all, before there is a process
        process = resident.spawn(
            request,
            wait,
            watch=lambda process: self._outputs.watch_all(resident, process),
            drop=lambda process: self._outputs.drop(resident, process),
        )
        wait.reader = self._outputs.admit(client, message, process)
        process.is_once = least > 0

    def _spawned(self, resident: Resident, message: dict[str, Any], descriptors: list[int]) -> None:
        process = resident.by_number.get(message["spawned"])
        if process is None:
            return
        if process.started or process.end is not None:
            raise ValueError("it was started before")
        pid = whole({"pid": message.get("pid", 0)}, "pid", 1 << 22, least=0)
        wait = resident.asked.pop(process.number, None)
        if "busy" in message:
            self._outputs.drop(resident, process)
            if wait is not None:
                self._refuse(wait.client, wait.number, Refused("unavailable", said(message["busy"], 500)))
            return
        process.started = True
        process.pid = pid
        if process.is_terminal and descriptors:
            if not os.isatty(descriptors[0]):
                raise ValueError("not a terminal")
            os.set_blocking(descriptors[0], False)
            master = descriptors.pop(0)
            process.stdin = process.logs[0].source = master
            self._outputs.watch(resident, process, process.logs[0])
        if "refused" in message:
            process.end = {
                "outcome": "exited",
                "exit_code": 127 if message.get("code") == 127 else 126,
                "refusal": "cwd" if message.get("cwd") is True else "program",
                "ended_at": time.time(),
            }
            log = process.logs[0 if process.is_terminal else 1]
            log.put(f"{said(message['refused'], 900)}\n".encode(), process.marks)
            if process.name == MAIN:
                resident.main_end = process.end
        if wait is not None and wait.least:
            self._outputs.wait(resident, process, wait)
        elif wait is not None:
            self._outputs.hand_out(wait, process)
        if process.end is not None:
            self._end_process(resident, process)

    def _exited(self, resident: Resident, number_: int, code: int, at: float, *, disk_full: bool) -> None:
        process = resident.by_number.get(number_)
        if process is not None and process.end is None:
            resident.exited(process, code, at, disk_full=disk_full)
            self._end_process(resident, process)

    def _end_process(self, resident: Resident, process: Process) -> None:
        """A process has ended: take what it still printed, tell, and with the main one end the sandbox."""
        self._tell_end(process)
        for log in process.logs:
            self._outputs.pump(resident, process, log)
        if process.name == MAIN:
            resident.kill("stop" if resident.stop_at is not None else "itself")
        else:
            process.close_stdin()

    def _tell_end(self, process: Process) -> None:
        for wait in process.enders:
            self._answer(wait.client, {"re": wait.number, "ok": process.facts().info()}, ())
        process.enders.clear()

    def _open(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        process = self._find(client, message).process(name_of(message, "process"))
        if not process.started and process.end is None:
            raise Refused("unavailable", "the process is being started")
        reader = self._outputs.admit(client, message, process)
        position = process.position(reader, 1)
        # What is there by now is told at once, so that nobody has to guess by the time it takes whether there is more.
        # An end is told to who has read so far, and asks.
        told = None if position is None else {**position, "end": None}
        self._outputs.hand_out(Wait(client, message["id"], reader), process, told)

    def _wait(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        process = resident.process(name_of(message, "process"))
        given = message.get("at")
        if not isinstance(given, list) or len(given) != 2:
            raise Refused("invalid", "at: must be two offsets")
        at = [whole({"at": one}, "at", 1 << 62, least=0) for one in given]
        if any(one > end for one, end in zip(at, process.ends, strict=True)):
            raise Refused("invalid", "at: lies beyond what the process has printed")
        least = whole(message, "least", 1 << 40) if "least" in message else 1
        reader = self._outputs.admit(client, message, process)
        reader.ask(at, process.starts, process.ends)
        self._outputs.go_on(resident, process)
        self._outputs.wait(resident, process, Wait(client, message["id"], reader, least))

    def _leave(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        process = resident.processes.get(name_of(message, "process"))
        key = (client, whole(message, "reader", 1 << 53, least=0))
        if process is not None and key in process.readers:
            del process.readers[key]
            self._outputs.go_on(resident, process)
        self._done(client, message)

    def _close_stdin(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        process = self._find(client, message).process(name_of(message, "process"))
        process.close_stdin()
        self._done(client, message)

    def _signal(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        name, number_ = name_of(message, "process"), signal_of(message)
        if name not in resident.past:
            process = resident.process(name)
            if resident.ended is None:
                resident.signal(process, number_, tree=message.get("tree") is True)
        self._done(client, message)

    def _processes(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        after = whole(message, "after", 1 << 53, least=0)
        known = {one.number: one for one in resident.past.values()}
        known.update((one.number, one.facts()) for one in resident.processes.values() if one.keep)
        page: list[dict[str, Any]] = []
        left = _PAGE_BYTES
        for number_ in sorted(number_ for number_ in known if number_ > after):
            # As long as it came in a message, it goes out in one.
            left -= known[number_].json_bytes
            if page and (left < 0 or len(page) >= _PAGE):
                break
            page.append(known[number_].info())
        more = bool(page) and page[-1]["n"] < max(known)
        self._answer(client, {"re": message["id"], "ok": {"processes": page, "more": more}}, ())

    def _process_ended(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        name = name_of(message, "process")
        facts = resident.past.get(name) or resident.process(name).facts()
        if facts.end is not None:
            self._answer(client, {"re": message["id"], "ok": facts.info()}, ())
        else:
            _add_question(resident.processes[name].enders, Wait(client, message["id"]))

    def _resize(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        process = self._find(client, message).process(name_of(message, "process"))
        with contextlib.suppress(OSError):
            process.resize(*terminal_of(message))
        self._done(client, message)

    def _forget(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        name = name_of(message, "process")
        process = resident.processes.get(name)
        if process is not None:
            if process.name == MAIN:
                raise Refused("invalid", "the main process goes with its sandbox")
            if not process.is_closed and resident.ended is None and not resident.kill_tree(process):
                self._agenda.put(resident, time.monotonic() + _BUSY_S)
            self._outputs.drop(resident, process)
        resident.forget_past(name)
        if message.get("quiet") is not True:
            self._done(client, message)

    # ── the sandbox as a whole ──────────────────────────────────────────────────────────────────────────────────

    def _find(self, client: Client, message: dict[str, Any]) -> Resident:
        """The sandbox that a message is about. Another user's is as good as none."""
        name = name_of(message, "sandbox")
        resident = self._all.get(name)
        if resident is None or not resident.is_for(client.uid) or resident.creator is not None:
            raise Refused("not_found", f"there is no sandbox {name}")
        return resident

    def _done(self, client: Client, message: dict[str, Any]) -> None:
        self._answer(client, {"re": message["id"], "ok": {}}, ())

    def _inspect(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        if self._egress is not None and resident.request.outgoing and resident.buried is None:
            resident.traffic = self._egress.usage(resident.name)
        self._answer(client, {"re": message["id"], "ok": resident.info()}, ())

    def _inventory(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        after = str(message.get("after", ""))
        mine = sorted(
            n for n, one in self._all.items() if one.owner == client.uid and one.creator is None and n > after
        )
        page = [self._all[name].info(in_full=False) | {"processes": []} for name in mine[:_PAGE]]
        self._answer(client, {"re": message["id"], "ok": {"sandboxes": page, "more": len(mine) > _PAGE}}, ())

    def _ended(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        if resident.buried is not None:
            self._answer(client, {"re": message["id"], "ok": resident.info()}, ())
        else:
            _add_question(resident.enders, Wait(client, message["id"]))

    def _stop(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        grace_s = number(message, "grace_s", _LONGEST_S)
        main = resident.processes.get(MAIN)
        if resident.ended is None and resident.stop_at is None:
            resident.resume()  # its main process is asked to end
            resident.stop_at = time.monotonic() + grace_s
            if main is None or main.end is not None:
                resident.kill("stop")
            else:
                with contextlib.suppress(Refused):  # it is killed when the grace is over
                    resident.signal(main, 15, tree=False)
                self._agenda.put(resident, resident.stop_at)
        self._done(client, message)

    def _kill(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        if resident.buried is None:
            resident.kill("kill")
        self._done(client, message)

    def _extend(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        if resident.ended is not None:
            raise Refused("conflict", f"sandbox {resident.name} has ended")
        if message.get("lifetime_s") is None:
            resident.deadline = None
        else:
            began = resident.paused_at or time.monotonic()  # the time that passes while it is paused does not count
            resident.deadline = began + number(message, "lifetime_s", _LONGEST_S)
            self._agenda.put(resident, resident.deadline)
        self._answer(client, {"re": message["id"], "ok": resident.info(in_full=False)}, ())

    def _pause(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        resident.pause()
        self._answer(client, {"re": message["id"], "ok": resident.info(in_full=False)}, ())

    def _resume(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        resident.demand_alive()
        resident.resume()
        self._agenda.put(resident, time.monotonic())
        self._answer(client, {"re": message["id"], "ok": resident.info(in_full=False)}, ())

    def _remove(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        try:
            resident = self._find(client, message)
        except Refused as refusal:
            if refusal.kind != "not_found":
                raise
        else:
            if resident.buried is None:
                resident.request = _kept_no_longer(resident.request)
                resident.kill("kill")
                _add_question(resident.removers, Wait(client, message["id"]))  # what it stood on is free only then
                return
            self._drop(resident)
        self._done(client, message)

    def _agent(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        if len(descriptors) != 1 or not stat.S_ISSOCK(os.fstat(descriptors[0]).st_mode):
            raise Refused("invalid", "an agent needs one socket")
        resident.order({"do": "agent", "ids": ids_of(message)}, (descriptors[0],))
        self._done(client, message)

    def _dial(self, client: Client, message: dict[str, Any], descriptors: list[int]) -> None:
        resident = self._find(client, message)
        kind = message.get("kind", "tcp")
        if kind not in ("tcp", "udp"):
            raise Refused("invalid", "kind: must be 'tcp' or 'udp'")
        if len(resident.asked) >= _MOST_QUESTIONS:
            raise Refused("unavailable", f"{_MOST_QUESTIONS} questions at once are too many")
        asked = resident.next_number()
        resident.order({"do": "dial", "n": asked, "port": port_of(message), "kind": kind})
        resident.asked[asked] = Wait(client, message["id"])


def _add_question(questions: list[Wait], one: Wait) -> None:
    """Raises Refused: there are too many."""
    if len(questions) >= _MOST_QUESTIONS:
        raise Refused("unavailable", f"{_MOST_QUESTIONS} questions at once are too many")
    questions.append(one)


def _kept_no_longer(request: StayRequest) -> StayRequest:
    return replace(request, keep_s=0.001)


def _now(work: Callable[[], None]) -> None:
    work()
