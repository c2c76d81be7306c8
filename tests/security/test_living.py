"""What a hostile program may try on what keeps a sandbox alive: its PID 1, its file agent, its terminals, its logs."""

import asyncio
import contextlib
import ctypes
import json
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stockade.attacks import Bait
from stockade.backends.base import BackendOptions
from stockade.backends.native import NativeBackend
from stockade.backends.sandboxing import FileAccess, Sandboxing, Streams
from stockade.errors import StockadeError, Unavailable
from stockade.model import EndedBy, Outcome, TerminalSize
from stockade.warden import layers
from stockade.warden.logs import HEAD_BYTES, Log, Marks
from stockade.warden.protocol import memory_file
from stockade.warden.seccomp import REFUSED
from stockade.warden.syscall_table import NUMBERS
from tests.backends.living import collect, eventually, live_spec, living, ran, start
from tests.backends.sandboxes import MB, children, commands
from tests.security.host import wait_until_clean

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden has one user id and few limits"),
]
WITHIN_S = 60.0


@pytest.fixture(scope="module")
async def backend(
    bait: Bait, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[NativeBackend]:
    backend = NativeBackend(BackendOptions(data_dir=tmp_path_factory.mktemp("data"), embedded=True))
    await backend.start()
    yield backend
    await backend.close()
    assert wait_until_clean() == []


@pytest.fixture
def sandboxing(backend: NativeBackend) -> Sandboxing:
    return backend.sandboxing


def warden(backend: NativeBackend) -> int:
    connection = backend._connection
    assert connection is not None
    assert connection.warden.process is not None
    return connection.warden.process.pid


async def heard(streams: Streams, mark: bytes) -> bytes:
    """What a process prints, up to *mark*."""
    found = b""
    while mark not in found:
        output = await asyncio.wait_for(streams.read(len(found), 0), WITHIN_S)
        found += output.stdout.data
        assert output.end is None, (found, output.stderr.data)
    return found


async def lives(sandboxing: Sandboxing, name: str) -> None:
    """It still does what it is asked to."""
    assert await ran(sandboxing, name, "echo", "yes") == (b"yes\n", b"", 0)


# ── what all sandboxes of a host share ──────────────────────────────────────────────────────────────────────────────

HOARD = """
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
libc.sigqueue.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
timer = ctypes.c_void_p()
takes = (lambda: libc.inotify_init1(0), lambda: libc.sigqueue(os.getpid(), 40, None))
for user in range(*map(int, sys.argv[1:])):
    if os.fork() == 0:
        os.setresuid(user, user, user)
        for take in takes:
            while take() >= 0:
                pass
        print("taken", flush=True)
        time.sleep(600)
print(libc.inotify_init1(0) >= 0, libc.timer_create(1, None, ctypes.byref(timer)) == 0, "done", flush=True)
time.sleep(600)
"""


async def test_one_cannot_use_up_what_the_kernel_counts_for_each_user(sandboxing: Sandboxing) -> None:
    """Root of a sandbox, by many of its 65,536 users: the next sandbox, and the host's root, have as much as before."""
    async with living(sandboxing, open_files=1024) as hostile, living(sandboxing) as other:
        hoarder = await start(sandboxing, hostile, "python3", "-c", HOARD, "2000", "2008", user="root")
        found = b""
        while found.count(b"taken") < 8:
            output = await asyncio.wait_for(hoarder.read(len(found), 0), WITHIN_S)
            found += output.stdout.data
        neighbour = await start(sandboxing, other, "python3", "-c", HOARD, "0", "0")
        assert await heard(neighbour, b"done") == b"True True done\n"
        own = ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC)
        assert own >= 0
        os.close(own)
        hoarder.close()
        neighbour.close()


