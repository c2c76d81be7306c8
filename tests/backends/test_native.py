"""What only the native backend has: a PID 1 of ours inside, resource limits of the kernel's, memory files."""

import asyncio
import os

import pytest

from stockade.backends.base import Backend
from stockade.backends.native import NativeBackend
from stockade.model import Outcome
from tests.backends.sandboxes import run

pytestmark = pytest.mark.anyio
PYTHON = "/usr/bin/python3"


@pytest.fixture(autouse=True)
def _native(backend: Backend) -> None:
    if not isinstance(backend, NativeBackend):
        pytest.skip("not the native backend")


async def test_the_core_limit_stays_at_one(backend: Backend) -> None:
    """At 0 the kernel would start the host's core dump handler, as root, with what the program wrote (core(5))."""
    script = (
        "import resource as r, subprocess\n"
        "r.setrlimit(r.RLIMIT_CORE, (0, 0)); print(r.getrlimit(r.RLIMIT_CORE))\n"
        "r.prlimit(0, r.RLIMIT_CORE, (0, 0)); print(r.getrlimit(r.RLIMIT_CORE))\n"
        "subprocess.run(['/bin/sh', '-c', 'ulimit -c 0']); print(r.prlimit(0, r.RLIMIT_CORE))\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (50, 50)); print(r.getrlimit(r.RLIMIT_NOFILE))\n"
    )
    result = await run(backend, PYTHON, "-c", script)
    assert result.stdout.decode().splitlines() == ["(1, 1)", "(1, 1)", "(1, 1)", "(50, 50)"], result.stderr


async def test_no_program_gets_ahead_of_the_hosts(backend: Backend) -> None:
    """Neither real-time nor a better nice value, whatever our starter was allowed."""
    script = (
        "import os, resource as r\n"
        "print(r.getrlimit(r.RLIMIT_RTPRIO), r.getrlimit(r.RLIMIT_NICE))\n"
        "for act in (lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)), lambda: os.nice(-1)):\n"
        "    try: act(); print('done')\n"
        "    except PermissionError: print('refused')\n"
    )
    result = await run(backend, PYTHON, "-c", script)
    assert result.stdout.decode().splitlines() == ["(0, 0) (0, 0)", "refused", "refused"], result.stderr


ATTACKS_ON_PID_1 = {
    "signals": "for n in range(1, 65):\n try: os.kill(1, n)\n except OSError: pass",
    "a signal to all": "signal.signal(15, signal.SIG_IGN); os.kill(-1, 15)",
    "its memory": "open('/proc/1/mem', 'r+b')",
    "its descriptors": "os.listdir('/proc/1/fd')",
    "its environment": "open('/proc/1/environ').read(1) or 1/0",
    "its root": "os.listdir('/proc/1/root/')",
    "fewer descriptors": "resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))",
    "smaller files": "resource.prlimit(1, resource.RLIMIT_FSIZE, (0, 0))",
    "the lowest priority": "os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))",
}


@pytest.mark.parametrize("attack", ATTACKS_ON_PID_1.values(), ids=ATTACKS_ON_PID_1.keys())
async def test_what_is_done_to_pid_1_changes_no_result(backend: Backend, attack: str) -> None:
    indented = attack.replace("\n", "\n ")
    script = (
        f"import os, resource, signal, sys\ntry:\n {indented}\n"
        "except Exception as e: print(type(e).__name__)\nsys.exit(42)"
    )
    result = await run(backend, PYTHON, "-c", script)
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 42), result
    if "/proc/1/" in attack:
        assert result.stdout, "PID 1 can be looked into"


async def test_a_program_that_has_pid_1_killed_gets_no_better_result(backend: Backend) -> None:
    """By a CPU limit of the kernel's, which may be set for a process of the same user: it ends its own sandbox."""
    script = (
        "import resource as r, os, time\n"
        "r.prlimit(1, r.RLIMIT_CPU, (0, 0))\n"
        "os._exit(0) if os.fork() else time.sleep(9)\n"
    )
    result = await run(backend, PYTHON, "-c", script, wall_s=5)
    assert result.outcome in (Outcome.SIGNALED, Outcome.EXITED)
    assert (await run(backend, "/bin/true")).succeeded


async def test_a_program_inherits_three_descriptors(backend: Backend) -> None:
    script = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])"
    result = await run(backend, PYTHON, "-c", script, files={"f": b"x"}, collect=True)
    assert result.stdout == b"[0, 1, 2]\n"
    assert result.bundle is not None
    result.bundle.close()


async def test_standard_input_cannot_be_written_to(backend: Backend) -> None:
    script = (
        "import os, fcntl\n"
        "for act in (lambda: os.pwrite(0, b'x', 0), lambda: os.ftruncate(0, 0), lambda: os.ftruncate(0, 1 << 20),\n"
        "            lambda: os.write(os.open('/proc/self/fd/0', os.O_RDWR), b'x')):\n"
        "    try: act(); print('done')\n"
        "    except OSError: print('refused')\n"
    )
    result = await run(backend, PYTHON, "-c", script, stdin=b"input")
    assert result.stdout.split() == [b"refused"] * 4


async def test_a_collected_bundle_cannot_be_changed(backend: Backend) -> None:
    made = await run(backend, "/bin/touch", "file", collect=True)
    fd = made.bundle.fd  # type: ignore[union-attr]
    for act in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 1 << 20)):
        with pytest.raises(PermissionError):
            act()
    made.bundle.close()  # type: ignore[union-attr]


async def test_what_cannot_be_collected_is_told(backend: Backend) -> None:
    """A FIFO is left out; a sparse file that is larger than the disk limit allows is refused, not written out."""
    made = await run(backend, "/bin/sh", "-c", "mkfifo pipe; echo x > file", collect=True)
    assert made.bundle is not None
    listed = await run(backend, "/bin/ls", bundle=made.bundle)
    made.bundle.close()
    assert listed.stdout == b"file\n"


async def test_sandboxes_do_not_see_each_other(backend: Backend) -> None:
    """Not each other's processes, abstract sockets, shared memory or ports, and each has user ids of its own."""
    script = (
        "import os, socket, time\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0meet')\n"
        "t = socket.create_server(('127.0.0.1', 7777))\n"
        "open('/dev/shm/meet', 'x').close(); open('/tmp/meet', 'x').close()\n"
        "time.sleep(0.3)\n"
        "print([p for p in os.listdir('/proc') if p.isdigit()] == [str(os.getpid())])\n"
        "print(open('/proc/self/uid_map').read().split()[1])\n"
    )
    results = await asyncio.gather(*(run(backend, PYTHON, "-c", script) for _ in range(6)))
    assert [r.stdout.split()[0] for r in results] == [b"True"] * 6, results
    features = {feature.name: feature.enforced for feature in (await backend.report()).features}
    if features["own_ids"]:
        assert len({r.stdout.split()[1] for r in results}) == 6
