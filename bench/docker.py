"""`docker run --rm` and `docker exec`, on an engine of our own where we may start one, else on the one that runs.

Our own engine lives in network, mount and pid namespaces of its own, with its data in a temporary directory: the host's
interfaces, firewall and mounts stay as they are, and when its pid namespace ends, nothing of it is left. The image
holds the host's own Python and a few small programs and no more, so nothing is downloaded.
"""

import contextlib
import fcntl
import io
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError, Sample
from bench.programs import HELLO, PYTHON, spawn

__all__ = ["Container", "Docker", "add_python", "docker"]

UP_S = 40.0
COMMAND_S = 60.0
_TAG = "stockade-bench"
_SMALL_PROGRAMS = tuple(f"/usr/bin/{name}" for name in ("cat", "dd", "sh", "sleep", "true"))
_CHUNK = 1 << 20
_F_SETPIPE_SZ = 1031
_NO_PACKAGES = ("test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "__pycache__")


@dataclass(frozen=True, kw_only=True)
class Docker:
    """An engine with our image in it."""

    client: tuple[str, ...]
    image: str
    version: str
    about: str
    """Whose engine, and what of it is not as usual."""

    def run(self, *options: str) -> Sample:
        """`docker run --rm OPTIONS … python3 -c` hello."""
        argv = [*self.client, "run", "--rm", *options, self.image, PYTHON, "-c", HELLO]
        return lambda: spawn(argv, b"hello\n")

    def running(self, command: Sequence[str]) -> Sample:
        """`docker run --rm … COMMAND`, which prints nothing."""
        argv = [*self.client, "run", "--rm", self.image, *command]
        return lambda: spawn(argv, b"")

    def entering(self, command: Sequence[str]) -> Sample:
        """`docker run --detach` of what only waits, then `docker exec … COMMAND`; removed off the clock."""

        def sample() -> float:
            began = time.perf_counter()
            name = _ask((*self.client, "run", "--detach", self.image, "/usr/bin/sleep", "86400"))
            try:
                spawn([*self.client, "exec", name, *command], b"")
                return time.perf_counter() - began
            finally:
                _ask((*self.client, "rm", "--force", name))

        return sample

    @contextlib.contextmanager
    def container(self) -> Iterator["Container"]:
        """A container that runs, removed with the block.

        Raises:
            BenchError: it does not start.
        """
        name = _ask((*self.client, "run", "--detach", "--init", self.image, "/usr/bin/sleep", "86400"))
        try:
            yield Container(client=self.client, name=name)
        finally:
            with contextlib.suppress(BenchError):
                _ask((*self.client, "rm", "--force", name))


@dataclass(frozen=True, kw_only=True)
class Container:
    """One that runs, to be entered."""

    client: tuple[str, ...]
    name: str

    def executing(self, command: Sequence[str]) -> Sample:
        """`docker exec … COMMAND`, which prints nothing."""
        argv = self._exec(command)
        return lambda: spawn(argv, b"")

    def make(self, path: str, size: int) -> None:
        """A file of zeros, of whole MiB."""
        _ask(tuple(self._exec(("/usr/bin/dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size >> 20}"))))

    def stream(self, command: Sequence[str]) -> tuple[float, int]:
        """Run a program and count what it prints: seconds, bytes."""
        buffer = bytearray(_CHUNK)
        count = 0
        began = time.perf_counter()
        with subprocess.Popen(self._exec(command), stdout=subprocess.PIPE, bufsize=0) as process:
            assert process.stdout is not None
            output = process.stdout.fileno()
            fcntl.fcntl(output, _F_SETPIPE_SZ, _CHUNK)  # the client is to wait for us as little as it can
            while part := os.readv(output, [buffer]):
                count += part
        seconds = time.perf_counter() - began
        if process.returncode:
            raise BenchError(f"docker exec {command[0]} ended with {process.returncode}")
        return seconds, count

    def _exec(self, command: Sequence[str]) -> list[str]:
        return [*self.client, "exec", self.name, *command]


@contextlib.contextmanager
def docker(directory: Path, *, fill: Callable[[tarfile.TarFile], None] | None = None) -> Iterator[Docker]:
    """An engine that can run containers; *directory* is for its data.

    Args:
        fill: puts into an archive what the image is to hold; without it that is Python and a few small programs.

    Raises:
        BenchError: none can be had; the message says why.
    """
    client = shutil.which("docker")
    if client is None:
        raise BenchError("the docker client is not installed")
    with contextlib.ExitStack() as stack:
        daemon = shutil.which("dockerd")
        if os.geteuid() == 0 and daemon is not None:
            base: tuple[str, ...] = (client, "--host", stack.enter_context(_engine(daemon, client, directory)))
            about = "an engine of our own, in a network namespace of its own"
        else:
            base = (client,)
            about = "the engine that runs on this machine"
        version = _ask((*base, "version", "--format", "{{.Server.Version}}"))
        image = f"{_TAG}:{os.getpid()}"
        _import_image((*base, "import", "-", image), fill or add_python)
        try:
            yield Docker(client=base, image=image, version=version, about=about)
        finally:
            with contextlib.suppress(BenchError):
                _ask((*base, "image", "rm", "--force", image))


@contextlib.contextmanager
def _engine(daemon: str, client: str, directory: Path) -> Iterator[str]:
    """A private engine's address."""
    address = f"unix://{directory}/docker.sock"
    group = f"{_TAG}-{os.getpid()}"
    configuration = directory / "daemon.json"
    configuration.write_text("{}")  # not the host's own
    log_path = directory / "dockerd.log"
    command = [
        "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", daemon,
        "--config-file", str(configuration), "--host", address, "--data-root", str(directory / "data"),
        "--exec-root", str(directory / "exec"), "--pidfile", str(directory / "docker.pid"),
        "--cgroup-parent", f"/{group}", "--exec-opt", "native.cgroupdriver=cgroupfs",
    ]  # fmt: skip
    with log_path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, process_group=0) as process:
        try:
            _await_engine(process, (client, "--host", address), log_path)
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(_only_child(process.pid), signal.SIGTERM)  # dockerd itself, which ends containerd
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()  # and by --kill-child its pid namespace
            _remove_groups(group)