# ── PID 1 ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("user", ["user", "root"])
async def test_an_exec_is_answered_whatever_others_do_to_pid_1(sandboxing: Sandboxing, user: str) -> None:
    """A flood of signals, of orphans, of limits set; the other processes of the sandbox are its tenant's, too."""
    attack = """
import os, resource, signal, sys
for kind in set(range(16)) - {4}:  # RLIMIT_CORE is said to be set, and is not
    try:
        resource.prlimit(1, kind, (0, 0))
        print("limit", kind)
    except OSError:
        pass
for number in [*range(1, 32), *range(34, 65)]:
    try:
        os.kill(1, number)
    except OSError:
        pass
print("go", flush=True)
while True:
    try:
        os.kill(1, signal.SIGCHLD)
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.wait()
    except OSError:
        pass
"""
    async with living(sandboxing) as name:
        attackers = [await start(sandboxing, name, "python3", "-c", attack, user=user) for _ in range(3)]
        for one in attackers:
            assert await heard(one, b"go\n") == b"go\n"
        for _ in range(5):
            await lives(sandboxing, name)
        for one in attackers:
            one.close()


async def test_a_full_house_refuses_and_takes_in_again(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, processes=16) as name:
        bomb = "import os, time\nwhile True:\n try:\n  if os.fork() == 0: time.sleep(600)\n except OSError: pass"
        await start(sandboxing, name, "python3", "-c", bomb, process="bomb")

        async def is_full() -> bool:
            try:
                await ran(sandboxing, name, "true")
            except Unavailable:
                return True
            return False

        await eventually(is_full)
        with pytest.raises(StockadeError):
            await (await sandboxing.files(name)).stat("/")
        pids = "import os, signal\nos.kill(-1, signal.SIGKILL)"
        await sandboxing.forget_process(name, "bomb")

        async def is_emptied() -> bool:
            with contextlib.suppress(Unavailable):
                await ran(sandboxing, name, "python3", "-c", pids)
                return True
            return False

        await eventually(is_emptied)
        await lives(sandboxing, name)


HOG = """
import os, sys
if sys.argv[1] == "shameless":
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write("0")
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        break
while True:
    file = os.memfd_create("x")
    for _ in range(16):
        os.write(file, bytes(1 << 20))
"""


@pytest.mark.parametrize("hog", [("plain", "0"), ("plain", "40"), ("shameless", "0")], ids="-".join)
async def test_memory_that_runs_out_ends_what_holds_it(sandboxing: Sandboxing, hog: tuple[str, str]) -> None:
    """That PID 1 holds the most of what can be seen as a process's is no reason to end it. Where it is ended all the
    same, since nothing else was left or the tenant has seen to it, the sandbox has ended for want of memory.
    """
    async with living(sandboxing, memory_bytes=96 * MB) as name:
        streams = await start(sandboxing, name, "python3", "-c", HOG, *hog)
        _, _, end = await collect(streams)
        streams.close()
        assert end.outcome is Outcome.MEMORY

        async def is_settled() -> bool:
            if not (await sandboxing.inspect(name)).is_running:
                return True
            with contextlib.suppress(StockadeError):
                return bool((await ran(sandboxing, name, "echo", "yes"))[0] == b"yes\n")
            return False

        await eventually(is_settled)
        info = await sandboxing.inspect(name)
        assert info.is_running or (info.ended_by, info.outcome) == (EndedBy.LIMIT, Outcome.MEMORY)


