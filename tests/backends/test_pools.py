"""A program given to an interpreter that was started ahead does what it does when started from nothing."""

import difflib
import itertools
import os
import shutil
import tomllib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import stockade.languages
from stockade.backends.base import BackendOptions, SandboxSpec, Warm
from stockade.backends.native import NativeBackend
from stockade.engine.language_files import read_language
from stockade.engine.language_records import Language
from stockade.model import Limits, Outcome, ProcessResult, ProcessSpec, Template, TemplateKind
from stockade.warden.pool import DESCRIPTOR
from tests.backends.conftest import UNENFORCED
from tests.backends.sandboxes import MB, limits

pytestmark = pytest.mark.anyio

READY_WITHIN_S = 60.0
BEGIN = 'own=$(cat /dev/shm/boot); rm /dev/shm/boot; eval "$own"'
BOOT = f"""
printf R >&{DESCRIPTOR}
read -r line <&{DESCRIPTOR}
exec {DESCRIPTOR}>&-
echo warmed "$line"
. ./main
"""
"""A shell that is started ahead, and shows it."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program, and what it is given."""

    language: str
    name: str
    code: bytes
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    limits: Limits
    in_order: bool = True
    """Whether the lines of its output come in the same order each time."""
    prints_alike: bool = True
    """Whether what it prints is the same each time."""

    def spec(self, language: Language, *, ahead: bool) -> ProcessSpec:
        return ProcessSpec(
            argv=language.run.command(self.limits),
            cwd="/code",
            env=language.environment(language.run, self.limits),
            files={"main.js" if language.name == "typescript" else language.main_file: self.code, **self.files},
            stdin=self.stdin,
            args=self.args,
            template=language.template_for(self.limits) if ahead else None,
        )


def read_program(language: str, name: str, entry: dict[str, Any]) -> Program:
    only_status = entry.pop("only_status", False)
    return Program(
        language=language,
        name=name,
        code=entry.pop("code").removeprefix("\n").encode(),
        stdin=entry.pop("stdin", "").encode() * entry.pop("stdin_repeat", 1),
        args=tuple(entry.pop("args", ())),
        files={path: text.encode() for path, text in entry.pop("files", {}).items()},
        limits=limits(**{"output_bytes": 4 * MB, **entry.pop("limits", {})}),
        in_order=not entry.pop("sorted", False),
        prints_alike=not only_status,
        **entry,
    )


def programs() -> list[Program]:
    return [
        read_program(file.stem, name, entry)
        for file in sorted((Path(__file__).parent / "pools").glob("*.toml"))
        for name, entry in tomllib.loads(file.read_text("utf-8")).items()
    ]


def language(name: str) -> Language:
    """The variant that is started ahead."""
    (folder,) = stockade.languages.__path__
    path = Path(folder) / f"{name}.toml"
    variants = read_language(path.read_text("utf-8"), source=path.name, name=name)
    return next(variant for variant in variants if variant.template is not None)


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[NativeBackend]:
    allowed = UNENFORCED if os.geteuid() else ()
    options = BackendOptions(data_dir=tmp_path_factory.mktemp("data"), allow_unenforced=allowed, embedded=True)
    backend = NativeBackend(options)
    await backend.start()
    yield backend
    await backend.close()


async def warm_of(backend: NativeBackend, argv: tuple[str, ...]) -> list[Warm]:
    return [one for one in (await backend.report()).warm if tuple(one.command) == argv]


async def make_ready(backend: NativeBackend, sandbox: SandboxSpec, process: ProcessSpec) -> None:
    """Wait until everything of that command that is to be kept ready is ready."""
    await backend.warm(sandbox, process)
    with anyio.fail_after(READY_WITHIN_S):
        while True:
            found = await warm_of(backend, process.argv)
            if found and all(one.ready for one in found):
                return
            assert not any(one.complaint for one in found), found
            await anyio.sleep(0.02)


def lines(result: ProcessResult, program: Program) -> list[str]:
    told = [f"{result.outcome} {result.exit_code} {result.signal} {result.stdout_truncated} {result.stderr_truncated}"]
    if program.prints_alike:
        for name, stream in (("out", result.stdout), ("err", result.stderr)):
            found = stream.decode("utf-8", "backslashreplace").split("\n")
            told += [f"{name} {line}" for line in (found if program.in_order else sorted(found))]
    return told


