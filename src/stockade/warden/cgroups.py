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
from collections import deque
from dataclasses import dataclass, field

from .fields import Refused

__all__ = ["Cgroups", "Group", "GroupLimits"]

_PREFIX = "stockade-"
_HOST_LEAF = "stockade-host"
_MOVES = 100
_PERIOD_US = 100_000  # of the CPU quota: the kernel's default
_WEIGHT_FILE = {1: ("cpu.shares", 1024), 2: ("cpu.weight", 100)}  # by version: its name, and the kernel's usual value
_USUAL, _MODEST, _FIRST = 1.0, 1 / 16, 4.0
_MOST_IDLE = 64
_IDLE_AT_REST = 12
_MOST_USES = 1000  # then new ones: whatever the kernel may still hold on account of a group goes with it
_TEMPLATE_MEMORY = 2 << 30
_TEMPLATE_PROCESSES = 512
_MOST_LEFT = 1 << 20  # bytes that a group may still be charged for when it is used again: caches of the kernel's


@dataclass(frozen=True, kw_only=True)
class GroupLimits:
    """What a group holds its processes to."""

    memory_bytes: int
    processes: int
    cpus: float
    die_together: bool = True
    """v2: whether all processes are killed when memory runs out, or one."""


_ROOM = GroupLimits(memory_bytes=128 << 20, processes=48, cpus=1.0)


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


