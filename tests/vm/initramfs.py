"""An initial RAM file system that holds a Python, the project and a few kernel modules, and nothing else."""

import lzma
import os
import re
import subprocess
from pathlib import Path

import structlog

__all__ = ["Archive", "build"]

PYTHON = "/usr/bin/python3"
PROJECT = "/stockade"
"""Where the project lies inside."""

_ROOT = Path(__file__).parents[2]
_PARTS = ("src/stockade", "tests/__init__.py", "tests/warden/raw.py", "tests/vm")
_MODULES = ("overlay", "zram", "lzo_rle")
_NOT_NEEDED = {"test", "idlelib", "lib2to3", "tkinter", "ensurepip", "pydoc_data", "dist-packages", "turtledemo"}


class Archive:
    """A cpio archive of the kind that the kernel unpacks at boot (initramfs/buffer-format.rst: "newc")."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._names: set[str] = set()

    def _put(self, name: str, mode: int, content: bytes = b"", mtime: int = 0) -> None:
        encoded = name.encode() + b"\0"
        numbers = (len(self._names) + 1, mode, 0, 0, 1, mtime, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % number for number in numbers)
        self._pieces += [_padded(header + encoded), _padded(content)]
        self._names.add(name)

    def directory(self, path: str) -> None:
        """A directory, with those above it."""
        name = path.strip("/")
        if name and name not in self._names:
            self.directory(os.path.dirname(name))
            self._put(name, 0o040755)

    def link(self, path: str, target: str) -> None:
        name = path.strip("/")
        if name not in self._names:
            self.directory(os.path.dirname(name))
            self._put(name, 0o120777, target.encode())

    def file(self, path: str, content: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        name = path.strip("/")
        if name not in self._names:
            self.directory(os.path.dirname(name))
            self._put(name, 0o100000 | mode, content, mtime)

    def copy(self, source: str, path: str | None = None) -> None:
        """A file, link or tree of this host's, at the same path unless *path* says another. Times are kept: caches of
        compiled modules, which save minutes under emulation, are valid by them."""
        path = path or source
        if os.path.islink(source):
            self.link(path, os.readlink(source))
        elif os.path.isdir(source):
            self.directory(path)
            for name in sorted(os.listdir(source)):
                if name not in _NOT_NEEDED:
                    self.copy(f"{source}/{name}", f"{path}/{name}")
        else:
            info = os.stat(source)
            self.file(path, Path(source).read_bytes(), info.st_mode & 0o777, int(info.st_mtime))

    def program(self, path: str) -> None:
        """A program or library with everything that the dynamic linker would load for it."""
        listing = subprocess.run(["ldd", path], capture_output=True, text=True, timeout=30, check=False).stdout
        for one in (path, *re.findall(r"(/\S+) \(0x", listing)):
            while os.path.islink(one):
                self.copy(one, os.path.join(os.path.realpath(os.path.dirname(one)), os.path.basename(one)))
                one = os.path.join(os.path.dirname(one), os.readlink(one))
            real = os.path.realpath(one)
            self.copy(real, real)

    def finish(self) -> bytes:
        """The archive's bytes."""
        self._put("TRAILER!!!", 0)
        return b"".join(self._pieces)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def build(modules: Path) -> bytes:
    """The archive; *modules* is the kernel's directory below `lib/modules`.

    Raises:
        FileNotFoundError: this host lacks something that belongs inside.
    """
    archive = Archive()
    for name in ("dev", "proc", "sys", "tmp", "run", "root", "etc"):
        archive.directory(name)
    for name in ("bin", "sbin", "lib", "lib64"):  # merged /usr, where this host has it
        if os.path.islink(f"/{name}"):
            archive.copy(f"/{name}")
    library = _ask_python("import sysconfig; print(sysconfig.get_path('stdlib'))")
    for program in (PYTHON, "/bin/true", *map(str, Path(library, "lib-dynload").glob("*.so"))):
        archive.program(program)
    archive.copy(library)
    for part in _PARTS:
        archive.copy(str(_ROOT / part), f"{PROJECT}/{part}")
    # The one library that the backend's client needs, which the raw client takes its way of starting wardens from.
    archive.copy(str(Path(structlog.__file__).parent), f"{PROJECT}/structlog")
    for number, content in enumerate(_modules(modules)):
        archive.file(f"modules/{number:02}.ko", content)
    archive.file("init", (Path(__file__).parent / "boot.py").read_bytes(), 0o755)
    return archive.finish()


def _ask_python(question: str) -> str:
    command = [PYTHON, "-I", "-S", "-c", question]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


def _modules(directory: Path) -> list[bytes]:
    """The modules that we need and those that they need, in the order in which to load them."""
    files = {path.name.split(".")[0].replace("-", "_"): path for path in directory.rglob("*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name not in files:  # one that is not there is built into the kernel
            return
        data = files[name].read_bytes()
        data = lzma.decompress(data) if files[name].suffix == ".xz" else data
        # What it needs stands in the module itself; modules.dep is made only when a kernel is installed.
        needed = re.search(rb"\0depends=([^\0]*)\0", b"\0" + data)
        for other in (needed[1].decode() if needed else "").split(","):
            add(other.replace("-", "_"))
        found[name] = data

    for name in _MODULES:
        add(name)
    return list(found.values())
