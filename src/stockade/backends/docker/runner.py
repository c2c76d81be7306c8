"""Runs in containers: client of the gate, one connection a container."""

import asyncio
import contextlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

from stockade.backends.base import BackendOptions, Feature, Glimpse, Report, SandboxSpec
from stockade.backends.docker.containers import ANSWER_WITHIN_S, Container, Containers, hello
from stockade.backends.docker.features import Probe, features
from stockade.backends.docker.gate import VERSION
from stockade.backends.docker.launch import GateProcess, launch
from stockade.backends.docker.recipe import LEAST_MEMORY
from stockade.backends.docker.streams import Conversation
from stockade.backends.native.outcomes import decide
from stockade.errors import (
    BackendLost,
    CannotEnforce,
    Fault,
    Invalid,
    InvalidLimit,
    StockadeError,
    Unavailable,
    UnknownImage,
    Unsupported,
)
from stockade.model import Bundle, Limits, OnOutputLimit, Outcome, ProcessResult, ProcessSpec, Usage
from stockade.warden import bundle, fields

__all__ = ["DockerBackend"]

_LONGEST_STRING = 131_071  # MAX_ARG_STRLEN, less the NUL: execve(2)
_MOST_OVERHEAD = bundle.MOST_MEMBERS * 4200  # of a bundle: names and headers
_LENGTH = struct.Struct("<I")
_PROBE = Limits(
    wall_s=20.0,
    cpu_s=20.0,
    cpus=1.0,
    memory_bytes=256 << 20,
    processes=40,
    disk_bytes=1 << 20,
    disk_inodes=100,
    open_files=64,
    stack_bytes=8 << 20,
    output_bytes=4096,
)


class MemoryBundle:
    """A bundle in this process's memory."""

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data

    @property
    def size(self) -> int:
        return len(self.data or b"")

    def close(self) -> None:
        self.data = None


class KeptGlimpse:
    """What a conversation has kept of a program's output."""

    def __init__(self) -> None:
        self.output: tuple[bytearray, bytearray] | None = None

    def read(self, *, is_stderr: bool, offset: int, most: int) -> bytes:
        """See `Glimpse.read`."""
        output = self.output
        return bytes(output[is_stderr][offset : offset + most]) if output is not None else b""


