"""Where the CPU time of a run goes: by process, under load, from what the kernel has counted."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench import processes
from bench.exits import Ended, Exits, listening
from bench.generators import Load, bare_load, closed_load
from bench.measure import BenchError
from bench.processes import Usage
from bench.server import Server
from bench.table import Sheet

__all__ = ["Row", "Spent", "sheet", "spent", "spent_inside"]

_LIVING = ("server", "keeper", "warden", "mason", "templates")
_INIT, _PROGRAM, _ENDING, _TOGETHER = "PID 1s", "programs", "their ends", "sandboxes"
_STEWARD = "PID 1 of the sandbox"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one part has used, for each run."""

    part: str
    cpu_ms: float
    user_ms: float | None
    system_ms: float | None
    switches: float | None
    """Context switches. `None`, here as with the others: nobody knows."""
    faults: float | None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One window of load."""

    load: Load
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def spent(server: Server, *, clients: int, seconds: float) -> Spent:
    """Load the server and say what each part of it has used for a run.

    Processes that live on are read from /proc. Those that ended are told of by the kernel (`exits`), as long as they
    lived; their parents' bill has all of it, and the difference is the cost of ending.
    """
    with contextlib.ExitStack() as stack:
        exits: Exits | None = None
        notes = []
        try:
            exits = stack.enter_context(listening())
        except BenchError as error:
            notes.append(f"PID 1s and programs are one row: {error}")
        found = _spent(server, lambda: closed_load(server.url, clients=clients, seconds=seconds), (), exits, notes)
    bare = bare_load(1.0)
    beside = (
        f"a bare python3 -c: {bare.cpu_s / bare.runs * 1e3:.2f} ms of CPU with its starter; {bare.rate:.0f} a second"
    )
    return replace(found, notes=(*found.notes, beside))


def spent_inside(server: Server, do_load: Callable[[], Load], *, namespace: str) -> Spent:
    """The same for a load on one sandbox that lives; *namespace* is its pid namespace, as /proc/self/ns/pid has it."""
    inside = [pid for pid in server.processes()["sandboxes"] if processes.pid_namespace(pid) == namespace]
    stewards = tuple(pid for pid in inside if processes.number_inside(pid) == 1)
    if len(stewards) != 1:
        raise BenchError(f"there is no PID 1 among the sandbox's {len(inside)} processes")
    # As PID 1 has it, who reaps them: the kernel tells of one that ends before it has added up its last time slice,
    # which is nearly all of so short a life.
    return _spent(server, do_load, stewards, None, [])


def _spent(
    server: Server, do_load: Callable[[], Load], stewards: tuple[int, ...], exits: Exits | None, notes: list[str]
) -> Spent:
    server.belongings()  # at rest
    before = _Look(server, stewards)
    if exits is not None:
        exits.collect()
    load = do_load()
    server.belongings()
    ended = exits.collect() if exits is not None else []
    after = _Look(server, stewards)
    if exits is not None and exits.missed:
        notes.append("the kernel had more to tell of ended processes than there was room for: PID 1s are too low")

    parts = {part: after.since(before, part) for part in (*_LIVING, _STEWARD)}
    parents = ("warden", "mason", "templates", _STEWARD)
    reaped_s = sum(usage.reaped_s for part, usage in parts.items() if part in parents)
    inits, programs, replaced = _sort(ended, before, after)
    parts["templates"] += replaced
    known = inits + programs
    if exits is not None:
        rest = reaped_s - known.cpu_s - replaced.cpu_s
        parts |= {_INIT: inits, _PROGRAM: programs, _ENDING: Usage(system_s=max(0.0, rest))}
    else:
        parts[_PROGRAM if stewards else _TOGETHER] = Usage(system_s=reaped_s)
    parts["kernel workers"] = after.kernel_since(before)
    parts["load generator"] = Usage(user_s=load.cpu_s)
    whole = after.machine - before.machine
    total = sum(parts.values(), Usage())
    parts |= {"all of these": total, "the whole machine": whole}
    notes += [
        f"{load.runs} runs, {load.rate:.0f} a second, p50 {load.p50_s * 1e3:.1f} ms, p99 {load.p99_s * 1e3:.1f} ms",
        "the whole machine is counted by the clock's tick, the others exactly; it includes what else runs here",
    ]
    counted = (*_LIVING, _STEWARD, *((_INIT, _PROGRAM) if exits is not None else ()), "kernel workers")
    rows = [
        _row(
            part, usage, load.runs, exact=part in counted, split=exits is not None or part not in (_PROGRAM, _TOGETHER)
        )
        for part, usage in parts.items()
        if usage.cpu_s
    ]
    return Spent(load=load, rows=tuple(rows), notes=tuple(notes))


class _Look:
    """All counters at one moment, the server at rest."""

    def __init__(self, server: Server, stewards: tuple[int, ...]) -> None:
        self.parts = {**processes.parts(server.pid), _STEWARD: list(stewards)}
        self._usages = {pid: processes.usage([pid]) for part in (*_LIVING, _STEWARD) for pid in self.parts[part]}
        self.kernel = processes.kernel_workers()
        self.machine = processes.machine()

    def of(self, pid: int) -> Usage:
        return self._usages.get(pid, Usage())

    def kernel_since(self, before: "_Look") -> Usage:
        """What the kernel's threads that live have used between. One that has ended meanwhile counts nothing."""
        return sum((usage - before.kernel.get(pid, Usage()) for pid, usage in self.kernel.items()), Usage())

    def since(self, before: "_Look", part: str) -> Usage:
        """What the processes of a part have used between; those that were begun meanwhile count from their start."""
        return sum((self.of(pid) - before.of(pid) for pid in self.parts[part]), Usage())


def _sort(ended: list[Ended], before: _Look, after: _Look) -> tuple[Usage, Usage, Usage]:
    """What PID 1s, what their descendants, and what templates have used that ended."""
    wardens = set(after.parts["warden"])
    templates = set(before.parts["templates"])
    sandboxed = dict.fromkeys(after.parts["sandboxes"], True)
    inits = programs = replaced = Usage()
    for one in reversed(ended):  # parents end after their children: so we meet them first
        is_init = one.parent in wardens and one.pid not in templates
        is_program = sandboxed.get(one.parent, False)
        sandboxed[one.pid] = is_init or is_program
        if is_init:
            inits += one.usage
        elif is_program:
            programs += one.usage
        elif one.parent in wardens:
            replaced += one.usage - before.of(one.pid)
    return inits, programs, replaced


def _row(part: str, usage: Usage, runs: int, *, exact: bool, split: bool) -> Row:
    return Row(
        part=part,
        cpu_ms=usage.cpu_s / runs * 1e3,
        user_ms=usage.user_s / runs * 1e3 if split else None,
        system_ms=usage.system_s / runs * 1e3 if split else None,
        switches=usage.switches / runs if exact or part == "the whole machine" else None,
        faults=usage.faults / runs if exact else None,
    )


def sheet(found: Spent, title: str = "CPU time of a run by process, in milliseconds") -> Sheet:
    """The table that is printed."""

    def words(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    return Sheet(
        title=title,
        columns=("", "CPU", "user", "system", "context switches", "page faults"),
        rows=tuple(
            (
                row.part,
                words(row.cpu_ms, 3),
                words(row.user_ms, 3),
                words(row.system_ms, 3),
                words(row.switches, 1),
                words(row.faults, 0),
            )
            for row in found.rows
        ),
        notes=found.notes,
    )
