"""Several backends behind one: each sandbox is made by the backend that it names.

A backend that cannot be had is refused when it is asked for, and never stood in for by another: who asks for a second
wall is not to get one wall.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stockade.backends.base import Backend, Glimpse, Report, SandboxSpec
from stockade.backends.disks import Disks
from stockade.backends.sandboxing import FileAccess, LiveExec, LiveProcess, LiveSandbox, LiveSpec, Reading, Streams
from stockade.errors import Conflict, Invalid, NotFound, StockadeError, Unavailable, Unsupported
from stockade.model import ProcessResult, ProcessSpec
from stockade.model import Protocol as TransportProtocol

__all__ = ["Choice"]


class Choice:
    """Satisfies `backends.base.Backend`; the first of its backends is the usual one."""

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        """Hand sandboxes to *backends*, by their names.

        Raises:
            Invalid: there is none.
        """
        if not backends:
            raise Invalid("sandbox.backend: there must be one")
        self._backends = dict(backends)
        self.usual = next(iter(self._backends))
        """Name of the one that makes what names none."""
        self._unavailable: dict[str, str] = {}
        self.with_disks = next(
            (name for name, one in self._backends.items() if getattr(one, "disks", None) is not None), None
        )
        """Name of the first backend that has disks; `None` where none has."""
        self.disks: Disks | None = getattr(self._backends[self.with_disks], "disks", None) if self.with_disks else None
        """Of that one."""
        living = {
            name: sandboxing
            for name, one in self._backends.items()
            if (sandboxing := getattr(one, "sandboxing", None)) is not None
        }
        self.sandboxing = ChosenSandboxes(self, living) if living else None
        """See `stockade.backends.sandboxing`; `None` where no backend has it."""

    async def start(self) -> None:
        """Start all. One beside the usual one that cannot be had is noted: what asks for it is refused.

        Raises:
            CannotEnforce, Unavailable: the usual one does not start; see `Backend.start`.
        """
        for name, backend in self._backends.items():
            try:
                await backend.start()
            except StockadeError as error:
                if name == self.usual:
                    raise
                self._unavailable[name] = str(error)

    def named(self, name: str) -> tuple[str, Backend]:
        """The backend called *name*, or the usual one where that is empty, with its own name.

        Raises:
            Unsupported: there is none of that name here.
            Unavailable: it could not be started.
        """
        name = name or self.usual
        backend = self._backends.get(name)
        if backend is None:
            raise Unsupported(f"backend {name!r} is not offered here; offered: {', '.join(self._backends)}")
        if name in self._unavailable:
            raise Unavailable(f"backend {name} cannot be had: {self._unavailable[name]}")
        return name, backend

    async def run(
        self, sandbox: SandboxSpec, process: ProcessSpec, *, watched: Callable[[Glimpse], None] | None = None
    ) -> ProcessResult:
        """See `Backend.run`. Raises also what `named` does."""
        _, backend = self.named(sandbox.backend)
        return await backend.run(sandbox, process, watched=watched)

    async def warm(self, sandbox: SandboxSpec, process: ProcessSpec) -> None:
        """See `Backend.warm`."""
        _, backend = self.named(sandbox.backend)
        await backend.warm(sandbox, process)

    async def report(self) -> Report:
        """What the usual one says, and of each other whether it can be had, as a feature that is not required."""
        reports = {name: await one.report() for name, one in self._backends.items()}
        usual = reports[self.usual]
        details = dict(usual.details)
        for name, report in reports.items():
            if name != self.usual:
                missing = ", ".join(report.missing)
                why = self._unavailable.get(name) or (f"without {missing}" if missing else "ready")
                details[f"backend {name}"] = why
        return replace(usual, details=details)

    async def reports(self) -> Mapping[str, Report]:
        """What each says."""
        return {name: await one.report() for name, one in self._backends.items()}

    async def close(self) -> None:
        """Close all, each whatever becomes of the others. Idempotent."""
        closing = [backend.close() for backend in self._backends.values()]
        for one in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(one, BaseException):
                raise one


class ChosenSandboxes:
    """Satisfies `backends.sandboxing.Sandboxing` and `backends.disks.Pausing`.

    Names are looked for where they were last seen, then everywhere: sandboxes outlive the server.
    """

    def __init__(self, choice: Choice, living: Mapping[str, Any]) -> None:
        """Hand sandboxes to *living*, by the names of backends."""
        self._choice = choice
        self._living = dict(living)
        self._homes: dict[str, str] = {}

    async def create(self, name: str, spec: LiveSpec) -> LiveSandbox:
        """See `Sandboxing.create`. Raises Unsupported: that backend has no sandboxes that live."""
        stands_on_disks = bool(spec.disk or spec.layers or spec.mounts)
        asked = spec.backend or (self._choice.with_disks if stands_on_disks else None) or ""
        backend, _ = self._choice.named(asked)
        if backend not in self._living:
            raise Unsupported(f"backend {backend} has no sandboxes that live")
        if name in self._homes and self._homes[name] != backend:
            raise Conflict(f"there is a sandbox {name} already")
        self._homes[name] = backend
        try:
            made: LiveSandbox = await self._living[backend].create(name, spec)
        except BaseException:
            # It may be there all the same, when we were cancelled: it is looked for then.
            self._homes.pop(name, None)
            raise
        return made

    async def _home(self, name: str) -> Any:
        """The sandboxes among which *name* is.

        Raises:
            NotFound: it is among none.
        """
        home = self._homes.get(name)
        if home is None:
            if len(self._living) == 1:
                return next(iter(self._living.values()))
            for backend, living in self._living.items():
                with contextlib.suppress(NotFound, Unsupported):
                    await living.inspect(name)
                    home = self._homes[name] = backend
                    break
            else:
                raise NotFound(f"there is no sandbox {name}")
        return self._living[home]

    async def exec(
        self, name: str, process: str, spec: LiveExec, *, reading: Reading = Reading(), gather: int = 0
    ) -> Streams:
        streams: Streams = await (await self._home(name)).exec(name, process, spec, reading=reading, gather=gather)
        return streams

    async def open(self, name: str, process: str, *, reading: Reading = Reading()) -> Streams:
        streams: Streams = await (await self._home(name)).open(name, process, reading=reading)
        return streams

    async def processes(self, name: str) -> list[LiveProcess]:
        found: list[LiveProcess] = await (await self._home(name)).processes(name)
        return found

    async def signal_process(self, name: str, process: str, number: int, *, tree: bool = False) -> None:
        await (await self._home(name)).signal_process(name, process, number, tree=tree)

    async def process_ended(self, name: str, process: str) -> LiveProcess:
        found: LiveProcess = await (await self._home(name)).process_ended(name, process)
        return found

    async def forget_process(self, name: str, process: str) -> None:
        await (await self._home(name)).forget_process(name, process)

    async def inspect(self, name: str) -> LiveSandbox:
        found: LiveSandbox = await (await self._home(name)).inspect(name)
        return found

    async def inventory(self) -> list[LiveSandbox]:
        """See `Sandboxing.inventory`: of all that can be asked. Raises what the usual one does."""
        found: list[LiveSandbox] = []
        for backend, living in self._living.items():
            try:
                here = await living.inventory()
            except StockadeError:
                if backend == self._choice.usual:
                    raise
                continue
            self._homes.update({one.name: backend for one in here})
            found.extend(here)
        return found

    async def ended(self, name: str) -> LiveSandbox:
        found: LiveSandbox = await (await self._home(name)).ended(name)
        return found

    async def stop(self, name: str, *, grace_s: float) -> None:
        await (await self._home(name)).stop(name, grace_s=grace_s)

    async def kill(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            await (await self._home(name)).kill(name)

    async def extend(self, name: str, lifetime_s: float | None) -> None:
        await (await self._home(name)).extend(name, lifetime_s)

    async def remove(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            await (await self._home(name)).remove(name)
        self._homes.pop(name, None)

    async def files(self, name: str, *, user: str = "user") -> FileAccess:
        found: FileAccess = await (await self._home(name)).files(name, user=user)
        return found

    async def dial(self, name: str, port: int, protocol: TransportProtocol) -> socket.socket:
        found: socket.socket = await (await self._home(name)).dial(name, port, protocol)
        return found

    async def pause(self, name: str) -> None:
        await (await self._pausing(name)).pause(name)

    async def resume(self, name: str) -> None:
        await (await self._pausing(name)).resume(name)

    async def _pausing(self, name: str) -> Any:
        home = await self._home(name)
        if not hasattr(home, "pause"):
            raise Unsupported(f"the backend of sandbox {name} cannot pause it")
        return home
