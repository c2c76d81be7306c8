"""What this host enforces, and what it cannot, for `stockade doctor` and for those who refuse to go without."""

import os
import platform
from typing import Any

from .cgroups import Cgroups
from .image import Image

__all__ = ["make_report"]

_DELEGATE = (
    "run as root, or under a delegated control group: systemd-run --user --scope -p Delegate=yes -- stockade serve"
)


def make_report(cgroups: Cgroups, image: Image, *, own_uids: bool) -> dict[str, Any]:
    """The facts as one JSON object: `features` (name, enforced, mechanism, remedy) and `details`."""
    release = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in platform.release().split(".")[:2])
    features = [
        _yes("namespaces", "user, mount, pid, net, ipc, uts and cgroup namespaces of its own for every sandbox"),
        _yes("system_calls", "seccomp: default-deny filter; other ABIs are refused"),
        _yes("privileges", "no capabilities, no_new_privs, unprivileged user"),
        _yes("network", "network namespace with nothing but a loopback interface"),
        _yes("disk", "tmpfs of the limit's size and inodes below the overlay"),
        _yes("wall_time", "timer of the warden; PID 1 is killed, and with it its pid namespace"),
        _yes("output", "pipes emptied into bounded memory files"),
        _controller(cgroups, "memory", "memory", "memory"),
        (
            _yes("swap", "none is in use, or it is limited together with memory")
            if cgroups.swap_closed
            else _no("swap", "memory may flow over into swap", "boot with swapaccount=1, or swapoff -a")
        ),
        _processes(cgroups, release),
        _controller(cgroups, "cpu_rate", "cpu", "CPU quota"),
        (
            _yes("cpu_time", f"cgroup v{cgroups.cpu_time_tree.version} CPU counter, read by the warden's timer")
            if cgroups.cpu_time_tree is not None
            else _no("cpu_time", "no CPU counter of a group can be read", _DELEGATE)
        ),
        (
            _yes("own_ids", "65,536 host user ids for each sandbox, far above those of people and services")
            if own_uids
            else {
                **_no("own_ids", "all sandboxes run as the user who started the warden", "run as root"),
                "required": False,
            }
        ),
        _own_inodes(image),
        (
            _yes("pausing", "cgroup v2 freezer")
            if any(tree.version == 2 for tree in cgroups.trees)
            else {
                **_no(
                    "pausing", "no cgroup v2 hierarchy that we may write to", "boot with cgroup v2, and as for memory"
                ),
                "required": False,
            }
        ),
    ]
    return {
        "features": features,
        "details": {
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "cgroups": ", ".join(f"v{tree.version}: {' '.join(sorted(tree.controllers))}" for tree in cgroups.trees)
            or "none that we may write to",
            "privileges": "root" if own_uids else "ordinary user",
            "processors": str(os.cpu_count() or 1),
        },
    }


def _yes(name: str, mechanism: str) -> dict[str, Any]:
    return {"name": name, "enforced": True, "mechanism": mechanism, "remedy": ""}


def _no(name: str, mechanism: str, remedy: str) -> dict[str, Any]:
    return {"name": name, "enforced": False, "mechanism": mechanism, "remedy": remedy}


def _own_inodes(image: Image) -> dict[str, Any]:
    """Whether what sandboxes see of the host can be watched and locked together with it (`mounts._show`)."""
    shared = ", ".join(f"/{target}" for _, target in image.binds if target not in image.whole)
    if not shared:
        return _yes("own_inodes", "the host's programs are shown through a read-only overlay of each sandbox's own")
    why = f"something is mounted below {shared}: a sandbox can tell when the host opens files there, and shares locks"
    return {**_no("own_inodes", why, "unmount it, or take it out of sandbox.host_paths"), "required": False}


def _controller(cgroups: Cgroups, name: str, controller: str, label: str) -> dict[str, Any]:
    tree = cgroups.tree(controller)
    if tree is not None:
        return _yes(name, f"cgroup v{tree.version} {label}")
    return _no(name, cgroups.problems.get(controller, f"no {controller} controller is mounted"), _DELEGATE)


def _processes(cgroups: Cgroups, release: tuple[int, ...]) -> dict[str, Any]:
    if cgroups.tree("pids") is None and release >= (5, 14):
        # Since then RLIMIT_NPROC counts inside the user namespace, which is the sandbox's own.
        return _yes("processes", "RLIMIT_NPROC in the sandbox's own user namespace")
    return _controller(cgroups, "processes", "pids", "pids")
