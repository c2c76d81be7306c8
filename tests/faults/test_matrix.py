"""One fault after the other under steady use of everything: nothing is lost, done twice, left over or wrong.

The short form of `python -m bench.faults`, which `make soak` runs for long. STOCKADE_FAULTS_SEED chooses other faults,
in another order; STOCKADE_LONG_TESTS=1 tries all of them.
"""

import os
import shutil
from pathlib import Path

import pytest
from bench.faults import rehearse, short
from bench.faults_kinds import KINDS
from bench.measure import BenchError
from bench.services import postgresql_binaries

from tests.faults.sessions import LONG

pytestmark = pytest.mark.anyio
SEED = int(os.environ.get("STOCKADE_FAULTS_SEED", "8"))
RECOVERY_S = 180.0
"""A machine that runs other tests beside these starts a server in a minute."""


def why_not() -> str:
    """Why faults cannot be rehearsed here; empty where they can."""
    if os.geteuid():
        return "only root can give a deployment control groups and file systems of its own"
    if not all(Path(f"/sys/fs/cgroup/{name}/cgroup.procs").exists() for name in ("pids", "memory")):
        return "control groups v1 are not here"
    if shutil.which("redis-server") is None:
        return "redis-server is not installed (Debian package redis-server)"
    try:
        postgresql_binaries()
    except BenchError as error:
        return str(error)
    return ""


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
@pytest.mark.parametrize("has_services", [True, False] if LONG else [True])
async def test_whatever_breaks_nothing_is_lost_or_left_and_all_works_again(has_services: bool) -> None:
    """A server, a worker, PostgreSQL and Redis (or SQLite), in use all the time; nobody mends anything."""
    kinds = list(KINDS) if LONG else short(SEED)
    print(f"STOCKADE_FAULTS_SEED={SEED}")
    if not has_services:
        kinds = [kind for kind in kinds if not kind.needs_services]
    found = await rehearse(seed=SEED, kinds=kinds, recovery_s=RECOVERY_S, has_services=has_services, tell=print)
    assert not found.ledger.violations, "\n".join(found.ledger.violations)
    assert set(found.ledger.injected) == {kind.name for kind in kinds} - set(found.skipped)
    done = found.ledger.did
    assert all(done[what] for what in ("run", "job", "session", "exec in a box", "write a file", "key")), done


def test_a_short_rehearsal_has_a_fault_of_each_group_and_a_seed_tells_which() -> None:
    groups = {kind.group for kind in KINDS}
    for seed in range(20):
        chosen = short(seed)
        assert {kind.group for kind in chosen} == groups
        assert len(chosen) == len(groups)
        assert [kind.name for kind in chosen] == [kind.name for kind in short(seed)]
    assert {kind.name for seed in range(200) for kind in short(seed)} == {kind.name for kind in KINDS}