class DockerBackend:
    """Satisfies `stockade.backends.base.Backend`; a lost gate is replaced at the next call."""

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._gate: GateProcess | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._containers = Containers(spares=options.docker_spares)

    async def start(self) -> None:
        """See `Backend.start`."""
        await self._ready()

    async def _ready(self) -> GateProcess:
        gate = self._gate
        if gate is not None and gate.is_alive:
            return gate
        async with self._starting:
            if self._closed:
                raise Unavailable("the server is shutting down")
            if self._gate is not None:
                if self._gate.is_alive:
                    return self._gate
                await self._containers.forget()
                await self._gate.close()
                self._gate = None
            gate = await launch(self._options)
            try:
                report = await self._look(gate)
                missing = [name for name in report.missing if name not in self._options.allow_unenforced]
                if missing:
                    raise CannotEnforce(missing)
            except BaseException:
                await gate.close()
                raise
            self._gate = gate
            return gate

    async def run(
        self, sandbox: SandboxSpec, process: ProcessSpec, *, watched: Callable[[Glimpse], None] | None = None
    ) -> ProcessResult:
        """See `Backend.run`."""
        return (await self._run(await self._ready(), sandbox, process, watched))[0]

    async def warm(self, sandbox: SandboxSpec, process: ProcessSpec) -> None:
        """See `Backend.warm`: a container has no templates."""

    async def report(self) -> Report:
        """See `Backend.report`."""
        try:
            if self._gate is not None and self._gate.is_alive:
                return await self._look(self._gate)
            gate = await launch(self._options)
            try:
                return await self._look(gate)
            finally:
                await gate.close()
        except StockadeError as error:
            broken = Feature(
                name="sandboxes", enforced=False, mechanism=str(error), remedy="see docs/backends.md, section docker"
            )
            return Report(backend="docker", features=(broken,), details={})

    async def close(self) -> None:
        """See `Backend.close`."""
        self._closed = True
        async with self._starting:
            await self._containers.close()
            if self._gate is not None:
                await self._gate.close()
                self._gate = None

    async def _look(self, gate: GateProcess) -> Report:
        """Ask the engine, and run a program to see what is in force in a container."""
        facts = await hello(gate)
        if facts.get("version") != VERSION:
            raise Unavailable(f"the gate speaks version {facts.get('version')} and we {VERSION}; restart it")
        probe = ProcessSpec(argv=("/bin/sh", "-c", "grep Seccomp: /proc/self/status"), cwd="/tmp")
        result, started = await self._run(gate, SandboxSpec(image="host", limits=_PROBE), probe, None)
        if not result.succeeded:
            said = result.stderr.decode(errors="replace").strip()
            raise Unavailable(f"no program runs in a container: {result.outcome.value} {result.exit_code}: {said}")
        return Report(
            backend="docker",
            features=features(
                facts,
                Probe(asked=_PROBE, in_force=started, has_filter=b"2" in result.stdout),
                socket=self._options.docker_socket,
            ),
            details={
                name: str(facts[name]) for name in ("engine", "runtime", "image", "cgroups", "kernel", "processors")
            },
        )

    # ── one run ──

    async def _run(
        self,
        gate: GateProcess,
        sandbox: SandboxSpec,
        process: ProcessSpec,
        watched: Callable[[Glimpse], None] | None,
    ) -> tuple[ProcessResult, Mapping[str, Any]]:
        _check(sandbox, process)
        limits = sandbox.limits
        conversation = Conversation(
            most_output=limits.output_bytes, most_collected=limits.disk_bytes + _MOST_OVERHEAD if process.collect else 0
        )
        glimpse = KeptGlimpse()
        try:
            payload = _payload(process)  # before there is anything to be ended
            async with self._containers.one(gate, limits) as container:
                if watched is not None:
                    glimpse.output = conversation.output
                    watched(glimpse)
                is_late = await _converse(
                    container, conversation, _errand(sandbox, process, payload), payload, limits.wall_s
                )
        finally:
            glimpse.output = None
        if conversation.facts is None and conversation.trailer is None and not is_late:
            if not gate.is_alive or self._closed:
                raise BackendLost("the gate to Docker ended; its sandboxes are gone with it")
            raise BackendLost("the container was lost")
        return _result(conversation, limits, is_late=is_late), conversation.started or {}


async def _converse(
    container: Container, conversation: Conversation, errand: bytes, payload: list[bytes], wall_s: float
) -> bool:
    """Hand over the errand and hear how it went; whether the guest was too late with its answer."""

    async def tell() -> None:
        with contextlib.suppress(ConnectionError):  # it died of the errand: memory
            container.writer.write(_LENGTH.pack(len(errand)) + errand)
            for piece in payload:
                container.writer.write(piece)
                await container.writer.drain()

    telling = asyncio.ensure_future(tell())
    try:
        # The guest keeps this limit; should it not, we do, by ending the container.
        async with asyncio.timeout(wall_s + ANSWER_WITHIN_S):
            await conversation.listen(container.reader)
            container.is_done = conversation.facts is not None
    except TimeoutError:
        return True
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
    return False


def _check(sandbox: SandboxSpec, process: ProcessSpec) -> None:
    """Refuse what cannot be described to the kernel, before there is a container."""
    if sandbox.network != "none":
        raise Unsupported(f"network {sandbox.network!r}: the docker backend has none but loopback")
    if sandbox.image != "host":
        raise UnknownImage(sandbox.image, ["host"])
    if sandbox.limits.memory_bytes < LEAST_MEMORY:
        raise InvalidLimit(
            "memory_bytes", sandbox.limits.memory_bytes, f"the docker backend needs at least {LEAST_MEMORY}"
        )
    words = (*process.argv, *process.args)
    try:
        fields.command({"argv": list(words)}, "argv")
        fields.variables({"env": dict(process.env)}, "env")
        fields.directory({"cwd": process.cwd}, "cwd")
        for word in (*words, *(f"{name}={value}" for name, value in process.env.items())):
            if len(os.fsencode(word)) > _LONGEST_STRING:
                raise Invalid(f"an argument or a variable has at most {_LONGEST_STRING} bytes: {word[:40]!r}…")
    except (fields.Refused, UnicodeEncodeError) as error:
        raise Invalid(str(error)) from error