ROOTS = """
import ctypes, errno, json, os, resource, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
reached = []
for name, number in json.load(sys.stdin).items():
    ctypes.set_errno(0)
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        reached.append(name)
def attempt(label, action, *args):
    try:
        action(*args)
    except (OSError, ValueError):
        return
    reached.append(label)
def write(path, data):
    os.write(os.open(path, os.O_WRONLY), data)
for kind in ("raw", "packet"):
    attempt(kind, socket.socket, socket.AF_INET if kind == "raw" else 17, socket.SOCK_RAW, 1)
attempt("node", os.mknod, "/tmp/null", 0o020666, os.makedev(1, 3))
attempt("set-id by root", lambda: os.chown("/usr/bin/env", 0, 0))
attempt("read the shadow", open, "/etc/shadow")
attempt("mark", lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 36, 7))
attempt("transparent", lambda: socket.socket().setsockopt(socket.SOL_IP, 19, 1))
attempt("force a buffer", lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 33, 1 << 28))
attempt("raise a limit", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20)))
attempt("real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
attempt("priority", os.nice, -5)
attempt("memory for good", write, "/proc/self/oom_score_adj", b"-1000")
attempt("file capability", os.setxattr, "/tmp", "security.capability", bytes.fromhex("0100000200200000" + "00" * 12))
attempt("trusted attribute", os.setxattr, "/tmp", "trusted.x", b"1")
attempt("immutable", lambda: __import__("fcntl").ioctl(os.open("/tmp", 0), 0x40086602, b"\\x10" + bytes(7)))
for path in ("/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches", "/proc/1/mem",
             "/proc/self/uid_map", "/proc/self/setgroups", "/dev/kmsg", "/dev/mem"):
    attempt(path, write, path, b"0 0 1")
for path in ("/proc/1/environ", "/proc/1/maps", "/proc/1/fd", "/proc/1/root/", "/proc/kcore", "/proc/kmsg"):
    attempt(path, os.open, path, os.O_RDONLY)
print(json.dumps(reached), len(reached))
"""


@pytest.mark.parametrize("user", ["user", "root"])
async def test_roots_capabilities_open_nothing_of_the_kernels(sandboxing: Sandboxing, user: str) -> None:
    """Every call that the filter refuses, and what the eight capabilities are not for."""
    machine = os.uname().machine
    calls = {call: NUMBERS[machine][call] for group in REFUSED for call in group.calls if call in NUMBERS[machine]}
    async with living(sandboxing) as name:
        out, err, _ = await ran(
            sandboxing, name, "python3", "-c", ROOTS, user=user, stdin=json.dumps(calls).encode() + b"\n"
        )
        assert (out, err) == (b"[] 0\n", b"")


async def test_what_is_roots_inside_is_not_the_users(sandboxing: Sandboxing) -> None:
    """Files, pipes, terminals, processes of root of the same sandbox."""
    probe = """
import os
reached = []
def attempt(label, action, *args):
    try:
        action(*args)
        reached.append(label)
    except OSError:
        pass
for pid in set(range(2, 200)) - {os.getpid()}:
    attempt(f"signal {pid}", os.kill, pid, 0)
    for fd in (0, 1, 2):
        attempt(f"stream {pid}/{fd}", os.open, f"/proc/{pid}/fd/{fd}", os.O_RDWR)
for terminal in range(8):
    attempt(f"terminal {terminal}", os.open, f"/dev/pts/{terminal}", os.O_RDWR | os.O_NOCTTY)
attempt("file", open, "/tmp/of-root")
print(reached)
"""
    async with living(sandboxing) as name:
        kept = [
            await start(sandboxing, name, "sleep", "600", user="root"),
            await start(sandboxing, name, "sleep", "600", user="root", terminal=TerminalSize()),
        ]
        await ran(sandboxing, name, "sh", "-c", "umask 077; echo x > /tmp/of-root", user="root")
        assert await ran(sandboxing, name, "python3", "-c", probe) == (b"[]\n", b"", 0)
        for one in kept:
            one.close()


# ── terminals ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("user", ["user", "root"])
async def test_a_terminal_takes_no_input_from_its_own_programs(sandboxing: Sandboxing, user: str) -> None:
    """Nor another line discipline; escape sequences are bytes like others."""
    probe = r"""
import fcntl, os, struct, termios
for number, argument in ((0x5412, b"x"), (0x541C, b"\x02"), (0x541D, b""), (0x5423, struct.pack("i", 3))):
    try:
        fcntl.ioctl(0, number, argument)
        print("done", hex(number))
    except OSError as error:
        assert error.errno == 1, error
os.write(1, b"\x1b]0;title\x07\x1b[6n\x1b[c\x05end")
"""
    async with living(sandboxing) as name:
        streams = await start(
            sandboxing, name, "python3", "-c", probe, user=user, terminal=TerminalSize(rows=5, columns=7)
        )
        out, _, end = await collect(streams)
        streams.close()
        assert (out, end.exit_code) == (b"\x1b]0;title\x07\x1b[6n\x1b[c\x05end", 0)


