"""The backend `gvisor`: the native sandbox, and in it a kernel of the tenant's own (gVisor's `runsc`).

Two walls: a program that breaks out of gVisor is in a native sandbox, with a filter, without a network, under the same
limits. Runs only; sandboxes that live, templates and disks are the native backend's.
"""

from collections.abc import Callable
from dataclasses import replace

from stockade.backends.base import BackendOptions, BackendPlugin, Feature, Glimpse, Report, SandboxSpec
from stockade.backends.native import NativeBackend
from stockade.errors import StockadeError, Unavailable
from stockade.model import Limits, Outcome, ProcessResult, ProcessSpec
from stockade.warden.walls import GVISOR

__all__ = ["GvisorBackend", "backend"]

_MB = 1 << 20
_TRIAL = Limits(
    wall_s=20.0,
    cpu_s=20.0,
    cpus=1.0,
    memory_bytes=64 * _MB,
    processes=16,
    disk_bytes=8 * _MB,
    disk_inodes=256,
    open_files=64,
    stack_bytes=8 * _MB,
    output_bytes=64 << 10,
)
_MECHANISMS = {
    "system_calls": "gVisor's kernel answers them all; it runs under a filter of its own, and that under ours",
    "own_inodes": "gVisor keeps watches and locks in its own kernel",
    "processes": "threads of gVisor are counted in their place, several for each: a bound, not the number asked for",
    "memory": "{}; what gVisor itself takes is counted in the same group, and has 24 MiB beside the limit",
}


class GvisorBackend:
    """Satisfies `stockade.backends.base.Backend`, by a warden of the native backend's."""

    def __init__(self, options: BackendOptions) -> None:
        self._native = NativeBackend(replace(options, disks="none"), wall=GVISOR)

    async def start(self) -> None:
        """See `Backend.start`; a sandbox is made for a trial.

        Raises:
            Unsupported: the warden is an ordinary user's.
            Unavailable: there is no gVisor, or it does not work here.
        """
        await self._native.start()
        facts = await self._native.wall()
        trial = ProcessSpec(argv=("true",), env={"PATH": "/usr/bin:/bin"}, cwd="/code")
        try:
            result = await self._native.run(SandboxSpec(image="host", limits=_TRIAL), trial)
        except StockadeError as error:
            raise Unavailable(f"gVisor {facts['version']} does not work here: {error}") from error
        if result.outcome is not Outcome.EXITED or result.exit_code:
            why = result.stderr.decode(errors="replace").strip()[:500]
            raise Unavailable(f"gVisor {facts['version']} does not work here: a trial ended as {result.outcome}: {why}")

    async def run(
        self, sandbox: SandboxSpec, process: ProcessSpec, *, watched: Callable[[Glimpse], None] | None = None
    ) -> ProcessResult:
        """See `Backend.run`."""
        return await self._native.run(sandbox, process, watched=watched)

    async def warm(self, sandbox: SandboxSpec, process: ProcessSpec) -> None:
        """See `Backend.warm`: there are no templates behind gVisor, so this does nothing."""

    async def report(self) -> Report:
        """See `Backend.report`."""
        native = await self._native.report()
        try:
            facts = await self._native.wall()
        except StockadeError as error:
            wall = Feature(
                name="wall", enforced=False, mechanism=str(error), remedy="as root: apt-get install runsc (gvisor.dev)"
            )
            return replace(native, backend=GVISOR, features=(*native.features, wall))
        wall = Feature(name="wall", enforced=True, mechanism=f"gVisor {facts['version']}, platform {facts['platform']}")
        features = tuple(
            replace(one, mechanism=_MECHANISMS[one.name].format(one.mechanism))
            if one.enforced and one.name in _MECHANISMS
            else one
            for one in native.features
            if one.name != "pausing"
        )
        details = {**native.details, "gvisor": f"{facts['version']} ({facts['platform']})"}
        return replace(native, backend=GVISOR, features=(*features, wall), details=details, warm=())

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._native.close()


backend = BackendPlugin(name=GVISOR, make=GvisorBackend, has_warden=True)