@dataclass(eq=False)
class Group:
    """The control groups of one sandbox after another: made once, used again when they have been found empty.

    Making and removing four directories costs the kernel more than a sandbox's own processes do. What is read and
    written at each use stays open.
    """

    cgroups: "Cgroups"
    name: str
    trees: tuple[_Tree, ...]
    joins: list[int] = field(default_factory=list)
    """Descriptors of `cgroup.procs`: a process that writes `0` there has joined."""
    oom_event: int | None = None
    """v1: eventfd that becomes readable when the group runs out of memory. v2 kills the whole group itself."""
    uses: int = 0
    _limits: GroupLimits | None = None
    """What is in force."""
    _files: dict[str, int] = field(default_factory=dict)
    _oom_kills: int = 0
    """What the counters, which nothing resets, said when this use began."""
    _forks_refused: int = 0
    _has_patience: bool = False
    _weight: float = _USUAL

    def open(self, tree: _Tree, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of one of our files; the group's own, to be used by offset."""
        fd = self._files.get(name)
        if fd is None:
            fd = os.open(f"{self.name}/{name}", flags | os.O_CLOEXEC, dir_fd=tree.base)
            self._files[name] = fd
        return fd

    def _read(self, tree: _Tree, name: str, flags: int = os.O_RDONLY) -> str:
        return os.pread(self.open(tree, name, flags), 65536, 0).decode()

    def _write(self, tree: _Tree, name: str, value: str) -> None:
        os.pwrite(self.open(tree, name, os.O_RDWR), value.encode(), 0)

    def cpu_us(self) -> tuple[int, int]:
        """User and system CPU microseconds that the group has used."""
        tree = self.cgroups.cpu_time_tree
        if tree is None:
            return 0, 0
        if tree.version == 2:
            stat = _counters(self._read(tree, "cpu.stat"))
            return stat["user_usec"], stat["system_usec"]
        user, system = (int(self._read(tree, f"cpuacct.usage_{kind}")) for kind in ("user", "sys"))
        return user // 1000, system // 1000

    def cpu_stat(self) -> int | None:
        """A descriptor from which a process inside can read its own group's CPU time, or `None`. Ours to close."""
        tree = self.cgroups.cpu_time_tree
        return None if tree is None else self.open(tree, "cpu.stat" if tree.version == 2 else "cpuacct.usage")

    def memory_peak(self) -> int | None:
        """Most bytes that the group held in this use, or `None` where the kernel does not say."""
        tree = self.cgroups.tree("memory")
        if tree is None:
            return None
        try:
            if tree.version == 2:
                return int(self._read(tree, "memory.peak", os.O_RDWR))
            return int(self._read(tree, "memory.max_usage_in_bytes", os.O_RDWR))
        except FileNotFoundError:  # memory.peak came with Linux 5.19
            return None
        except PermissionError:  # ... and could be written to, which is how it is reset, only since 6.12
            assert tree.version == 2
            return int(self._read(tree, "memory.peak"))

    def oom_kills(self) -> int:
        """How many processes the group lost for want of memory."""
        return self._oom_kill_count() - self._oom_kills

    def _oom_kill_count(self) -> int:
        tree = self.cgroups.tree("memory")
        if tree is None:
            return 0
        name = "memory.events" if tree.version == 2 else "memory.oom_control"
        return _counters(self._read(tree, name)).get("oom_kill", 0)

    def forks_refused(self) -> int:
        """How many processes or threads the process limit refused."""
        return self._fork_refusal_count() - self._forks_refused

    def _fork_refusal_count(self) -> int:
        tree = self.cgroups.tree("pids")
        return 0 if tree is None else _counters(self._read(tree, "pids.events")).get("max", 0)

    def be_patient(self) -> None:
        """Have its processes run when no other group's wants to (`cpu.idle`, Linux 5.15), until `limit` is called."""
        if (tree := self.cgroups.cpu) is not None:
            with contextlib.suppress(OSError):  # an older kernel
                self._write(tree, "cpu.idle", "1")
                self._has_patience = True

    def give_way(self) -> None:
        """Have its processes get a sixteenth of what a group that has not given way does, where both want a processor.

        Until `limit` is called. Alone it is as fast as before.
        """
        self._weigh(_MODEST)

    def come_first(self) -> None:
        """Have its processes get four times as much as others: who waits for them waits for all that others do.

        Until `limit` is called.
        """
        self._weigh(_FIRST)

    def hurry(self) -> None:
        """Have its processes run like any others again."""
        tree = self.cgroups.cpu
        if self._has_patience and tree is not None:
            self._write(tree, "cpu.idle", "0")
            self._has_patience = False
        self._weigh(_USUAL)

    def _weigh(self, weight: float) -> None:
        if (tree := self.cgroups.cpu) is not None and weight != self._weight:
            name, usual = _WEIGHT_FILE[tree.version]
            self._write(tree, name, str(int(usual * weight)))
            self._weight = weight

    def freeze(self) -> None:
        """Have all its processes stand still, until `thaw`; they can be killed. See `cgroup.freeze` of cgroups(7).

        Raises:
            Refused: there is no v2 hierarchy; the freezer of v1 keeps what it holds from being killed.
        """
        self._set_frozen("1")

    def thaw(self) -> None:
        """Have its processes go on."""
        self._set_frozen("0")

    def _set_frozen(self, value: str) -> None:
        tree = next((tree for tree in self.trees if tree.version == 2), None)
        if tree is None:
            raise Refused("unsupported", "this host cannot pause a sandbox: no cgroup2 hierarchy is mounted")
        _write(f"{self.name}/cgroup.freeze", value, tree.base)

    def limit(self, limits: GroupLimits) -> None:
        """Set the limits; nothing of a tenant's is in the group yet.

        All groups have been joined before: joining one can take 10 ms, for it waits until every fork and exit on the
        machine has let go of a lock (cgroup_threadgroup_rwsem).
        """
        old, host = self._limits, self.cgroups
        self.hurry()
        self._limits = None  # should one of the writes fail
        if (tree := host.memory) is not None and (old is None or old.memory_bytes != limits.memory_bytes):
            self._limit_memory(tree, limits.memory_bytes, old.memory_bytes if old else None)
        together = limits.die_together
        if (tree := host.memory) is not None and tree.version == 2 and (not old or old.die_together != together):
            self._write(tree, "memory.oom.group", str(int(together)))
        if (tree := host.pids) is not None and (old is None or old.processes != limits.processes):
            self._write(tree, "pids.max", str(limits.processes))
        if (tree := host.cpu) is not None:
            # Written at each use, for that also ends a throttling under which the last one ended. A group that has
            # never had a quota needs none that would not bind.
            binds = limits.cpus < host.cores
            if tree.version == 2 and (binds or old is not None):
                quota = str(max(1000, int(limits.cpus * _PERIOD_US))) if binds else "max"
                self._write(tree, "cpu.max", f"{quota} {_PERIOD_US}")
            elif binds or old is not None:
                quota = str(max(1000, int(limits.cpus * _PERIOD_US))) if binds else "-1"
                self._write(tree, "cpu.cfs_quota_us", quota)
        self._limits = limits

    def _limit_memory(self, tree: _Tree, limit: int, old: int | None) -> None:
        if tree.version == 2:
            self._write(tree, "memory.max", str(limit))
            if old is None:
                with contextlib.suppress(FileNotFoundError):  # a kernel without swap has no such file
                    self._write(tree, "memory.swap.max", "0")
            return
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if old is not None and limit > old:
            names.reverse()  # the second must never be below the first
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap has no second one
                self._write(tree, name, str(limit))
        if self.oom_event is None:
            self._watch_oom(tree)

    def _watch_oom(self, tree: _Tree) -> None:
        """v1 kills one process only; be told, so that the rest can be killed too (memory.txt, section 10)."""
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.oom_event = event
        control = self.open(tree, "memory.oom_control")
        _write(f"{self.name}/cgroup.event_control", f"{event} {control}", tree.base)

    def memory_bytes(self) -> int:
        """Bytes that it holds now; 0 where nothing counts them."""
        if (tree := self.cgroups.memory) is None:
            return 0
        return int(self._read(tree, "memory.current" if tree.version == 2 else "memory.usage_in_bytes"))

    def shed(self) -> None:
        """Keep no descriptor open; it is not used again after this use. For those that are used for long."""
        self.uses = _MOST_USES
        for fd in (*self.joins, *self._files.values()):
            os.close(fd)
        self.joins.clear()
        self._files.clear()
        if self.oom_event is not None:
            os.close(self.oom_event)
            self.oom_event = None

    def renew(self) -> bool:
        """Make ready for another use; False when it cannot be: somebody is left in it, or what it counts stays."""
        self.uses += 1
        try:
            for tree in self.trees:
                if _read(f"{self.name}/cgroup.procs", tree.base):
                    return False
            if (memory := self.cgroups.memory) is not None:
                if self.memory_bytes() > _MOST_LEFT:
                    return False  # not yet, or never: the next one's limit would be less than it says
                self._write(memory, "memory.peak" if memory.version == 2 else "memory.max_usage_in_bytes", "0")
            self.hurry()
            old = self._limits
            if old is None or old.memory_bytes < _ROOM.memory_bytes or old.processes < _ROOM.processes or old.cpus < 1:
                self.limit(_ROOM)  # the next sandbox is built before its own limits are known
        except OSError:
            return False
        if self.oom_event is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self.oom_event, 8)
        self._oom_kills = self._oom_kill_count()
        self._forks_refused = self._fork_refusal_count()
        return True

    def close(self) -> bool:
        """Remove the directories; False while the kernel still holds one."""
        for fd in (*self.joins, *self._files.values()):
            os.close(fd)
        self.joins.clear()
        self._files.clear()
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
        self.memory, self.pids, self.cpu = self.tree("memory"), self.tree("pids"), self.tree("cpu")
        self.cpu_time_tree = self.tree("cpu.stat") or self.tree("cpuacct")
        self.swap_closed = self._closes_swap(self.memory)
        self.cores = os.cpu_count() or 1
        self._count = 0
        self._idle: deque[Group] = deque()
        self._closed = False

    def tree(self, controller: str) -> _Tree | None:
        """The hierarchy in which *controller* can be used (`cpu.stat`: any of v2), or `None`."""
        return next((tree for tree in self.trees if controller in tree.controllers), None)

    def take(self) -> Group:
        """Groups for a sandbox, without limits that anyone could rely on. Nothing is left when that fails."""
        for _ in range(min(2, len(self._idle))):  # the one that has rested longest first
            group = self._idle.popleft()
            if group.renew():
                return group
            self._remove(group)
        return self._create()

    def limit_template(self, group: Group) -> None:
        """Set the limits of a group for a template: room for what it preloads, and for the forks that leave it."""
        group.limit(GroupLimits(memory_bytes=_TEMPLATE_MEMORY, processes=_TEMPLATE_PROCESSES, cpus=float(self.cores)))
        group.come_first()  # every run waits for its fork

    def give_back(self, group: Group) -> None:
        """The sandbox has ended."""
        if group.uses < _MOST_USES and len(self._idle) < _MOST_IDLE and not self._closed:
            self._idle.append(group)
        else:
            self._remove(group)

    def trim(self) -> bool:
        """Remove some of the groups that a busier time has left; whether there are more."""
        for _ in range((len(self._idle) - _IDLE_AT_REST + 3) // 4):
            self._remove(self._idle.popleft())
        return len(self._idle) > _IDLE_AT_REST

    def _remove(self, group: Group) -> None:
        if not group.close():
            self.held.append(group)

    def _create(self) -> Group:
        wanted = (self.memory, self.pids, self.cpu, self.cpu_time_tree)
        trees = tuple(dict.fromkeys(tree for tree in wanted if tree is not None))
        self._count += 1
        group = Group(cgroups=self, name=f"cell-{self._count}", trees=trees)
        try:
            for tree in group.trees:
                os.mkdir(group.name, 0o755, dir_fd=tree.base)
                join = os.open(f"{group.name}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=tree.base)
                group.joins.append(join)
        except BaseException:
            group.close()
            raise
        return group

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

    def drain(self) -> None:
        """Remove the groups that nobody uses, and from now on each one at its end."""
        self._closed = True
        while self._idle:
            self._remove(self._idle.popleft())

    def close(self) -> None:
        """Remove this warden's own directories."""
        self.drain()
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
