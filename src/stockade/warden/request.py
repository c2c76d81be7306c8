"""What a client may ask for, checked member by member. The server is not trusted to be well-behaved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .protocol import MOST_DESCRIPTORS

__all__ = ["Refused", "RunRequest"]


class Refused(Exception):
    """The request cannot be carried out; `kind` is one of the error kinds of `stockade.errors`, in small letters."""

    def __init__(self, kind: str, message: str, *, pid: int = 0) -> None:
        self.kind = kind
        self.pid = pid
        """Of a process that was made before it went wrong; 0 for none."""
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One fresh sandbox with one process."""

    id: int
    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    wall_s: float
    cpu_s: float
    cpus: float
    memory_bytes: int
    processes: int
    disk_bytes: int
    disk_inodes: int
    open_files: int
    stack_bytes: int
    output_bytes: int
    drop_output: bool
    collect: bool
    bundles: int
    """How many of the descriptors are bundles; one more, the last, is standard input."""

    @classmethod
    def parse(cls, message: Mapping[str, Any], descriptors: int) -> "RunRequest":
        """Raises Refused (`invalid`) naming the member that is wrong."""
        limits = message.get("limits")
        if not isinstance(limits, dict):
            raise Refused("invalid", "limits: must be an object")
        argv = message.get("argv")
        env = message.get("env")
        if not isinstance(argv, list) or not argv or not all(_is_text(a) for a in argv) or not argv[0]:
            raise Refused("invalid", "argv: must be a list of strings without NUL, the first not empty")
        if not isinstance(env, dict) or not all(_is_variable(k, v) for k, v in env.items()):
            raise Refused("invalid", "env: must map names to strings without NUL")
        cwd = message.get("cwd")
        if not isinstance(cwd, str) or not _is_text(cwd) or not cwd.startswith("/") or ".." in cwd.split("/"):
            raise Refused("invalid", "cwd: must be an absolute path")
        network = message.get("network", "none")
        if network != "none":
            raise Refused("unsupported", f"network {network!r} is not available; known: none")
        bundles = descriptors - 1
        if bundles < 0:
            raise Refused("invalid", "the descriptor of standard input is missing")
        if descriptors + (message.get("collect") is True) > MOST_DESCRIPTORS:
            raise Refused("invalid", f"{bundles} bundles are too many")
        return cls(
            id=_whole(message, "id", 1 << 53, least=0),
            image=str(message.get("image")),
            argv=tuple(argv),
            env=env,
            cwd=cwd,
            wall_s=_number(limits, "wall_s", 366 * 86400.0),
            cpu_s=_number(limits, "cpu_s", 366 * 86400.0 * 1024),
            cpus=_number(limits, "cpus", 65536.0),
            memory_bytes=_whole(limits, "memory_bytes", 1 << 50),
            processes=_whole(limits, "processes", 1 << 22),
            disk_bytes=_whole(limits, "disk_bytes", 1 << 50),
            disk_inodes=_whole(limits, "disk_inodes", 1 << 31),
            open_files=_whole(limits, "open_files", 1 << 20),
            stack_bytes=_whole(limits, "stack_bytes", 1 << 40),
            output_bytes=_whole(limits, "output_bytes", 1 << 40),
            drop_output=message.get("drop_output") is True,
            collect=message.get("collect") is True,
            bundles=bundles,
        )

    def errand(self) -> dict[str, Any]:
        """What PID 1 is told: the members of `init.Errand` that are not descriptors."""
        return {
            "argv": self.argv,
            "env": self.env,
            "cwd": self.cwd,
            "disk_bytes": self.disk_bytes,
            "disk_inodes": self.disk_inodes,
            "processes": self.processes,
            "open_files": self.open_files,
            "stack_bytes": self.stack_bytes,
            "collect": self.collect,
        }


def _is_text(value: object) -> bool:
    """Whether the kernel can be given it."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        return value.isascii() or bool(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # a lone surrogate, which JSON can write
        return False


def _is_variable(name: object, value: object) -> bool:
    return _is_text(name) and name != "" and "=" not in str(name) and _is_text(value)


def _number(source: Mapping[str, Any], name: str, most: float) -> float:
    value = source.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:  # NaN fails too
        raise Refused("invalid", f"{name}: must be a number above 0 and at most {most:g}, not {value!r}")
    return float(value)


def _whole(source: Mapping[str, Any], name: str, most: int, *, least: int = 1) -> int:
    value = source.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused("invalid", f"{name}: must be a whole number from {least} to {most}, not {value!r}")
    return value
