"""Several backends behind one: each sandbox is made where it is to be made, and nothing is made anywhere else."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from stockade.backends.base import Backend, BackendOptions, Feature, Glimpse, Report, SandboxSpec
from stockade.backends.choice import Choice
from stockade.backends.native import NativeBackend
from stockade.backends.sandboxing import MAIN, LiveExec, LiveSpec
from stockade.errors import Conflict, Invalid, NotFound, Unavailable, Unsupported
from stockade.model import DiskMount, ProcessResult, ProcessSpec
from tests.backends.conftest import UNENFORCED
from tests.backends.sandboxes import limits, spec

pytestmark = pytest.mark.anyio


class Absent:
    """A backend that this host does not have."""

    def __init__(self) -> None:
        self.is_closed = False

    async def start(self) -> None:
        raise Unavailable("its program is not installed; apt-get install it")

    async def run(
        self, sandbox: SandboxSpec, process: ProcessSpec, *, watched: Callable[[Glimpse], None] | None = None
    ) -> ProcessResult:
        raise AssertionError("it was never started")

    async def warm(self, sandbox: SandboxSpec, process: ProcessSpec) -> None:
        raise AssertionError("it was never started")

    async def report(self) -> Report:
        wall = Feature(name="program", enforced=False, mechanism="not installed")
        return Report(backend="absent", features=(wall,), details={})

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture(scope="module")
async def choice(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Choice]:
    """Two wardens of their own, and a backend that cannot be had."""

    def native(instance: str) -> NativeBackend:
        directory = tmp_path_factory.mktemp(instance)
        return NativeBackend(
            BackendOptions(data_dir=directory, allow_unenforced=UNENFORCED, embedded=True, instance=instance)
        )

    made = Choice({"one": native("one"), "two": native("two"), "absent": Absent()})
    await made.start()
    yield made
    await made.close()


def live(**members: Any) -> LiveSpec:
    return LiveSpec(image="host", limits=limits(), cwd="/code", lifetime_s=60.0, **members)


def sandboxing_of(choice: Choice, name: str) -> Any:
    backend: Any = choice.named(name)[1]
    return backend.sandboxing


@pytest.mark.parametrize("name", ["", "one", "two"])
async def test_a_run_is_the_named_backend_s(choice: Choice, name: str) -> None:
    made = SandboxSpec(image="host", limits=limits(), backend=name)
    assert (await choice.run(made, spec("/bin/echo", name))).stdout == f"{name}\n".encode()


async def test_a_backend_that_cannot_be_had_is_refused_and_never_stood_in_for(choice: Choice) -> None:
    with pytest.raises(Unavailable, match="backend absent cannot be had: its program is not installed"):
        await choice.run(SandboxSpec(image="host", limits=limits(), backend="absent"), spec("/bin/true"))
    with pytest.raises(Unsupported, match="'other' is not offered here; offered: one, two, absent"):
        await choice.run(SandboxSpec(image="host", limits=limits(), backend="other"), spec("/bin/true"))


async def test_a_sandbox_that_lives_is_found_in_its_backend(choice: Choice) -> None:
    assert choice.sandboxing is not None
    try:
        await choice.sandboxing.create("in-two", live(backend="two"))
        assert [one.name for one in await sandboxing_of(choice, "two").inventory()] == ["in-two"]
        assert await sandboxing_of(choice, "one").inventory() == []
        with pytest.raises(Conflict):
            await choice.sandboxing.create("in-two", live())
        command = LiveExec(argv=("/bin/echo", "here"), env={}, cwd="/code")
        streams = await choice.sandboxing.exec("in-two", MAIN, command)
        output = await streams.read(0, 0)
        assert output.stdout.data == b"here\n"
        streams.close()
    finally:
        await choice.sandboxing.remove("in-two")
    with pytest.raises(NotFound):
        await choice.sandboxing.inspect("in-two")


async def test_it_is_found_after_a_restart_of_the_server_too(choice: Choice) -> None:
    backends: dict[str, Backend] = {name: choice.named(name)[1] for name in ("one", "two")}
    fresh = Choice(backends)
    assert choice.sandboxing is not None
    assert fresh.sandboxing is not None
    try:
        await choice.sandboxing.create("lasting", live(backend="two"))
        assert (await fresh.sandboxing.inspect("lasting")).is_running
        assert [one.name for one in await fresh.sandboxing.inventory()] == ["lasting"]
    finally:
        await fresh.sandboxing.remove("lasting")


async def test_what_is_not_there_is_killed_and_removed_without_complaint(choice: Choice) -> None:
    assert choice.sandboxing is not None
    await choice.sandboxing.kill("never-was")
    await choice.sandboxing.remove("never-was")


async def test_a_backend_without_sandboxes_that_live_says_so(tmp_path: Path) -> None:
    backend = NativeBackend(BackendOptions(data_dir=tmp_path, embedded=True))
    absent: Any = Absent()
    made = Choice({"native": backend, "absent": absent})
    assert made.sandboxing is not None
    with pytest.raises(Unsupported, match="backend absent has no sandboxes that live"):
        await made.sandboxing.create("x", live(backend="absent"))
    await made.close()
    assert absent.is_closed


async def test_what_has_a_disk_is_made_by_the_backend_that_has_disks(tmp_path: Path) -> None:
    """Not by the usual one, where that has none: boxes and workshops name no backend."""
    absent: Any = Absent()
    backend = NativeBackend(BackendOptions(data_dir=tmp_path, embedded=True, allow_unenforced=UNENFORCED))
    made = Choice({"absent": absent, "native": backend})
    assert made.with_disks == "native"
    assert made.disks is backend.disks
    assert made.sandboxing is not None
    try:
        with pytest.raises(NotFound, match="nowhere"):
            await made.sandboxing.create("x", live(mounts=(DiskMount(disk="nowhere", path="/data"),)))
    finally:
        await made.close()


async def test_the_report_is_the_usual_backend_s_and_tells_of_the_others(choice: Choice) -> None:
    report = await choice.report()
    assert report.backend == "native"
    assert report.details["backend two"] == "ready" or report.details["backend two"].startswith("without")
    assert "not installed" in report.details["backend absent"]
    assert list(await choice.reports()) == ["one", "two", "absent"]


def test_there_must_be_one() -> None:
    with pytest.raises(Invalid):
        Choice({})