def _payload(process: ProcessSpec) -> list[bytes]:
    """What follows the errand: bundles and input."""
    pieces: list[bytes] = []
    if process.bundle is not None:
        if not isinstance(process.bundle, MemoryBundle) or process.bundle.data is None:
            raise Fault("the bundle was not made by this backend, or is closed")
        pieces.append(process.bundle.data)
    if process.files:
        try:
            pieces.append(b"".join(bundle.pack(process.files)))
        except bundle.BundleError as error:
            raise Invalid(str(error)) from error
    return [*pieces, process.stdin]


def _errand(sandbox: SandboxSpec, process: ProcessSpec, payload: list[bytes]) -> bytes:
    """`guest.Errand` as JSON."""
    limits = sandbox.limits
    *bundles, stdin = payload
    return json.dumps(
        {
            "argv": [*process.argv, *process.args],
            "env": dict(process.env),
            "cwd": process.cwd,
            "wall_s": limits.wall_s,
            "cpu_s": limits.cpu_s,
            "cpus": limits.cpus,
            "processes": limits.processes,
            "disk_bytes": limits.disk_bytes,
            "disk_inodes": limits.disk_inodes,
            "open_files": limits.open_files,
            "stack_bytes": limits.stack_bytes,
            "output_bytes": limits.output_bytes,
            "drop_output": process.on_output_limit is OnOutputLimit.DROP,
            "collect": process.collect,
            "bundles": [len(piece) for piece in bundles],
            "stdin": len(stdin),
        }
    ).encode()


def _result(conversation: Conversation, limits: Limits, *, is_late: bool) -> ProcessResult:
    """What the guest told, or what is to be said of one that could not."""
    facts = conversation.facts
    if facts is None:
        facts = _facts_of_the_dead(conversation, limits, is_late=is_late)
    if facts["reason"] == "disk":
        outcome, exit_code, signal = Outcome.DISK, None, None
    else:
        outcome, exit_code, signal = decide(facts)
    collected: Bundle | None = MemoryBundle(bytes(conversation.collected)) if facts["collected"] else None
    return ProcessResult(
        outcome=outcome,
        exit_code=exit_code,
        signal=signal,
        stdout=bytes(conversation.output[0]),
        stderr=bytes(conversation.output[1]),
        stdout_truncated=facts["truncated"][0],
        stderr_truncated=facts["truncated"][1],
        usage=Usage(
            wall_s=facts["wall_s"],
            cpu_user_s=facts["cpu_user_us"] / 1e6,
            cpu_system_s=facts["cpu_system_us"] / 1e6,
            memory_peak_bytes=facts["memory_peak"],
        ),
        bundle=collected,
    )


def _facts_of_the_dead(conversation: Conversation, limits: Limits, *, is_late: bool) -> dict[str, Any]:
    """Of a guest that ended without a word: killed for memory, by us, or by what it held.

    Raises:
        Fault: it never began; its complaint says why.
    """
    trailer = conversation.trailer or {}
    is_out_of_memory = trailer.get("oom_killed") is True or trailer.get("exit_code") == 137
    if conversation.started is None and not is_out_of_memory and not is_late:
        said = conversation.complaint.decode(errors="replace").strip().rpartition("\n")[2]
        raise Fault(f"the container's guest did not begin: {said or trailer}")
    return {
        "reason": "wall_time" if is_late else None,
        "status": None,
        "oom_kills": int(is_out_of_memory),
        "forks_refused": 0,
        "disk_full": False,
        "collected": False,
        "wall_s": limits.wall_s if is_late else 0.0,
        "truncated": (False, False),
        "cpu_user_us": 0,
        "cpu_system_us": 0,
        "memory_peak": limits.memory_bytes if is_out_of_memory else 0,
    }
