"""What containers of this engine enforce: what the engine says, held against what a container was seen to have."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stockade.backends.base import Feature
from stockade.model import Limits

__all__ = ["Probe", "features"]

_SLACK: Final = 0.02  # kernels round to pages and periods


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A container that was made to be looked at."""

    asked: Limits
    in_force: Mapping[str, Any]
    """What its own control groups say; nothing where it is shown none."""
    has_filter: bool


def features(facts: Mapping[str, Any], probe: Probe, *, socket: Path) -> tuple[Feature, ...]:
    """From the gate's facts and a container's, what is enforced."""
    is_gated = not (os.access(socket, os.W_OK) or os.geteuid() in (0, facts.get("gate_uid")))
    return (
        _yes("namespaces", f"mount, pid, net, ipc, uts and cgroup namespaces, made by {facts.get('runtime')}"),
        _feature(
            "system_calls",
            "seccomp: our default-deny filter on the tenant's processes, within the engine's own",
            holds=probe.has_filter,
            remedy="use a kernel with CONFIG_SECCOMP_FILTER",
        ),
        _yes("privileges", "no capabilities, no_new_privs, a user id of the container's own"),
        _yes("network", "network namespace with nothing but a loopback interface"),
        _feature(
            "disk",
            "read-only root; tmpfs of the limit's size and inodes, counted together by the guest (seen in a container)",
            holds=_is_near(probe.in_force.get("disk"), probe.asked.disk_bytes)
            and _is_near(probe.in_force.get("inodes"), probe.asked.disk_inodes + 1),
            remedy="use a runtime whose tmpfs knows `size` and `nr_inodes`: runc",
        ),
        _yes("wall_time", "timer of the guest, PID 1; beyond it of the gate, and end of input when that goes"),
        _yes("output", "pipes emptied by the guest up to the limit, which the server holds it to"),
        _limit("memory", "memory control group", facts, probe, probe.asked.memory_bytes),
        _limit("swap", "closed together with memory", facts, probe, 0),
        _limit(
            "processes",
            "pids control group, with room for the runtime's own kernel: a bound, not the number asked for"
            if facts.get("own_kernel")
            else "pids control group, and RLIMIT_NPROC",
            facts,
            probe,
            probe.asked.processes + 1,
        ),
        _limit("cpu_rate", "CPU quota", facts, probe, probe.asked.cpus),
        _feature(
            "cpu_time",
            "the group's CPU counter, read by the guest",
            holds=bool(probe.in_force.get("cpu_time")),
            remedy="use a runtime that shows containers their control groups: runc",
        ),
        Feature(
            name="own_ids",
            enforced=True,
            mechanism="a user id for each container"
            + (", in the engine's user namespace (userns-remap)" if facts.get("remapped") else ""),
            required=False,
        ),
        Feature(
            name="remapped",
            enforced=bool(facts.get("remapped")),
            mechanism="root of containers is nobody on the host"
            if facts.get("remapped")
            else "root of containers, which the guest is, has the host's user id 0, with three capabilities",
            remedy="" if facts.get("remapped") else 'set "userns-remap": "default" in /etc/docker/daemon.json',
            required=False,
        ),
        Feature(
            name="own_inodes",
            enforced=bool(facts.get("own_inodes")),
            mechanism="files of the image have inodes of the container's own"
            if facts.get("own_inodes")
            else "files of the host have one inode for all: inotify and locks tell of the host and of other tenants",
            remedy="" if facts.get("own_inodes") else "use the engine's storage driver overlay2, or an image",
            required=False,
        ),
        Feature(
            name="gate",
            enforced=is_gated,
            mechanism="only the gate can talk to the engine"
            if is_gated
            else "this process may talk to the engine's socket itself, and so may whoever takes it over",
            remedy="" if is_gated else "run the server as a user who may not, and `stockade docker-gate` beside it",
            required=False,
        ),
    )


def _limit(name: str, mechanism: str, facts: Mapping[str, Any], probe: Probe, asked: float) -> Feature:
    """Enforced when the engine says so, and the container's own control group does not say otherwise."""
    seen = probe.in_force.get(name)
    if seen is not None and not _is_near(seen, asked):
        why = f"asked for {asked:g}, in force is {float(seen):g}"
        return _feature(name, why, holds=False, remedy="look at the engine's log, and at its cgroup driver")
    if not facts.get(name):
        return _feature(
            name, "the engine says that this host has no such limit", holds=False, remedy="docker info says what is off"
        )
    return _yes(name, f"{mechanism} ({'seen in a container' if seen is not None else 'by the engine, not seen'})")


def _is_near(seen: Any, asked: float) -> bool:
    return isinstance(seen, int | float) and abs(seen - asked) <= _SLACK * asked


def _yes(name: str, mechanism: str) -> Feature:
    return Feature(name=name, enforced=True, mechanism=mechanism)


def _feature(name: str, mechanism: str, *, holds: bool, remedy: str) -> Feature:
    return Feature(name=name, enforced=holds, mechanism=mechanism, remedy="" if holds else remedy)