@pytest.mark.parametrize("program", programs(), ids=lambda program: f"{program.language}:{program.name}")
async def test_a_program_does_the_same_when_it_was_started_ahead(backend: NativeBackend, program: Program) -> None:
    chosen = language(program.language)
    if shutil.which(chosen.run.argv[0], path="/usr/bin:/bin") is None:
        pytest.skip(f"there is no {chosen.run.argv[0]} in the image")
    sandbox = SandboxSpec(image="host", limits=program.limits)
    cold = await backend.run(sandbox, program.spec(chosen, ahead=False))
    await make_ready(backend, sandbox, program.spec(chosen, ahead=True))
    ahead = await backend.run(sandbox, program.spec(chosen, ahead=True))
    changes = difflib.unified_diff(
        lines(cold, program), lines(ahead, program), "from nothing", "ahead", lineterm="", n=0
    )
    assert list(changes) == []


@pytest.mark.parametrize("name", ["node", "ruby"])
async def test_what_was_started_ahead_is_what_runs(backend: NativeBackend, name: str) -> None:
    """Else the programs above would show nothing: the process is older than its program."""
    chosen = language(name)
    if shutil.which(name, path="/usr/bin:/bin") is None:
        pytest.skip(f"there is no {name} in the image")
    code = {
        "node": "const f = (p) => require('fs').statSync(p).mtimeMs; console.log(f('main.js') > f('/proc/self') + 200)",
        "ruby": "p File.mtime('main.rb') > File.mtime('/proc/self') + 0.2",
    }[name]
    program = read_program(name, "age", {"code": code})
    sandbox = SandboxSpec(image="host", limits=program.limits)
    await make_ready(backend, sandbox, program.spec(chosen, ahead=True))
    with anyio.fail_after(READY_WITHIN_S):
        while (await backend.run(sandbox, program.spec(chosen, ahead=True))).stdout.strip() != b"true":  # noqa: ASYNC110  # nothing tells when
            await anyio.sleep(0.3)


def test_typescript_waits_as_node_does() -> None:
    """One program, written down in both files."""
    node, typescript = language("node").template, language("typescript").template
    assert node is not None
    assert typescript is not None
    assert node.files == typescript.files
    assert node.boot == typescript.boot


# ── the mechanism, shown with a shell ────────────────────────────────────────────────────────────────────────────────


NUMBERS = itertools.count()


def shell(code: str, *, boot: str = BOOT, **members: Any) -> ProcessSpec:
    """A program for the shell, of a command that no other has."""
    return ProcessSpec(
        argv=("sh", "-c", ". ./main", f"number-{next(NUMBERS)}"),
        cwd="/code",
        env={"PATH": "/usr/bin:/bin"},
        files={"main": code.encode()},
        template=Template(kind=TemplateKind.POOL, boot=("bash", "-c", BEGIN), files=(("/dev/shm/boot", boot),)),
        **members,
    )


SANDBOX = SandboxSpec(image="host", limits=limits(cpu_s=5.0))


async def test_it_is_told_its_arguments_only(backend: NativeBackend) -> None:
    process = shell("cat; ls -A /code /dev/shm", stdin=b"in\n", args=("a", 'b "ü'))
    await make_ready(backend, SANDBOX, process)
    result = await backend.run(SANDBOX, process)
    assert result.stdout.decode() == 'warmed {"args": ["a", "b \\"\\u00fc"]}\nin\n/code:\nmain\n\n/dev/shm:\n'


async def test_it_is_used_once(backend: NativeBackend) -> None:
    process = shell("ls -A /tmp; touch /tmp/mine")
    for _ in range(5):
        await make_ready(backend, SANDBOX, process)
        assert (await backend.run(SANDBOX, process)).stdout == b'warmed {"args": []}\n'


async def test_each_run_at_once_has_its_own(backend: NativeBackend) -> None:
    process = shell("cat /proc/sys/kernel/random/uuid; sleep 0.2")
    await make_ready(backend, SANDBOX, process)
    found: list[bytes] = []

    async def run() -> None:
        result = await backend.run(SANDBOX, process)
        assert result.succeeded, result
        found.append(result.stdout.splitlines()[-1])

    async with anyio.create_task_group() as group:
        for _ in range(12):
            group.start_soon(run)
    assert len(set(found)) == 12


