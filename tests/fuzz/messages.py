"""Messages to the warden: one that is in order for each operation, and what a taken-over server might make of it."""

import ast
import contextlib
import fcntl
import inspect
import os
import random
import select
import socket
import struct
import textwrap
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import settings

from stockade.warden import protocol
from stockade.warden.disks import DiskOperations
from stockade.warden.residents import Residents
from stockade.warden.server import Server
from tests.warden.raw import LIMITS, memory_file

__all__ = ["DISK", "EDGES", "LONG", "PROCESS", "SANDBOX", "Bag", "bag", "fast", "in_order", "operations", "spoil"]

LONG = os.environ.get("STOCKADE_LONG_TESTS") == "1"
SANDBOX, PROCESS, DISK = "fuzzed", "main", "d1"
_ENV = {"PATH": "/usr/bin:/bin"}


def _deep(depth: int) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


EDGES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 63, 64, 65, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1,
    2**63, 2**64, -(2**63), 10**400, 0.0, -0.0, 0.5, 5e-324, 1.7e308, float("inf"), float("-inf"), float("nan"),
    "", " ", "a", "main", "..", ".", "/", "//", "../..", "/../etc", "/proc/self/mem", "a/b", "a\0b", "\0", "\ud800",
    "\udcff", "ü", "\u202e", "\x1b[2J", "a\nb", "%s%n", "x" * 64, "x" * 65, "x" * 4096, "x" * 40_000, "0", "1e9",
    [], [[]], [None], [""], ["a"] * 300, ["\0"], [0] * 3, {}, {"": ""}, {"a": None}, {"a=b": "c"}, {"a": "\0"},
    {"rows": 1}, {"disk": "../x", "path": "/"}, _deep(50), _deep(900),
)  # fmt: skip
"""What stands where something else was expected."""


def fast(examples: int) -> settings:
    """So many examples, always the same; in the long form fifty times as many, others each time."""
    return settings(max_examples=examples * 50 if LONG else examples, deadline=None, derandomize=not LONG)


def _edge(rng: random.Random) -> Any:
    """One of them, to be changed further."""
    value = rng.choice(EDGES)
    return list(value) if isinstance(value, list) else dict(value) if isinstance(value, dict) else value


def operations() -> frozenset[str]:
    """All that the warden obeys, read from its code: one that is added later is here by itself."""
    named = {
        node.comparators[0].value
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(Server._obey))))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Name)
        and node.left.id == "operation"
        and isinstance(node.comparators[0], ast.Constant)
    }
    nobody: Any = None
    residents = Residents(nobody, nobody, answer=nobody, refuse=nobody, egress=None, disks=nobody)
    disks = DiskOperations(
        nobody, answer=nobody, refuse=nobody, hold=nobody, let_go=nobody, uses_of=nobody, writers_of=nobody
    )
    return frozenset({*named, *residents._operations, *disks._operations})


def in_order() -> dict[str, dict[str, Any]]:
    """For each operation a message to which nothing could be objected."""
    fork = {"image": "host", "argv": ["/bin/true"], "env": _ENV, "cwd": "/code"}
    sizes = {name: LIMITS[name] for name in ("memory_bytes", "processes", "disk_bytes", "disk_inodes")}
    sizes |= {name: LIMITS[name] for name in ("open_files", "stack_bytes")}
    policy = {"allow_cidrs": ["93.184.216.0/24"], "allow_domains": ["*.example.org"], "refuse": [], "divert": None}
    living = {"layer": False, "layers": [], "disk": None, "mounts": [], "drop_capabilities": ["CHOWN"]}
    size = {"size_bytes": 1 << 20}
    of_process: dict[str, dict[str, Any]] = {
        "exec": {"argv": ["/bin/true"], "env": _ENV, "cwd": "/", "user": "user", "terminal": None, "reader": 1,
                 "stdin": True, "keep": False, "log_bytes": 1 << 16, "gather": 1, "process": "p1"},
        "open": {"reader": 1, "patience_s": 0, "until_closed": False},
        "wait": {"reader": 1, "at": [0, 0], "least": 1},
        "leave": {"reader": 1},
        "close_stdin": {},
        "signal": {"signal": 18, "tree": False},
        "process_ended": {},
        "resize": {"terminal": {"rows": 24, "columns": 80}},
        "forget": {"process": "p1", "quiet": False},
    }  # fmt: skip
    of_sandbox: dict[str, dict[str, Any]] = {
        "processes": {"after": 0},
        "inspect": {},
        "ended": {},
        "stop": {"grace_s": 60.0},
        "kill": {},
        "extend": {"lifetime_s": 600.0},
        "pause": {},
        "resume": {},
        "remove": {},
        "agent": {"user": "user"},
        "dial": {"port": 80, "kind": "tcp"},
        "create": {"instance": "i", "image": "host", "cwd": "/", "limits": sizes | {"cpus": 1.0}, "lifetime_s": 60.0,
                   "log_bytes": 65536, "kept_bytes": 1 << 20, "keep_s": 1.0, "network": "none", "policy": policy,
                   "wall": "", **living},
    }  # fmt: skip
    of_disk: dict[str, dict[str, Any]] = {
        "disk_make": {"disk": DISK, **size},
        "disk_copy": {"of": DISK, "disk": "d2", "sandbox": SANDBOX, **size},
        "disk_replace": {"disk": DISK, "by": "d2"},
        "disk_seal": {"disk": DISK},
        "disk_resize": {"disk": DISK, **size},
        "disk_delete": {"disk": DISK},
        "disk_info": {"disk": DISK},
        "disk_list": {"after": ""},
        "disk_facts": {},
    }
    others: dict[str, dict[str, Any]] = {
        "hello": {"version": protocol.VERSION},
        "wall": {},
        "living": {},
        "inventory": {"after": ""},
        "cancel": {},
        "template": {"kind": "fork", "preload": ["json"], "announce": False, "files": {}, **fork, **sizes},
        "run": {**fork, "limits": dict(LIMITS), "network": "none", "collect": False, "drop_output": False,
                "watched": False, "template": None, "args": [], "wall": "", "request": "r-1"},
    }  # fmt: skip
    messages = {op: {"process": PROCESS, "sandbox": SANDBOX, **rest} for op, rest in of_process.items()}
    messages |= {op: {"sandbox": SANDBOX, **rest} for op, rest in of_sandbox.items()}
    messages |= of_disk | others
    return {op: {"op": op, "id": 1, **rest} for op, rest in messages.items()}


