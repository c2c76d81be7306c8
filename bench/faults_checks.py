"""After a rehearsal: is everything there that was acknowledged, once, and is nothing left?"""

import asyncio
import fcntl
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from bench.faults_clients import Unanswered
from bench.faults_ledger import Ledger
from bench.faults_play import Company
from bench.faults_stage import Stage
from bench.faults_units import command_of, is_alive
from stockade.store import Database, UsageTable

__all__ = ["at_rest", "check_promises", "crashes", "nothing_left"]

WITHIN_S = 60.0
AGAIN_S = 0.25
SPARE_PROCESSES = 8
"""How many more may be there at rest: cells that are made ahead follow what was wanted."""
SPARE_GROUPS = 40
_PAGE = 500
_LOOP_GET_STATUS64 = 0x4C05
"""loop(4): its first member is the device number of the file system that holds the file."""
_LOOP_STATUS_BYTES = 232


async def check_promises(company: Company, stage: Stage) -> None:
    """Look at everything that clients were told, and at what was counted for it."""
    ledger = company.ledger
    for jobs in company.jobs:
        for job in jobs.accepted:
            if not await _becomes(lambda jobs=jobs, job=job: jobs.look(job)):  # type: ignore[misc]
                ledger.violated(f"job {job} was accepted, and has not ended {WITHIN_S:g} s after the last fault")
    _ended_once(stage, ledger)
    await _counted_once(company, stage)
    checks: list[Callable[[], Awaitable[None]]] = [company.keys.check]
    checks += [one.check for one in (company.boxes, company.sessions) if one.name]
    for check in checks:
        try:
            await check()
        except Unanswered as error:
            ledger.violated(f"what was acknowledged cannot be read: {error}")


async def at_rest(stage: Stage, before: Counter[str] | None = None, ledger: Ledger | None = None) -> Counter[str]:
    """How much there is when nobody wants anything; with *before*, it must not be more."""

    def count() -> Counter[str]:
        pids = {unit: stage.groups.pids(unit) for unit in ("server", "worker")}
        found = Counter({f"processes of the {unit}": len(known) for unit, known in pids.items()})
        found["control groups"] = len(stage.groups.made_inside())
        found["network namespaces"] = len({_namespace(pid) for known in pids.values() for pid in known})
        found["loop devices"] = len(_loops(stage))
        found["mounts"] = len(_mounts(stage.folder))
        return found

    spare = {"control groups": SPARE_GROUPS, "loop devices": 1, "mounts": 0}
    deadline = time.monotonic() + (WITHIN_S if before is not None else 3.0)
    while True:
        now = count()
        more = {
            name: number - before[name]
            for name, number in now.items()
            if before is not None and number > before[name] + spare.get(name, SPARE_PROCESSES)
        }
        if time.monotonic() > deadline or (before is not None and not more):
            break
        await asyncio.sleep(AGAIN_S)
    if more and ledger is not None:
        ledger.violated(f"there is more at rest than there was: {more} of {dict(now)}")
    return now


async def nothing_left(stage: Stage, ledger: Ledger) -> None:
    """After the end of everything."""

    def left() -> list[str]:
        found = [f"process {pid}: {command_of(pid)}" for pid in stage.groups.pids() if is_alive(pid)]
        found += [f"control group {name}" for name in stage.groups.made_inside()]
        found += [f"loop device {name}" for name in _loops(stage)]
        return found + [f"mount {line}" for line in _mounts(stage.folder)]

    async def is_clean() -> bool:
        return not left()

    if not await _becomes(is_clean):
        ledger.violated(f"left behind: {left()[:12]}")


def crashes(stage: Stage) -> Counter[str]:
    """Errors that nobody foresaw, as the logs have them: event, type, and the last place."""
    found: Counter[str] = Counter()
    for name in ("server", "worker"):
        for line in stage.units[name].lines():
            if line.startswith("{") and '"trace"' in line:
                event = json.loads(line)
                place = event["trace"][-1].rpartition("/")[2] if event["trace"] else ""
                found[f"{name}: {event['event']}: {event['error']} at {place}"] += 1
    return found


def _ended_once(stage: Stage, ledger: Ledger) -> None:
    """No result was taken twice: workers log each one that the store took."""
    ended: Counter[str] = Counter()
    for name in ("server", "worker"):
        for line in stage.units[name].lines():
            if '"job.ended"' in line and line.startswith("{"):
                ended[json.loads(line)["job_id"]] += 1
    for job, times in ended.items():
        if times > 1:
            ledger.violated(f"the result of job {job} was stored {times} times")


async def _counted_once(company: Company, stage: Stage) -> None:
    """Each job that has ended is in the sums of its key, once."""
    seen = counted = 0

    async def agrees() -> bool:
        nonlocal seen, counted
        seen, cursor = 0, ""
        while True:
            path = f"/v1/jobs?key={company.job_key}&limit={_PAGE}{cursor and f'&cursor={cursor}'}"
            page = (await company.operator.ask("list jobs", "GET", path, expected=200)).json()
            seen += sum(one["status"] not in ("queued", "running") for one in page["jobs"])
            cursor = page.get("cursor") or page.get("nextCursor") or ""
            if not cursor:
                break
        async with Database.at(stage.database) as database:
            used = dict(await UsageTable(database).by_key(now=datetime.now(UTC), days=3))
        counted = used[company.job_key].executions if company.job_key in used else 0
        return counted == seen

    if not await _becomes(agrees) or seen < sum(len(jobs.accepted) for jobs in company.jobs):
        company.ledger.violated(f"{seen} jobs have ended, and {counted} are counted in the usage of their key")


async def _becomes(condition: Callable[[], Awaitable[bool]]) -> bool:
    deadline = time.monotonic() + WITHIN_S
    while True:
        try:
            if await condition():
                return True
        except Unanswered:
            pass  # it has been noted
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(AGAIN_S)


def _namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _loops(stage: Stage) -> list[str]:
    """Loop devices that show a file on one of our file systems. Their paths are those of another mount namespace."""
    ours = {place.stat().st_dev for place in stage.disks.values()}
    found = []
    for folder in Path("/sys/block").glob("loop*/loop"):
        status = bytearray(_LOOP_STATUS_BYTES)
        try:
            device = os.open(f"/dev/{folder.parent.name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # let go of meanwhile
            continue
        try:
            fcntl.ioctl(device, _LOOP_GET_STATUS64, status)
            if int.from_bytes(status[:8], sys.byteorder) in ours:
                found.append(folder.parent.name)
        except OSError:
            continue
        finally:
            os.close(device)
    return found


def _mounts(folder: Path) -> list[str]:
    """Those below our folder, but for the two file systems that we have made."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if str(folder) in line and not line.startswith("faults ")]