@pytest.mark.parametrize(
    "boot",
    ["echo broken >&2; exit 1", ":", "kill -9 $$", "exec nowhere", f"printf x >&{DESCRIPTOR}"],
    ids=["fails", "ends", "is killed", "is nothing", "says something else"],
)
async def test_what_cannot_be_started_ahead_starts_from_nothing(backend: NativeBackend, boot: str) -> None:
    process = shell("echo program", boot=boot + "\n")
    await backend.warm(SANDBOX, process)
    for _ in range(3):
        result = await backend.run(SANDBOX, process)
        assert (result.stdout, result.exit_code) == (b"program\n", 0)


async def test_a_command_that_is_not_there_starts_from_nothing(backend: NativeBackend) -> None:
    process = shell("echo program")
    assert process.template is not None
    process = replace(process, template=replace(process.template, boot=("nowhere",)))
    await backend.warm(SANDBOX, process)
    with anyio.fail_after(READY_WITHIN_S):
        while not any(one.complaint for one in await warm_of(backend, process.argv)):  # noqa: ASYNC110
            await anyio.sleep(0.02)
    assert (await backend.run(SANDBOX, process)).stdout == b"program\n"


async def test_one_that_dies_while_it_waits_is_replaced(backend: NativeBackend) -> None:
    boot = BOOT.replace("read -r", "(sleep 0.3; kill -9 $$) & read -r")
    process = shell("echo program", boot=boot)
    await backend.warm(SANDBOX, process)
    for _ in range(6):
        await anyio.sleep(0.15)
        result = await backend.run(SANDBOX, process)
        assert result.outcome is Outcome.EXITED
        assert result.stdout.endswith(b"program\n") or result.signal == 9


async def test_files_that_cannot_be_written_are_told_as_from_nothing(backend: NativeBackend) -> None:
    small = SandboxSpec(image="host", limits=limits(disk_bytes=1 * MB, cpu_s=5.0))
    boot = BOOT.replace("echo warmed", 'case "$line" in *126*) exit 126;; esac; :')
    process = replace(shell("echo program", boot=boot), files={"main": b"", "one": b"x" * (MB // 2), "two": b"x" * MB})
    await make_ready(backend, small, process)
    cold = await backend.run(small, replace(process, template=None))
    ahead = await backend.run(small, process)
    assert (cold.outcome, cold.exit_code, cold.stderr) == (ahead.outcome, ahead.exit_code, ahead.stderr)


async def test_time_spent_while_it_was_started_does_not_count(backend: NativeBackend) -> None:
    spending = "i=0; while [ $i -lt 400000 ]; do i=$((i + 1)); done\n"
    process = shell("echo program", boot=spending + BOOT)
    await make_ready(backend, SANDBOX, process)
    used = (await backend.run(SANDBOX, process)).usage
    same = (await backend.run(SANDBOX, replace(process, template=None, files={"main": spending.encode()}))).usage
    assert used.cpu_user_s + used.cpu_system_s < (same.cpu_user_s + same.cpu_system_s) / 2


@pytest.mark.parametrize(
    ("code", "changes", "outcome"),
    [
        ("while :; do :; done", {"cpu_s": 0.4}, Outcome.CPU_TIME),
        ("sleep 9", {"wall_s": 0.4}, Outcome.WALL_TIME),
        ("tail /dev/zero", {"memory_bytes": 48 * MB}, Outcome.MEMORY),
        ("yes", {"output_bytes": 10_000}, Outcome.OUTPUT),
    ],
    ids=["CPU", "wall", "memory", "output"],
)
async def test_limits_hold_for_what_was_started_ahead(
    backend: NativeBackend, code: str, changes: Mapping[str, Any], outcome: Outcome
) -> None:
    if os.geteuid() and outcome in (Outcome.CPU_TIME, Outcome.MEMORY):
        pytest.skip("ordinary users may have no control groups")
    sandbox = SandboxSpec(image="host", limits=limits(**{"cpu_s": 5.0, **changes}))
    process = shell(code)
    await make_ready(backend, sandbox, process)
    result = await backend.run(sandbox, process)
    assert result.outcome is outcome
    assert result.stdout.startswith(b"warmed")


async def test_other_limits_start_from_nothing(backend: NativeBackend) -> None:
    process = shell("echo program")
    await make_ready(backend, SANDBOX, process)
    other = SandboxSpec(image="host", limits=limits(open_files=77))
    result = await backend.run(other, replace(process, files={"main": b"ulimit -n"}))
    assert result.stdout.splitlines()[-1] == b"77"
