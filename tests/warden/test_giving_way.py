"""Who gets a processor where several want it: runs that have had their share give way, templates come first."""

import os
from pathlib import Path

import pytest

from stockade.warden.cgroups import Cgroups, Group, GroupLimits
from tests.warden.raw import Warden, request, until
from tests.warden.test_cgroups import needs_groups, of_warden, own_groups

USUAL = {"cpu.shares": 1024, "cpu.weight": 100}
LIMITS = GroupLimits(memory_bytes=64 << 20, processes=16, cpus=1.0)


def weight(folder: str) -> float | None:
    """Of one group, as a multiple of the usual; `None` where the hierarchy knows no weights."""
    for name, usual in USUAL.items():
        path = Path(folder, name)
        if path.exists():
            return int(path.read_text()) / usual
    return None


def of_group(made: Cgroups, group: Group) -> float:
    found = {weight(f"{folder}/{group.name}") for folder in of_warden(os.getpid())} - {None}
    (one,) = found
    assert one is not None
    return one


@needs_groups
def test_a_group_gives_way_until_it_is_limited_anew() -> None:
    with own_groups() as made:
        group = made.take()
        group.limit(LIMITS)
        assert of_group(made, group) == 1
        group.give_way()
        assert of_group(made, group) == pytest.approx(1 / 16, rel=0.1)
        group.limit(LIMITS)
        assert of_group(made, group) == 1
        group.give_way()
        assert group.renew(), "nobody is in it"
        assert of_group(made, group) == 1
        made.give_back(group)


@needs_groups
def test_a_template_comes_first() -> None:
    with own_groups() as made:
        group = made.take()
        made.limit_template(group)
        assert of_group(made, group) == 4
        made.give_back(group)


@needs_groups
def test_a_run_that_computes_for_long_gives_way_and_one_that_sleeps_does_not(warden: Warden) -> None:
    def weights() -> list[float]:
        """Of the groups that hold a process."""
        cells = (cell for folder in of_warden(warden.pid) for cell in Path(folder).glob("cell-*"))
        held = (str(cell) for cell in cells if (cell / "cgroup.procs").read_text())
        return [found for cell in held if (found := weight(cell)) is not None]

    with warden.client() as client:
        client.start(request(1, "/bin/sleep", "60", wall_s=60.0))
        client.start(request(2, "/bin/sh", "-c", "while :; do :; done", cpus=1.0, cpu_s=60.0, wall_s=60.0))
        until(lambda: min(weights()) < 1)
        assert 1 in weights(), "the one that sleeps"
        assert sum(found < 1 for found in weights()) == 1
