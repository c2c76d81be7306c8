"""Sandboxes that live, by the warden: see `stockade.backends.sandboxing`."""

import asyncio
import math
import os
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from stockade.backends.native.agents import IdleAgents
from stockade.backends.native.connection import ANSWER_WITHIN_S, Answer, Connection, close_all, error_of, set_once
from stockade.backends.native.files import NativeFiles
from stockade.backends.native.streams import NativeStreams, Stdin, end_of, readers
from stockade.backends.sandboxing import LiveExec, LiveProcess, LiveSandbox, LiveSpec, Reading
from stockade.errors import BackendLost, Invalid, NoAnswer, NotFound, Unavailable
from stockade.model import EndedBy, NetworkMode, Outcome, Protocol, Usage

__all__ = ["NativeSandboxes"]

_DIAL_S = 5.0
_STUCK = "the sandbox did not answer in time; it may have used up its processor share"


class NativeSandboxes:
    """Satisfies `stockade.backends.sandboxing.Sandboxing`."""

    def __init__(
        self,
        connected: Callable[[], Awaitable[Connection]],
        *,
        instance: str = "",
        permit_private: tuple[str, ...] = (),
        refuse: tuple[str, ...] = (),
    ) -> None:
        """Speak to the warden over what *connected* gives.

        Args:
            instance: whose sandboxes they are, where several servers use one warden.
            permit_private: networks, in CIDR form, that sandboxes may connect to although they are not public.
            refuse: networks that they may not connect to in any case.
        """
        self._connected = connected
        self._instance = instance
        self._permit_private = permit_private
        self._refuse = refuse
        self._stdins: dict[tuple[str, str], Stdin] = {}
        self._agents = IdleAgents()

    def close(self) -> None:
        """Let go of what is kept for the next request. Idempotent."""
        self._agents.close()

    async def create(self, name: str, spec: LiveSpec) -> LiveSandbox:
        limits, network = spec.limits, spec.network
        message: dict[str, Any] = {
            "op": "create",
            "sandbox": name,
            "instance": self._instance,
            "image": spec.image,
            "cwd": spec.cwd,
            "lifetime_s": spec.lifetime_s,
            "log_bytes": spec.log_bytes,
            "kept_bytes": spec.kept_bytes,
            "keep_s": spec.keep_s,
            "layer": spec.layer is not None,
            "network": "none" if network.mode is NetworkMode.NONE else "outgoing",
            "policy": {
                "allow_cidrs": network.allow_cidrs,
                "allow_domains": network.allow_domains,
                "permit_private": self._permit_private,
                "refuse": self._refuse,
            },
            "layers": spec.layers,
            "disk": spec.disk,
            "mounts": [
                {"disk": one.disk, "path": one.path, "read_only": one.read_only, "whole": one.is_whole}
                for one in spec.mounts
            ],
            "drop_capabilities": spec.drop_capabilities,
            "limits": {
                "cpus": limits.cpus,
                "memory_bytes": limits.memory_bytes,
                "processes": limits.processes,
                # In the sandbox's memory, who fills it shall hear that, and not have processes killed.
                "disk_bytes": limits.disk_bytes
                if spec.disk is not None
                else min(limits.disk_bytes, limits.memory_bytes - limits.memory_bytes // 8),
                "disk_inodes": limits.disk_inodes,
                "open_files": limits.open_files,
                "stack_bytes": limits.stack_bytes,
            },
        }
        if spec.diversion is not None:
            message["policy"]["divert"] = {
                "port": spec.diversion.port,
                "token": spec.diversion.token,
                "hosts": spec.diversion.hosts,
                "ports": spec.diversion.ports,
            }
        passed: list[int] = []
        try:
            if spec.layer is not None:
                try:
                    passed.append(os.open(spec.layer, os.O_RDONLY | os.O_CLOEXEC))
                except FileNotFoundError:
                    raise NotFound(f"there is no layer {spec.layer.name}") from None
            made = _live(await self._ask(message, tuple(passed)))
        finally:
            close_all(passed)
        self._agents.begin(name, limits)
        return made

    async def exec(
        self, name: str, process: str, spec: LiveExec, *, reading: Reading = Reading(), gather: int = 0
    ) -> NativeStreams:
        terminal = spec.terminal
        message = {
            "op": "exec",
            "sandbox": name,
            "process": process,
            "argv": spec.argv,
            "env": dict(spec.env),
            "cwd": spec.cwd,
            "user": spec.user,
            "terminal": None if terminal is None else {"rows": terminal.rows, "columns": terminal.columns},
            "stdin": spec.stdin,
            "keep": spec.keep,
            "log_bytes": spec.log_bytes,
        }
        if gather:
            message["gather"] = gather
        return await self._open(message, reading, within_s=None if gather else ANSWER_WITHIN_S)

    async def open(self, name: str, process: str, *, reading: Reading = Reading()) -> NativeStreams:
        return await self._open({"op": "open", "sandbox": name, "process": process}, reading)

    async def _open(
        self, message: dict[str, Any], reading: Reading, *, within_s: float | None = ANSWER_WITHIN_S
    ) -> NativeStreams:
        """Ask for the streams of a process that is there, or will be."""
        connection = await self._connected()
        name, process, reader = message["sandbox"], message["process"], next(readers)
        patience_s = reading.patience_s if math.isfinite(reading.patience_s) else None
        message |= {"reader": reader, "patience_s": patience_s, "until_closed": reading.until_closed}
        answer, fds = await self._answer(connection, message, within_s=within_s)
        facts = answer["ok"]
        stdin = None
        if facts["stdin"]:
            key = (name, process)
            stdin = None if message["op"] == "exec" else self._stdins.get(key)  # an earlier one may have had its name
            if stdin is None:

                def let_go(closed: Stdin) -> None:
                    if self._stdins.get(key) is closed:
                        del self._stdins[key]

                stdin = self._stdins[key] = Stdin(fds.pop(), is_terminal=facts["terminal"], let_go=let_go)
            else:
                os.close(fds.pop())
            stdin.users += 1
        return NativeStreams(
            connection, name, process, reader=reader, file=fds[0], stdin=stdin, facts=facts, is_once="gather" in message
        )

    async def processes(self, name: str) -> list[LiveProcess]:
        found: list[LiveProcess] = []
        after = 0
        while True:
            page = await self._ask({"op": "processes", "sandbox": name, "after": after})
            found.extend(_process(one) for one in page["processes"])
            if not page["more"]:
                return found
            after = page["processes"][-1]["n"]

    async def signal_process(self, name: str, process: str, number: int, *, tree: bool = False) -> None:
        await self._ask({"op": "signal", "sandbox": name, "process": process, "signal": number, "tree": tree})

    async def process_ended(self, name: str, process: str) -> LiveProcess:
        connection = await self._connected()
        message = {"op": "process_ended", "sandbox": name, "process": process}
        answer, fds = await self._answer(connection, message, within_s=None)
        close_all(fds)
        return _process(answer["ok"])

    async def forget_process(self, name: str, process: str) -> None:
        await self._ask({"op": "forget", "sandbox": name, "process": process})

    async def inspect(self, name: str) -> LiveSandbox:
        return _live(await self._ask({"op": "inspect", "sandbox": name}))

    async def inventory(self) -> list[LiveSandbox]:
        found: list[LiveSandbox] = []
        while True:
            after = found[-1].name if found else ""
            page = await self._ask({"op": "inventory", "instance": self._instance, "after": after})
            found.extend(_live(one) for one in page["sandboxes"])
            if not page["more"]:
                return found

    async def ended(self, name: str) -> LiveSandbox:
        connection = await self._connected()
        try:
            message, fds = await connection.ask({"op": "ended", "sandbox": name}, (), None)
        except BackendLost:
            self._agents.forget(name)
            raise
        self._agents.forget(name)
        close_all(fds)
        if "error" in message:
            raise error_of(message["error"])
        return _live(message["ok"])

    async def stop(self, name: str, *, grace_s: float) -> None:
        self._agents.leave(name)
        await self._ask({"op": "stop", "sandbox": name, "grace_s": max(0.001, grace_s)})

    async def kill(self, name: str) -> None:
        self._agents.leave(name)
        await self._ask({"op": "kill", "sandbox": name})

    async def extend(self, name: str, lifetime_s: float | None) -> None:
        await self._ask({"op": "extend", "sandbox": name, "lifetime_s": lifetime_s})

    async def pause(self, name: str) -> None:
        """See `stockade.backends.disks.Pausing`."""
        await self._ask({"op": "pause", "sandbox": name})

    async def resume(self, name: str) -> None:
        """See `stockade.backends.disks.Pausing`."""
        await self._ask({"op": "resume", "sandbox": name})

    async def remove(self, name: str) -> None:
        self._agents.forget(name)
        await self._ask({"op": "remove", "sandbox": name})

    async def files(self, name: str, *, user: str = "user") -> NativeFiles:
        """See `Sandboxing.files`. *user*: with whose rights, as `LiveExec.user`."""
        place = self._agents.place(name, user)
        idle = place.take()
        if idle is not None:
            files = NativeFiles(idle, place=place)
            if await files.is_awake():
                return files
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise Unavailable(f"the files of sandbox {name} cannot be reached: {error.strerror}") from error
        try:
            await self._ask({"op": "agent", "sandbox": name, "user": user}, (theirs.fileno(),))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return NativeFiles(ours, place=place)

    async def dial(self, name: str, port: int, protocol: Protocol) -> socket.socket:
        connection = await self._connected()
        message = {"op": "dial", "sandbox": name, "port": port, "kind": protocol.value}
        _, fds = await self._answer(connection, message)
        if not fds:
            raise Unavailable(f"port {port} of sandbox {name} cannot be reached")
        found = socket.socket(fileno=fds.pop())
        close_all(fds)
        try:
            await _until_connected(found, port)
        except BaseException:
            found.close()
            raise
        return found

    async def _ask(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
        answer, received = await self._answer(await self._connected(), message, fds)
        close_all(received)
        found: dict[str, Any] = answer["ok"]
        return found

    async def _answer(
        self,
        connection: Connection,
        message: dict[str, Any],
        fds: tuple[int, ...] = (),
        *,
        within_s: float | None = ANSWER_WITHIN_S,
    ) -> Answer:
        try:
            answer = await connection.ask(message, fds, within_s)
        except BackendLost:
            if connection.lost is None:
                raise NoAnswer(_STUCK) from None
            raise
        if "error" in answer[0]:
            close_all(answer[1])
            raise error_of(answer[0]["error"])
        return answer


async def _until_connected(found: socket.socket, port: int) -> None:
    """Wait until a connection that was begun is there; over loopback it nearly always is at once."""
    poll = select.poll()
    poll.register(found, select.POLLOUT)
    if not poll.poll(0):
        loop = asyncio.get_running_loop()
        writable: asyncio.Future[None] = loop.create_future()
        loop.add_writer(found, set_once, writable)
        try:
            async with asyncio.timeout(_DIAL_S):
                await writable
        except TimeoutError:
            raise Unavailable(f"port {port} did not answer within {_DIAL_S:g} s") from None
        finally:
            loop.remove_writer(found)
    error = found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise Unavailable(f"port {port}: {os.strerror(error)}")


def _process(facts: dict[str, Any]) -> LiveProcess:
    end = facts["end"]
    return LiveProcess(
        name=facts["name"],
        argv=tuple(facts["argv"]),
        pid=facts["pid"],
        started_at=facts["began_at"],
        ended_at=None if end is None else end["ended_at"],
        end=None if end is None else end_of(end),
    )


def _live(facts: dict[str, Any]) -> LiveSandbox:
    usage = facts["usage"] or {}
    outcome, reason = facts["outcome"], facts["reason"]
    if not isinstance(facts.get("sandbox"), str):
        raise Invalid("the warden's answer names no sandbox")
    return LiveSandbox(
        name=facts["sandbox"],
        is_running=facts["running"],
        started_at=facts["started_at"],
        ended_at=facts["ended_at"],
        deadline_at=facts["deadline_at"],
        ended_by=EndedBy(reason) if reason is not None and facts["buried"] else None,
        outcome=Outcome(outcome) if outcome is not None else None,
        exit_code=facts["exit_code"],
        processes=tuple(facts["processes"]),
        usage=Usage(
            wall_s=usage.get("wall_s", 0.0),
            cpu_user_s=usage.get("cpu_user_us", 0) / 1e6,
            cpu_system_s=usage.get("cpu_system_us", 0) / 1e6,
            memory_peak_bytes=usage.get("memory_peak", 0),
            bytes_in=usage.get("bytes_in", 0),
            bytes_out=usage.get("bytes_out", 0),
        ),
        memory_bytes=usage.get("memory", 0),
        is_paused=facts["paused"],
    )
