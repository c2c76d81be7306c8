"""Places in which a warden may find itself, on a host with nothing but cgroup v2."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stockade.warden import kernel
from tests.warden.raw import Client, Warden

__all__ = ["LEAF", "PREFIX", "ROOT", "SCENES", "Scene"]

ROOT = Path("/sys/fs/cgroup")
PREFIX = "stockade-"
LEAF = "stockade-host"
_CONTROLLERS = ("cpu", "memory", "pids")
_DELEGATED_FILES = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
_USER = 1000


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where a warden is started."""

    name: str
    uid: int = 0
    group: str = ""
    """The group that the warden's starter is in, below the root."""
    controllers: tuple[str, ...] = _CONTROLLERS
    """Those that the group may hand down."""
    delegated: bool = True
    """Whether the group is its user's to write to."""
    contained: bool = False
    """Whether the group is all that can be seen, as in a container."""

    @property
    def base(self) -> Path:
        """Where wardens make their directories, as their starter sees it."""
        return ROOT if self.contained else ROOT / self.group

    @property
    def enforced(self) -> tuple[str, ...]:
        """The controllers that a warden there can use."""
        return self.controllers if self.delegated else ()

    def prepare(self) -> None:
        """From outside: make the group and hand it over, as a service manager would."""
        if not self.group:
            return
        path = ROOT / self.group
        path.mkdir(parents=True)
        for parent, controllers in ((ROOT, _CONTROLLERS), (path.parent, self.controllers)):
            (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
        if self.delegated:
            for name in ("", *_DELEGATED_FILES):
                os.chown(path / name, self.uid, self.uid)

    def enter(self) -> None:
        """From inside: become the one who starts wardens there."""
        if self.group:
            (ROOT / self.group / "cgroup.procs").write_text("0")
        if self.contained:
            kernel.unshare(kernel.CLONE_NEWCGROUP | kernel.CLONE_NEWNS)
            kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
            kernel.umount(str(ROOT), 0)
            kernel.mount("cgroup2", str(ROOT), "cgroup2")
        if self.uid:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)

    def directories(self) -> set[str]:
        """Of wardens, with their groups."""
        found = set()
        for folder, folders, _ in os.walk(self.base):  # groups that vanish meanwhile are none
            inside = os.path.relpath(folder, self.base).startswith(PREFIX)
            found |= {
                os.path.relpath(os.path.join(folder, name), self.base)
                for name in folders
                if (inside or name.startswith(PREFIX)) and name != LEAF
            }
        return found

    @contextlib.contextmanager
    def warden(self) -> Iterator[Warden]:
        with tempfile.TemporaryDirectory() as directory:
            warden = Warden(Path(directory))
            assert warden.word == {"ok": True}, warden.word
            try:
                yield warden
                if warden.process.poll() is None:
                    status = warden.stop()
                    assert status == 0, f"the warden ended with status {status}"
            finally:
                warden.close()

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with self.warden() as warden, warden.client() as client:
            yield client


SCENES = (
    Scene(name="root"),
    Scene(name="container", group="container.slice/app", contained=True),
    Scene(name="delegated", uid=_USER, group="delegated.slice/app"),
    Scene(name="session", uid=_USER, group="session.slice/app", controllers=("memory", "pids")),
    Scene(name="undelegated", uid=_USER, group="undelegated.slice/app", delegated=False),
)