async def test_terminals_are_no_more_than_a_share_of_the_hosts(sandboxing: Sandboxing) -> None:
    hoard = """
import os, time
count = 0
try:
    while True:
        os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        count += 1
except OSError:
    print(count, "had", flush=True)
time.sleep(600)
"""
    async with living(sandboxing, open_files=1024) as hostile, living(sandboxing) as other:
        hoarder = await start(sandboxing, hostile, "python3", "-c", hoard)
        assert int((await heard(hoarder, b"had")).split()[0]) <= 128
        with pytest.raises(Unavailable, match="No space left"):
            await start(sandboxing, hostile, "true", terminal=TerminalSize())
        streams = await start(sandboxing, other, "tty", terminal=TerminalSize())
        assert (await collect(streams))[0] == b"/dev/pts/0\r\n"
        hoarder.close()
        streams.close()


# ── logs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def memory_of(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def logs_of(pid: int) -> list[Path]:
    """Descriptors of a warden that hold output. (How many it has in all goes with the cells that are ready.)"""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if "memfd:log" in os.readlink(entry):
                found.append(entry)
    return found


async def test_floods_of_many_processes_stay_in_their_rings(backend: NativeBackend, sandboxing: Sandboxing) -> None:
    logs = len(logs_of(warden(backend)))
    async with living(sandboxing, log_bytes=64 << 10) as name:
        before = memory_of(warden(backend))
        floods = "yes $(head -c 3000 /dev/zero | tr '\\0' x) | head -c 4000000; yes | head -c 4000000 >&2"
        streams = [await start(sandboxing, name, "sh", "-c", floods) for _ in range(16)]
        for one in streams:
            one.close()

        async def is_over() -> bool:
            return bool((await ran(sandboxing, name, "pgrep", "-c", "yes"))[0].strip() == b"0")

        await eventually(is_over)
        held = 0
        for entry in logs_of(warden(backend)):
            with contextlib.suppress(OSError):
                held += entry.stat().st_blocks * 512
        assert held <= (16 * 2 + 8) * (64 << 10) + 128 * 4096
        assert memory_of(warden(backend)) - before < 16 * MB
    await eventually(lambda: asyncio.to_thread(lambda: len(logs_of(warden(backend))) <= logs))


