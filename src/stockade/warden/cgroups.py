"""Control groups, v1 and v2: a group for each sandbox, under one directory for each warden.

On a hybrid host the v1 controllers enforce and the (empty) v2 tree counts CPU time; on a pure v2 host one directory
does everything. A controller is looked for in v1 first: one that is mounted there cannot be had in v2.

Directories are named `stockade-<pid namespace>-<pid>-<start time>` after their warden. A warden that finds the
directory of one that is dead removes it: nothing is left behind by `kill -9`.
"""

import contextlib
import errno
import os
import time
from dataclasses import dataclass, field

__all__ = ["Cgroups", "Group", "GroupLimits"]

_PREFIX = "stockade-"
_HOST_LEAF = "stockade-host"
_MOVES = 100
_PERIOD_US = 100_000  # of the CPU quota: the kernel's default


@dataclass(frozen=True, kw_only=True)
class GroupLimits:
    """What a group holds its processes to."""

    memory_bytes: int
    processes: int
    cpus: float


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """One mounted hierarchy, at the directory under which this warden makes its groups."""

    version: int
    controllers: frozenset[str]
    base: int
    """Descriptor of this warden's directory."""
    parent: int
    """Descriptor of the directory that holds it."""


def _read(path: str, directory: int) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def _write(path: str, value: str, directory: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _counters(text: str) -> dict[str, int]:
    """`name value` lines, as in cpu.stat and memory.events."""
    return {key: int(value) for key, _, value in (line.partition(" ") for line in text.splitlines())}


def _start_time(pid: int) -> str | None:
    """When that process started, in the kernel's own count; `None` when it has ended and only waits to be reaped."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        numbers = stat.read().rpartition(b")")[2].split()  # the name, before it, may hold blanks
    return None if numbers[0] in b"ZX" else numbers[19].decode()


def warden_tag() -> str:
    """A name for this process that no other process has or will have until the next boot."""
    return f"{os.stat('/proc/self/ns/pid').st_ino}-{os.getpid()}-{_start_time(os.getpid())}"


def _is_dead(tag: str) -> bool:
    """Whether the warden of that tag is gone. One in another pid namespace cannot be judged: leave it alone."""
    namespace, _, rest = tag.partition("-")
    pid, _, start = rest.partition("-")
    if namespace != str(os.stat("/proc/self/ns/pid").st_ino) or not pid.isdigit():
        return False
    try:
        return _start_time(int(pid)) != start
    except (FileNotFoundError, ProcessLookupError):
        return True


@dataclass
class Group:
    """The control groups of one sandbox."""

    cgroups: "Cgroups"
    name: str
    trees: tuple[_Tree, ...]
    joins: list[int] = field(default_factory=list)
    """Descriptors of `cgroup.procs`: a process that writes `0` there has joined."""
    oom_event: int | None = None
    """v1: eventfd that becomes readable when the group runs out of memory. v2 kills the whole group itself."""

    def close_joins(self) -> None:
        for fd in self.joins:
            os.close(fd)
        self.joins.clear()

    def cpu_us(self) -> tuple[int, int]:
        """User and system CPU microseconds that the group has used."""
        tree = self.cgroups.cpu_time_tree
        if tree is None:
            return 0, 0
        if tree.version == 2:
            stat = _counters(_read(f"{self.name}/cpu.stat", tree.base))
            return stat["user_usec"], stat["system_usec"]
        user, system = (int(_read(f"{self.name}/cpuacct.usage_{kind}", tree.base)) for kind in ("user", "sys"))
        return user // 1000, system // 1000

    def open_cpu_stat(self) -> int | None:
        """A descriptor from which a process inside can read its own group's CPU time, or `None`."""
        tree = self.cgroups.cpu_time_tree
        if tree is None:
            return None
        name = "cpu.stat" if tree.version == 2 else "cpuacct.usage"
        return os.open(f"{self.name}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree.base)

    def memory_peak(self) -> int | None:
        """Most bytes that the group ever held, or `None` where the kernel does not say."""
        tree = self.cgroups.tree("memory")
        if tree is None:
            return None
        name = "memory.peak" if tree.version == 2 else "memory.max_usage_in_bytes"
        try:
            return int(_read(f"{self.name}/{name}", tree.base))
        except FileNotFoundError:  # memory.peak came with Linux 5.19
            return None

    def oom_kills(self) -> int:
        """How many processes the group lost for want of memory."""
        tree = self.cgroups.tree("memory")
        if tree is None:
            return 0
        name = "memory.events" if tree.version == 2 else "memory.oom_control"
        return _counters(_read(f"{self.name}/{name}", tree.base)).get("oom_kill", 0)

    def forks_refused(self) -> int:
        """How many processes or threads the process limit refused."""
        tree = self.cgroups.tree("pids")
        return 0 if tree is None else _counters(_read(f"{self.name}/pids.events", tree.base)).get("max", 0)

    def close(self) -> bool:
        """Remove the directories; False while the kernel still holds one."""
        if self.oom_event is not None:
            os.close(self.oom_event)
            self.oom_event = None
        left = []
        for tree in self.trees:
            try:
                os.rmdir(self.name, dir_fd=tree.base)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                left.append(tree)
        self.trees = tuple(left)
        return not left


class Cgroups:
    """Finds what this host offers, and makes groups."""

    def __init__(self) -> None:
        self.trees: list[_Tree] = []
        self.problems: dict[str, str] = {}
        """Why a controller is not to be had, by its name."""
        self.held: list[Group] = []
        """Groups that the kernel was not done with when they should have been removed."""
        self._tag = warden_tag()
        for version, controllers, directory in _hierarchies():
            self._adopt(version, controllers, directory)
        self._memory, self._pids, self._cpu = self.tree("memory"), self.tree("pids"), self.tree("cpu")
        self.cpu_time_tree = self.tree("cpu.stat") or self.tree("cpuacct")
        self.swap_closed = self._closes_swap(self._memory)
        self._cores = os.cpu_count() or 1

    def tree(self, controller: str) -> _Tree | None:
        """The hierarchy in which *controller* can be used (`cpu.stat`: any of v2), or `None`."""
        return next((tree for tree in self.trees if controller in tree.controllers), None)

    def create(self, name: str) -> Group:
        """Make the groups of a sandbox, without limits yet. Nothing is left when that fails."""
        group = self.find(name)
        try:
            for tree in group.trees:
                os.mkdir(name, 0o755, dir_fd=tree.base)
                group.joins.append(os.open(f"{name}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=tree.base))
        except BaseException:
            group.close_joins()
            group.close()
            raise
        return group

    def find(self, name: str) -> Group:
        """The groups of a sandbox that `create` made, or will make, in this process or another."""
        wanted = (self._memory, self._pids, self._cpu, self.cpu_time_tree)
        trees = dict.fromkeys(tree for tree in wanted if tree is not None)
        return Group(cgroups=self, name=name, trees=tuple(trees))

    def limit(self, group: Group, limits: GroupLimits) -> None:
        """Set the limits of a group that has nothing of a tenant's in it yet.

        All groups have been joined before: joining one can take 10 ms, for it waits until every fork and exit on the
        machine has let go of a lock (cgroup_threadgroup_rwsem).
        """
        name = group.name
        if (tree := self._memory) is not None:
            memory = str(limits.memory_bytes)
            if tree.version == 2:
                _write(f"{name}/memory.max", memory, tree.base)
                _write(f"{name}/memory.oom.group", "1", tree.base)
                with contextlib.suppress(FileNotFoundError):  # a kernel without swap has no such file
                    _write(f"{name}/memory.swap.max", "0", tree.base)
            else:
                _write(f"{name}/memory.limit_in_bytes", memory, tree.base)
                with contextlib.suppress(FileNotFoundError):  # likewise
                    _write(f"{name}/memory.memsw.limit_in_bytes", memory, tree.base)
                self._watch_oom(group, tree)
        if (tree := self._pids) is not None:
            _write(f"{name}/pids.max", str(limits.processes), tree.base)
        if (tree := self._cpu) is not None and limits.cpus < self._cores:  # else it would not bind
            quota = max(1000, int(limits.cpus * _PERIOD_US))
            if tree.version == 2:
                _write(f"{name}/cpu.max", f"{quota} {_PERIOD_US}", tree.base)
            else:
                _write(f"{name}/cpu.cfs_quota_us", str(quota), tree.base)

    @staticmethod
    def _watch_oom(group: Group, tree: _Tree) -> None:
        """v1 kills one process only; be told, so that the rest can be killed too (memory.txt, section 10)."""
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        group.oom_event = event
        control = os.open(f"{group.name}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree.base)
        try:
            _write(f"{group.name}/cgroup.event_control", f"{event} {control}", tree.base)
        finally:
            os.close(control)

    def _adopt(self, version: int, controllers: frozenset[str], directory: str) -> None:
        """Use a hierarchy if we may write to it: make our directory there, and clear dead wardens' ones."""
        name = _PREFIX + self._tag
        try:
            parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._give_up(controllers, f"{directory}: {error.strerror}")
            return
        place = os.fstat(parent)
        if any(os.path.samestat(place, os.fstat(tree.parent)) for tree in self.trees):
            os.close(parent)  # mounted in several places: ours already
            return
        try:
            _sweep(parent)
            if version == 2:
                controllers = _enable(parent, controllers, directory, self.problems)
            os.mkdir(name, 0o755, dir_fd=parent)
            base = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
            if version == 2 and controllers:
                _write("cgroup.subtree_control", " ".join(f"+{c}" for c in sorted(controllers)), base)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)
            os.close(parent)
            self._give_up(controllers, f"{directory}: {error.strerror}")
            return
        if version == 2:
            controllers |= {"cpu.stat"}  # counted in every v2 group, also without a controller
        self.trees.append(_Tree(version=version, controllers=controllers, base=base, parent=parent))

    def _give_up(self, controllers: frozenset[str], why: str) -> None:
        for controller in controllers:
            self.problems.setdefault(controller, why)

    @staticmethod
    def _closes_swap(tree: _Tree | None) -> bool:
        """Whether memory cannot flow over into swap: there is none, or the controller limits both."""
        with open("/proc/swaps") as swaps:
            if len(swaps.readlines()) < 2:
                return True
        if tree is None:
            return False
        if tree.version == 2:
            return os.access("memory.swap.max", os.F_OK, dir_fd=tree.base)  # the root of all groups has none
        return os.access("memory.memsw.limit_in_bytes", os.F_OK, dir_fd=tree.parent)

    def close(self) -> None:
        """Remove this warden's own directories."""
        for tree in self.trees:
            _remove(_PREFIX + self._tag, tree.parent)


def _hierarchies() -> list[tuple[int, frozenset[str], str]]:
    """Every mounted hierarchy as (version, controllers, the directory in which to make ours); v1 first."""
    own: dict[str, str] = {}
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            for name in names.split(",") or [""]:
                own[name] = path
    found: list[tuple[int, frozenset[str], str]] = []
    known = {"memory", "pids", "cpu", "cpuacct"}
    # Root's groups lie at the top of each tree: only there may v2 hold processes *and* hand controllers down, and the
    # next warden finds what a dead one left wherever it is started. An ordinary user has just the group that it is in.
    top = os.geteuid() == 0
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.rstrip("\n").partition(" - ")
            root, mount_point = left.split()[3:5]
            kind, _, options = [*right.split(), "", ""][:3]
            if kind == "cgroup":
                controllers = frozenset(known) & frozenset(options.split(","))
                if controllers:
                    path = "" if top else own.get(next(iter(controllers)), "/")
                    found.append((1, frozenset(controllers), _below(mount_point, root, path)))
            elif kind == "cgroup2":
                path = "" if top else own.get("", "/")
                if os.path.basename(path) == _HOST_LEAF:  # an earlier warden moved us: the group is the one above
                    path = os.path.dirname(path)
                found.append((2, frozenset(known) - {"cpuacct"}, _below(mount_point, root, path)))
    return sorted(found, key=lambda entry: entry[0])


def _below(mount_point: str, root: str, path: str) -> str:
    if root != "/" and path.startswith(root):
        path = path[len(root) :]
    return os.path.join(mount_point, path.lstrip("/")).rstrip("/")


def _enable(parent: int, wanted: frozenset[str], directory: str, problems: dict[str, str]) -> frozenset[str]:
    """Hand down the *wanted* controllers of a v2 group to its children; returns those that worked."""
    there = wanted & set(_read("cgroup.controllers", parent).split())
    for controller in wanted - there:
        problems.setdefault(controller, f"{directory}: the {controller} controller is not available there")
    enabled = there & set(_read("cgroup.subtree_control", parent).split())
    missing = there - enabled
    try:
        if missing:
            _make_room(parent)
    except OSError as error:
        for controller in missing:
            problems.setdefault(controller, f"{directory}: cannot hand down {controller}: {error.strerror}")
        return frozenset(enabled)
    # memory first: it is the one that the kernel refuses while a process is in the group.
    for controller in sorted(missing, key=lambda name: (name != "memory", name)):
        try:
            _write("cgroup.subtree_control", f"+{controller}", parent)
        except OSError as error:
            problems.setdefault(controller, f"{directory}: cannot hand down {controller}: {error.strerror}")
            there -= {controller}
    return frozenset(there)


def _make_room(parent: int) -> None:
    """Move those that are in a group (we, our caller) to a leaf of it: "no internal processes", says cgroups(7).

    Before anything is handed down, not when the kernel says EBUSY: it does not say so of cpu and pids. It hands them
    down, and the group becomes the root of threaded ones, in which memory cannot be had and no process can be put
    into a child (EOPNOTSUPP). The root of all groups is exempt from the rule.
    """
    if not os.access("cgroup.type", os.F_OK, dir_fd=parent):  # the root has none
        return
    made = False
    try:
        for _ in range(_MOVES):  # some fork meanwhile, and one read does not tell of thousands
            pids = _read("cgroup.procs", parent).split()
            if not pids:
                return
            if not made:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(_HOST_LEAF, 0o755, dir_fd=parent)
                made = True
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    _write(f"{_HOST_LEAF}/cgroup.procs", pid, parent)
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(_HOST_LEAF, dir_fd=parent)
        raise
    raise OSError(errno.EBUSY, "processes keep coming into that group")


def _sweep(parent: int) -> None:
    """Remove the directories of wardens that are dead, with what may still run in them."""
    for name in os.listdir(parent):
        if name.startswith(_PREFIX) and name != _HOST_LEAF and _is_dead(name.removeprefix(_PREFIX)):
            _remove(name, parent)


def _remove(name: str, parent: int) -> None:
    """Kill what is in a group's children, then remove them and the group."""
    try:
        directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return
    try:
        for child in os.listdir(directory):
            with contextlib.suppress(NotADirectoryError):
                _remove_group(child, directory)
    finally:
        os.close(directory)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=parent)


def _remove_group(name: str, directory: int) -> None:
    deadline = time.monotonic() + 2.0
    while True:
        try:
            os.rmdir(name, dir_fd=directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                return
        for pid in _read(f"{name}/cgroup.procs", directory).split():
            # 0: in a pid namespace that we do not see into (and to kill, it means our own process group)
            with contextlib.suppress(ProcessLookupError):
                if pid != "0":
                    os.kill(int(pid), 9)
        time.sleep(0.002)