def spoil(message: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The message with some of its members, at whatever depth, replaced, taken out, or put in twice."""
    spoilt = deepcopy(message)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        places = [spoilt, *(one for one in spoilt.values() if isinstance(one, dict) and one)]
        place = rng.choice(places)
        if not place:
            continue
        name = rng.choice(sorted(place))
        if place is spoilt and name == "op" and rng.random() < 0.8:
            continue  # mostly it is to reach the operation
        match rng.randrange(5):
            case 0:
                del place[name]
            case 1:
                place[rng.choice(("x", "op", "id", "sandbox", "", "\ud800"))] = _edge(rng)
            case 2 if isinstance(place[name], list):
                place[name] = [*place[name], _edge(rng)] * rng.choice((1, 2, 200))
            case _:
                place[name] = _edge(rng)
    return spoilt


class Bag:
    """Descriptors of all kinds, to be passed on."""

    def __init__(self, folder: Path) -> None:
        self._open = contextlib.ExitStack()
        self.fds: dict[str, int] = {}
        ours, theirs = socket.socketpair()
        ours.close()  # its other end is closed
        lone, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = socket.create_server(("127.0.0.1", 0))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        for one in (theirs, lone, other, listener, datagrams, netlink):
            self._open.callback(one.close)
        read, write = os.pipe()
        lost, gone = os.pipe()
        os.close(lost)
        fifo = folder / "fifo"
        os.mkfifo(fifo)
        sealed, frozen = memory_file(b"x"), memory_file(b"y" * 4096)
        fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        fcntl.fcntl(frozen, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
        far = memory_file()
        os.lseek(far, 1 << 62, os.SEEK_SET)
        epoll = select.epoll()
        self._open.callback(epoll.close)
        master, slave = os.openpty()
        (folder / "file").write_bytes(struct.pack("<Q", 2**63) * 64)
        fds = {
            "memory": memory_file(b"input"),
            "sealed": sealed,
            "frozen": frozen,
            "far": far,
            "pipe": read,
            "pipe end": write,
            "broken pipe": gone,
            "fifo": os.open(fifo, os.O_RDWR | os.O_NONBLOCK),
            "directory": os.open("/", os.O_RDONLY | os.O_DIRECTORY),
            "path": os.open("/etc/passwd", os.O_PATH),
            "file": os.open(folder / "file", os.O_RDWR | os.O_APPEND),
            "read-only": os.open("/etc/passwd", os.O_RDONLY),
            "proc": os.open("/proc/self/status", os.O_RDONLY),
            "proc memory": os.open("/proc/self/mem", os.O_RDWR),
            "namespace": os.open("/proc/self/ns/net", os.O_RDONLY),
            "device": os.open("/dev/zero", os.O_RDWR),
            "full": os.open("/dev/full", os.O_RDWR),
            "terminal": master,
            "terminal inside": slave,
            "event": os.eventfd(0),
            "process": os.pidfd_open(os.getpid()),
        }
        for fd in fds.values():
            self._open.callback(os.close, fd)
        sockets = {"stream": theirs, "packets": lone, "listener": listener, "datagrams": datagrams, "netlink": netlink}
        self.fds = fds | {name: one.fileno() for name, one in sockets.items()} | {"epoll": epoll.fileno()}

    def some(self, rng: random.Random) -> tuple[int, ...]:
        """None, as many as are expected, or too many."""
        count = rng.choice((0, 0, 1, 1, 1, 2, 3, protocol.MOST_DESCRIPTORS, protocol.MOST_DESCRIPTORS + 1, 200))
        if rng.random() < 0.5:
            return (self.fds["memory"],) * count
        return tuple(rng.choice(list(self.fds.values())) for _ in range(count))

    def close(self) -> None:
        self._open.close()


@contextlib.contextmanager
def bag(folder: Path) -> Iterator[Bag]:
    found = Bag(folder)
    try:
        yield found
    finally:
        found.close()