def _only_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children:
        raise ProcessLookupError(pid)
    return int(children[0])


def _await_engine(process: "subprocess.Popen[bytes]", client: tuple[str, ...], log_path: Path) -> None:
    deadline = time.monotonic() + UP_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(BenchError):
            _ask((*client, "version", "--format", "{{.Server.Version}}"))
            return
        time.sleep(0.1)
    lines = log_path.read_text(errors="replace").splitlines()
    raise BenchError(f"dockerd does not come up: {lines[-1][-300:] if lines else 'it said nothing'}")


def _ask(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(command[:4])} … did not answer within {COMMAND_S:g} s") from error
    if done.returncode:
        raise BenchError((done.stderr.strip() or "no message").splitlines()[-1][-300:])
    return done.stdout.strip()


def _import_image(command: tuple[str, ...], fill: Callable[[tarfile.TarFile], None]) -> None:
    """Pipe a tar archive with what *fill* puts there into *command*."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            with tarfile.open(fileobj=process.stdin, mode="w|") as archive:
                fill(archive)
            process.stdin.close()
        said = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise BenchError(f"docker import: {said[-300:]}")


def add_python(archive: tarfile.TarFile) -> None:
    """The system's interpreter, its library without what a hello does not need, small programs, shared libraries."""
    real = os.path.realpath(PYTHON)
    library = Path(_stdlib())
    for name in ("bin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):  # merged /usr
            archive.add(f"/{name}", arcname=name)
    for directory in ("tmp", "proc", "dev", "etc"):
        entry = tarfile.TarInfo(directory)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
    users = tarfile.TarInfo("etc/passwd")
    text = b"root:x:0:0:root:/root:/bin/sh\n"
    users.size = len(text)
    archive.addfile(users, io.BytesIO(text))
    files = {PYTHON, real, *_shared_libraries(real), *_SMALL_PROGRAMS, *map(os.path.realpath, _SMALL_PROGRAMS)}
    for program in _SMALL_PROGRAMS:
        files.update(_shared_libraries(program))
    for path in sorted(files):
        archive.add(path, arcname=path.lstrip("/"), recursive=False)
    for entry_path in sorted(library.iterdir()):
        if entry_path.name not in _NO_PACKAGES:
            archive.add(entry_path, arcname=str(entry_path).lstrip("/"))
    cache = library / "__pycache__"
    if cache.is_dir():
        archive.add(cache, arcname=str(cache).lstrip("/"))


def _stdlib() -> str:
    done = subprocess.run(
        [PYTHON, "-I", "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"],
        capture_output=True, text=True, timeout=COMMAND_S, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def _shared_libraries(program: str) -> list[str]:
    """What the dynamic linker would load, links and their targets, as absolute paths."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=COMMAND_S)
    found = []
    for word in done.stdout.split():
        if word.startswith("/"):
            directory, name = os.path.split(word)
            path = os.path.join(os.path.realpath(directory), name)  # below the image's own merged directories
            found += [path, os.path.realpath(path)]
    return found


def _remove_groups(name: str) -> None:
    """Our engine's control groups, empty by now, in every hierarchy."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.partition(" - ")[2].startswith("cgroup"):
            top = Path(line.split()[4]) / name
            for path in sorted([top, *top.rglob("*/")], key=lambda p: len(p.parts), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
