"""Python programs that are run both ways, from a template and from nothing."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import anyio

from stockade.backends.base import BackendOptions, SandboxSpec
from stockade.backends.native import NativeBackend
from stockade.model import Limits, ProcessResult, ProcessSpec, Template, TemplateKind
from tests.backends.conftest import UNENFORCED
from tests.backends.sandboxes import MB, limits

__all__ = ["ENV", "Both", "Program", "differences", "lines", "programs"]

ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/home/user",
    "USER": "user",
    "LANG": "C.UTF-8",
    "TMPDIR": "/tmp",
}
LIMITS = limits(output_bytes=4 * MB, wall_s=20.0, processes=48)
IS_FORK = "import gc; print(gc.get_freeze_count() > 0)"
"""Says whether it was begun from a template: nobody else freezes what the collector knows."""
READY_WITHIN_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program and what it is given."""

    name: str
    code: bytes = b""
    absent: bool = False
    """Whether there is no main.py."""
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: ENV)
    files: Mapping[str, bytes] = field(default_factory=dict)
    limits: Limits = LIMITS
    preload: tuple[str, ...] = ()

    def spec(self, *, from_template: bool) -> ProcessSpec:
        return ProcessSpec(
            argv=("python3", "main.py"),
            cwd="/code",
            env=self.env,
            files=dict(self.files) if self.absent else {"main.py": self.code, **self.files},
            stdin=self.stdin,
            args=self.args,
            template=Template(kind=TemplateKind.FORK, preload=self.preload) if from_template else None,
        )

    @property
    def sandbox(self) -> SandboxSpec:
        return SandboxSpec(image="host", limits=self.limits)


def read_program(name: str, entry: dict[str, Any]) -> Program:
    encoding = entry.pop("encoding", "utf-8")
    return Program(
        name=name,
        code=entry.pop("code").removeprefix("\n").encode(encoding),
        stdin=entry.pop("stdin", "").encode(encoding) * entry.pop("stdin_repeat", 1),
        args=tuple(arg.encode(encoding).decode("utf-8", "surrogateescape") for arg in entry.pop("args", ())),
        files={path: text.encode() for path, text in entry.pop("files", {}).items()},
        limits=limits(**{"output_bytes": 4 * MB, "processes": 48, **entry.pop("limits", {})}),
        **entry,
    )


def programs() -> list[Program]:
    folder = Path(__file__).parent / "programs"
    entries = [
        (f"{file.stem}:{name}", entry)
        for file in sorted(folder.glob("*.toml"))
        for name, entry in tomllib.loads(file.read_text("utf-8")).items()
    ]
    return [read_program(name, entry) for name, entry in entries]


class Both:
    """Runs programs in both ways."""

    def __init__(self, data_dir: Path, **options: Any) -> None:
        if os.geteuid():
            options.setdefault("allow_unenforced", UNENFORCED)
        self.backend = NativeBackend(BackendOptions(data_dir=data_dir, embedded=True, **options))
        self._ready: set[str] = set()

    async def __aenter__(self) -> Self:
        await self.backend.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.backend.close()

    async def warm(self, program: Program) -> ProcessResult:
        """Begun from a template: the first time for its kind, it is waited for."""
        await self.make_ready(program)
        return await self.run_from_template(program)

    async def cold(self, program: Program) -> ProcessResult:
        return await self.backend.run(program.sandbox, program.spec(from_template=False))

    async def run_from_template(self, program: Program) -> ProcessResult:
        """As `warm`, and from nothing where there is no template yet."""
        return await self.backend.run(program.sandbox, program.spec(from_template=True))

    async def announce(self, program: Program) -> None:
        await self.backend.warm(program.sandbox, program.spec(from_template=True))

    async def is_from_template(self, program: Program) -> bool:
        """Whether a program of that kind is begun from a template by now."""
        probe = replace(program, code=IS_FORK.encode(), absent=False, stdin=b"", args=(), files={})
        return (await self.run_from_template(probe)).stdout == b"True\n"

    async def make_ready(self, program: Program) -> None:
        key = repr((sorted(program.env.items()), program.limits, program.preload))
        if key in self._ready:
            return
        await self.announce(program)
        with anyio.fail_after(READY_WITHIN_S):
            while not await self.is_from_template(program):  # noqa: ASYNC110  # nothing tells when it is
                await anyio.sleep(0.02)
        self._ready.add(key)


def lines(result: ProcessResult) -> list[str]:
    """All that can be told of a result, so that it can be compared line by line."""
    out, err = (stream.decode("utf-8", "backslashreplace") for stream in (result.stdout, result.stderr))
    return [
        f"{result.outcome} {result.exit_code} {result.signal} {result.stdout_truncated} {result.stderr_truncated}",
        *(f"out {line}" for line in out.split("\n")),
        *(f"err {line}" for line in err.split("\n")),
    ]


def differences(cold: ProcessResult, warm: ProcessResult) -> list[str]:
    return list(difflib.unified_diff(lines(cold), lines(warm), "from nothing", "from a template", lineterm="", n=0))
