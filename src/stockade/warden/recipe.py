"""What a warm process is made to: the part of a run that is known before the run is.

A *template* (kind `fork`) is an interpreter that has been started once, with all that it shall have imported; each
run gets a fork of it. What cannot fork comes from a *pool* (kind `pool`): started by itself in each cell, up to the
point where it would read the program. Either way a process is warm for one recipe only: what the kernel or
the runtime settle at a start (arguments, environment, stack, the disk's size) is part of it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .fields import Refused, command, directory, is_text, texts, variables, whole

__all__ = ["FORK", "POOL", "Recipe"]

FORK = "fork"
POOL = "pool"
_MOST_PRELOADED = 64
_MOST_FILES = 16


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A kind of warm process. Two that are equal are the same."""

    kind: str
    image: str
    argv: tuple[str, ...]
    """The command, without what a run adds at its end."""
    env: tuple[tuple[str, str], ...]
    cwd: str
    disk_bytes: int
    disk_inodes: int
    stack_bytes: int
    memory_bytes: int
    """A run that may use less than this gets a process of its own."""
    processes: int
    open_files: int
    preload: tuple[str, ...] = ()
    """Template: modules to import."""
    boot: tuple[str, ...] = ()
    """Pool: the command that starts the warm process."""
    files: tuple[tuple[str, str], ...] = ()
    """Pool: files by absolute path that the command needs; it removes them itself."""

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> "Recipe":
        """Raises Refused (`invalid`) naming the member that is wrong."""
        kind = message.get("kind")
        if kind not in (FORK, POOL):
            raise Refused("invalid", f"template: kind: must be {FORK!r} or {POOL!r}")
        files = message.get("files", {})
        if not isinstance(files, dict) or len(files) > _MOST_FILES or not all(map(is_text, files.values())):
            raise Refused("invalid", f"template: files: must map at most {_MOST_FILES} paths to texts")
        if not all(is_text(p) and p.startswith("/") and ".." not in p.split("/") for p in files):
            raise Refused("invalid", "template: files: paths must be absolute")
        preload = texts(message, "preload", most=_MOST_PRELOADED)
        if not all(all(part.isidentifier() for part in name.split(".")) for name in preload):
            raise Refused("invalid", "template: preload: must be names of modules")
        boot = command(message, "boot") if kind == POOL else ()
        return cls(
            kind=kind,
            image=str(message.get("image")),
            argv=command(message, "argv"),
            env=tuple(variables(message, "env").items()),
            cwd=directory(message, "cwd"),
            disk_bytes=whole(message, "disk_bytes", 1 << 50),
            disk_inodes=whole(message, "disk_inodes", 1 << 31),
            stack_bytes=whole(message, "stack_bytes", 1 << 40),
            memory_bytes=whole(message, "memory_bytes", 1 << 50),
            processes=whole(message, "processes", 1 << 22),
            open_files=whole(message, "open_files", 1 << 20),
            preload=preload,
            boot=boot,
            files=tuple(files.items()),
        )

    def to_message(self) -> dict[str, Any]:
        return asdict(self) | {"env": dict(self.env), "files": dict(self.files)}

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> "Recipe":
        """What `to_message` gave, in a process that trusts its sender."""
        values = dict(message)
        for name in ("argv", "preload", "boot"):
            values[name] = tuple(values[name])
        for name in ("env", "files"):
            values[name] = tuple(values[name].items())
        return cls(**values)