async def test_many_short_processes_leave_nothing(backend: NativeBackend, sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:

        async def some() -> None:
            for _ in range(50):
                await ran(sandboxing, name, "true")

        await asyncio.gather(*(some() for _ in range(4)))
        logs = len(logs_of(warden(backend)))
        await asyncio.gather(*(some() for _ in range(4)))
        assert len(logs_of(warden(backend))) <= logs + 4
        inside = [pid for pid in children(warden(backend)) if commands().get(pid, "").startswith("true")]
        assert inside == []


def test_output_byte_by_byte_does_not_hold_the_warden(monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn ends after some moves, however little each of them has moved."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    file = memory_file("log")
    log = Log(number=0, most=1 << 20, source=reading, file=file)
    moves = []

    def move(most: int, place: int) -> int:
        moves.append(place)
        return 1

    monkeypatch.setattr(log, "_move", move)
    assert log.pump([], Marks(file=file, place=HEAD_BYTES + (2 << 20)))
    assert (len(moves), log.is_drained) == (64, False)
    for one in (reading, writing, file):
        os.close(one)


# ── the file agent ──────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def agent(sandboxing: Sandboxing, name: str, user: str) -> AsyncIterator[FileAccess]:
    files = await sandboxing.files(name, user=user)
    yield files
    files.close()


@pytest.mark.parametrize("user", ["user", "root"])
async def test_an_agent_gives_nothing_away(sandboxing: Sandboxing, user: str) -> None:
    """It has a descriptor that the tenant has not, and a channel to the server."""
    probe = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
reached, seen = [], []
for pid in range(2, 64):
    if pid == os.getpid():
        continue
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        continue
    except PermissionError:
        pass
    seen.append(pid)
    for name in ("mem", "maps", "environ", "fd", "fd/3", "cwd/", "root/", "exe", "auxv", "syscall", "stack", "ns/mnt"):
        try:
            os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
            reached.append(f"{pid}/{name}")
        except OSError:
            pass
    for request in (16, 0x4206):
        if libc.ptrace(request, pid, 0, 0) == 0:
            reached.append(f"trace {pid}")
    try:
        reached.append(os.readlink(f"/proc/{pid}/fd/3"))
    except OSError:
        pass
print(reached, len(seen) > 0)
"""
    async with living(sandboxing) as name, agent(sandboxing, name, user) as files:
        await files.stat("/")
        out, err, _ = await ran(sandboxing, name, "python3", "-c", probe, user=user)
        assert (out, err) == (b"[] True\n", b"")


async def test_links_that_are_swapped_lead_nowhere_else(sandboxing: Sandboxing) -> None:
    """Every operation of an agent of root's, while the tenant's root swaps what it works on."""
    swap = r"""
import ctypes, os
libc = ctypes.CDLL(None)
os.makedirs("/tmp/real/deep", exist_ok=True)
open("/tmp/real/deep/file", "w").write("own")
aims = ["/etc", "/proc/1/root", "/proc/self/fd", "/dev", "/usr", "/proc", "/tmp/real"]
os.makedirs("/tmp/race", exist_ok=True)
print("go", flush=True)
n = 0
while True:
    n += 1
    link = f"/tmp/link{n % 2}"
    try:
        os.symlink(aims[n % len(aims)], link)
        os.rename(link, "/tmp/aim")
        libc.renameat2(-100, b"/tmp/aim", -100, b"/tmp/real/deep", 2)
        if n % 5 == 0:
            os.mkfifo("/tmp/real/fifo")
            os.rename("/tmp/real/fifo", "/tmp/real/deep/file")
    except OSError:
        pass
"""

    async def piece() -> AsyncIterator[bytes]:
        yield b"planted"

    host = {path: path.stat() for path in map(Path, ("/etc/passwd", "/etc/shadow", "/usr/bin/env"))}
    async with living(sandboxing) as name, agent(sandboxing, name, "root") as files:
        racer = await start(sandboxing, name, "python3", "-c", swap, user="root")
        await heard(racer, b"go\n")
        for _ in range(25):
            for path in ("/tmp/aim/file", "/tmp/real/deep/file", "/tmp/aim/shadow"):
                with contextlib.suppress(StockadeError):
                    _, content = await files.read(path)
                    assert b"root:" not in b"".join([part async for part in content]) or path != "/tmp/aim/shadow"
                with contextlib.suppress(StockadeError):
                    await files.write(path, piece())
                with contextlib.suppress(StockadeError):
                    await files.list(os.path.dirname(path))
            with contextlib.suppress(StockadeError):
                async for _ in await files.read_tar("/tmp/real"):
                    pass
            with contextlib.suppress(StockadeError):
                await files.delete("/tmp/real/deep", recursive=True)
        racer.close()
        assert {info.name for info in await files.list("/usr/bin")} >= {"env"}
        await lives(sandboxing, name)
    for place, before in host.items():
        after = place.stat()
        assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


# ── layers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def layer_of(sandboxing: Sandboxing, name: str, target: Path) -> None:
    with target.open("wb") as file:
        async with agent(sandboxing, name, "root") as files:
            await files.save_layer(file.fileno(), most_bytes=64 * MB)


async def test_a_layer_brings_no_powers_along(sandboxing: Sandboxing, tmp_path: Path) -> None:
    harm = r"""
cp /usr/bin/id /usr/local/id-set; chmod 6755 /usr/local/id-set; chmod 2777 /srv
ln -s /proc/1/root/etc/shadow /srv/shadow; ln -s ../../../../../../etc/shadow /srv/up; ln -s /proc/self/fd /srv/fds
mknod /srv/null c 1 3; mkfifo /srv/fifo
cd /srv; echo x > "$(printf 'a\nb\033[31m\377')"; echo x > ' '; echo x > '-rf'; echo x > 'CON'
chown 12345:54321 /srv/CON; rm -f /etc/hosts; rm -rf /etc/alternatives; ln -s /proc/self/fd /etc/alternatives
"""
    layer = tmp_path / "layer"
    async with living(sandboxing) as name:
        await ran(sandboxing, name, "sh", "-c", "mkdir -p /usr/local; true", user="root")
        await ran(sandboxing, name, "sh", "-c", harm, user="root")
        await layer_of(sandboxing, name, layer)
    look = r"""
find / -xdev \( -perm /6000 -o -type b -o -type c -o -type p \) -not -path '/usr/*' 2>/dev/null
cat /srv/shadow /srv/up 2>/dev/null; ls /srv | wc -l; stat -c %u:%g /srv/CON; ls /srv/fds/ >/dev/null 2>&1 && echo
id -u
"""
    await sandboxing.create("test-layered", live_spec(layer=str(layer)))
    try:
        out, _, _ = await ran(sandboxing, "test-layered", "sh", "-c", look)
        lines = [line for line in out.decode(errors="replace").splitlines() if line]
        assert lines[-2:] == ["12345:54321", "1000"], lines
        assert not any(line.startswith("/") or "root:" in line for line in lines), lines
    finally:
        await sandboxing.remove("test-layered")


def record(kind: bytes, path: bytes, content: bytes = b"", mode: int = 0o755, owner: int = 0) -> bytes:
    return layers._HEADER.pack(kind, mode, len(path), len(content), 0, owner, owner) + path + content


END = struct.pack("<cHHQqII", b".", 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "records",
    [
        record(b"f", b"../../escaped", b"x"),
        record(b"f", b"/etc/../../escaped", b"x"),
        record(b"l", b"srv/out", b"/proc/self/fd/4/..") + record(b"f", b"srv/out/work/escaped", b"x"),
        record(b"l", b"srv/out", b"/nowhere") + record(b"f", b"srv/out/deep/er/escaped", b"x"),
        record(b"l", b"srv/out", b"/proc/1/root/usr/bin") + record(b"f", b"srv/out/escaped", b"x"),
        record(b"l", b"dev/null", b"/etc/shadow"),
        record(b"w", b"proc"),
        record(b"w", b"usr"),
        record(b"o", b"dev"),
        record(b"f", b"proc/sys/kernel/hostname", b"escaped"),
        record(b"f", b"srv/big", b"x", mode=0o6755)[:-1] + b"",
        record(b"d", b"srv/" + b"d/" * 1000 + b"e"),
        record(b"d", b"srv/x") + record(b"l", b"srv/x", b"/proc/self/fd/0") + record(b"d", b"srv/x"),
        b"".join(record(b"f", b"srv/%d" % n) for n in range(9000)),
    ],
    ids=range(14),
)
async def test_a_forged_layer_harms_nobody_but_its_sandbox(
    sandboxing: Sandboxing, tmp_path: Path, records: bytes
) -> None:
    """Whoever could write one: it is refused, or makes a sandbox like any other."""
    host = os.uname().nodename
    layer = tmp_path / "layer"
    layer.write_bytes(layers.MARK + records + END)
    try:
        await sandboxing.create("test-forged", live_spec(layer=str(layer)))
    except StockadeError:
        pass
    else:
        out, _, code = await ran(sandboxing, "test-forged", "sh", "-c", "cat /etc/shadow; ls -d /escaped; id -u")
        assert (out, code) == (b"1000\n", 0) or code in (126, 127)
    finally:
        await sandboxing.remove("test-forged")
    assert os.uname().nodename == host
    assert not list(Path("/").glob("escaped"))
    assert not Path("/usr/bin/escaped").exists()


# ── afterwards ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_is_left_of_all_that(backend: NativeBackend, sandboxing: Sandboxing) -> None:
    async def is_gone() -> bool:
        return not await sandboxing.inventory()

    await eventually(is_gone)
    assert await asyncio.to_thread(wait_until_clean) == []
    async with living(sandboxing) as name:
        await lives(sandboxing, name)
