"""What sandboxes and processes are asked to be, from what a program says.

It imports little, as all that `import stockade` does: the engine comes with the first sandbox.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from stockade.embedded.records import BoxSpec, Command
from stockade.errors import Invalid
from stockade.model import TerminalSize
from stockade.settings import parse_size

__all__ = ["MOST_OUTPUT_BYTES", "Opening", "Where", "to_bytes", "to_command"]

MOST_OUTPUT_BYTES = 64 << 20
"""Of both streams of a process together that are kept for whoever wants all of it."""
LEAST_MEMORY_BYTES, LEAST_DISK_BYTES = 8 << 20, 1 << 20
"""With less nothing of use can be started."""
ABANDONED_S = 86400.0
"""A sandbox that is nobody's to keep, and that nobody has used for so long, is stopped; removed as much later."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """In which place."""

    data_dir: str | PathLike[str] | None = None
    url: str | None = None
    api_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a new sandbox was asked to be."""

    where: Where
    image: str
    name: str | None
    memory: int | str
    cpus: float
    disk: int | str | None
    network: bool | Iterable[str]
    env: Mapping[str, str] | None
    cwd: str | None
    user: str | None
    labels: Mapping[str, str] | None
    timeout_s: float | None
    auto_stop_s: float | None
    keep: bool | None

    def spec(self) -> BoxSpec:
        """Raises Invalid: a size cannot be read."""
        keep = self.is_kept
        return BoxSpec(
            image=self.image,
            name=self.name,
            memory_bytes=_size("memory", self.memory, least=LEAST_MEMORY_BYTES),
            cpus=self.cpus,
            disk_bytes=None if self.disk is None else _size("disk", self.disk, least=LEAST_DISK_BYTES),
            network=self.network if isinstance(self.network, bool) else tuple(self.network),
            env=dict(self.env or {}),
            cwd=self.cwd,
            user=self.user,
            labels=dict(self.labels or {}),
            auto_stop_s=self.auto_stop_s or (None if keep else ABANDONED_S),
            auto_delete_s=None if keep else ABANDONED_S,
        )

    @property
    def is_kept(self) -> bool:
        """Whether it outlives whoever has made it: what has a name does."""
        return self.name is not None if self.keep is None else self.keep


def to_bytes(data: bytes | str) -> bytes:
    """Text as UTF-8."""
    return data.encode() if isinstance(data, str) else bytes(data)


def to_command(
    argv: Sequence[str],
    stdin: bytes | str | bool,
    env: Mapping[str, str] | None,
    cwd: str | None,
    user: str | None,
    terminal: bool | tuple[int, int],
    timeout_s: float | None,
) -> tuple[Command, bytes | None]:
    """The process that `exec` was asked for, and what it is to read; `None` where it gets nothing, or gets it later.

    Raises:
        Invalid: there is no program.
    """
    if not argv:
        raise Invalid("exec: name the program that shall be started")
    size = None
    if isinstance(terminal, tuple):
        size = TerminalSize(rows=terminal[0], columns=terminal[1])
    elif terminal:
        size = TerminalSize()
    command = Command(
        argv=tuple(argv),
        env=dict(env or {}),
        cwd=cwd,
        user=user,
        terminal=size,
        has_input=stdin is not False,
        timeout_s=timeout_s,
    )
    return command, None if isinstance(stdin, bool) else to_bytes(stdin)


def _size(name: str, value: int | str, *, least: int) -> int:
    try:
        found = parse_size(str(value))
    except ValueError as error:
        raise Invalid(f"{name}: {error} (got {value!r})") from None
    if found < least:
        raise Invalid(f"{name}: must be at least {least >> 20} MiB (got {value!r})")
    return found
